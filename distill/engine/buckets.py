"""Few shapes for many lengths: every shape is a compilation."""


def length_bucket(length: int, *, smallest: int = 16) -> int:
    """The padded length: the next of 2^i and 1.5 · 2^i.

    Powers of two alone waste up to half of the compute, a quarter on average; the steps between
    halve that at twice the shapes. Finer steps cost more in compilations than they save.
    """
    bucket = smallest
    while bucket < length:
        # A power of two has a single bit; a step between has two.
        is_power_of_two = bucket & (bucket - 1) == 0
        bucket = bucket * 3 // 2 if is_power_of_two else bucket * 4 // 3
    return bucket


def cache_slots(token_count: int) -> int:
    """Slots of a cache for so many tokens: the next power of two, at least 128.

    Coarser than `length_bucket`: unused slots cost little beside the weights that every step reads,
    and a cache that grows passes through every size on its way.
    """
    return max(128, power_of_two_at_least(token_count))


def power_of_two_at_least(value: int) -> int:
    """The smallest power of two that is not below `value` (at least 1)."""
    return 1 << (value - 1).bit_length()


def power_of_two_at_most(value: int) -> int:
    """The largest power of two that is not above `value` (at least 1)."""
    return 1 << (value.bit_length() - 1)
