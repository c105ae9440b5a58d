"""What a gated delta-net layer is, apart from its weights. Knows no JAX."""

from dataclasses import dataclass, fields

from distill.errors import ModelError


@dataclass(frozen=True, kw_only=True)
class DeltaNetConfig:
    """A mixer whose memory of a sequence is a matrix for each head."""

    key_head_count: int
    """G."""

    value_head_count: int
    """H: heads of values, each with a memory; a multiple of `key_head_count`."""

    key_width: int
    """dk: width of a query and of a key."""

    value_width: int
    """dv: width of a value."""

    tap_count: int
    """K: tokens that the convolution before the memory sees, the token itself included."""

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self)):
            if getattr(self, name) < 1:
                raise ModelError(f"config.{name}: must be at least 1, got {getattr(self, name)}")
        if self.value_head_count % self.key_head_count:
            raise ModelError(
                f"config.value_head_count: must be a multiple of the {self.key_head_count} key "
                f"heads, got {self.value_head_count}"
            )

    @property
    def channel_count(self) -> int:
        """C: channels of the convolution, one for each feature of queries, keys and values."""
        keys = self.key_head_count * self.key_width
        return 2 * keys + self.value_head_count * self.value_width
