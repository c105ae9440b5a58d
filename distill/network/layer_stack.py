"""Running a stack of layers, one kind or several, as one scan over the periods of the model."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from distill.kernels.bits import as_bits
from distill.network.config import ModelConfig
from distill.network.layer_kinds import LayerKind
from distill.network.projections import kind_projections

Carry = TypeVar("Carry")

Stacks = Mapping[str, Any]
"""{kind: tree of arrays [n, ...]}: of a run of layers, those of a kind stacked in their order."""

StackedAdapter = Mapping[str, Mapping[str, jax.Array]]
"""A low-rank update of a run of layers: {"q_proj": {"a": [n, in, r], "b": [n, r, out]}, ...}, of
the n layers that have the target, whatever their kind."""

LayerStep = Callable[[Carry, LayerKind, Any, Any, Any, Any], Carry]
"""Computes one layer: (carry, kind, the layer's parameters, its adapter, its numbers, its index
among the run's layers of its kind) to the next carry. Parameters and adapter may be `as_bits`."""


def run_layers(
    config: ModelConfig,
    kinds: Sequence[LayerKind],
    step: LayerStep[Carry],
    carry: Carry,
    stacks: Stacks,
    adapter: StackedAdapter,
    numbers: Any,
    *,
    with_index: bool = False,
) -> Carry:
    """Run consecutive layers.

    Args:
        config: the model.
        kinds: of the layers. Whole periods of the model become one scan; any other sequence of
            kinds is taken for a single period.
        step: computes one layer.
        carry: given to the first layer.
        stacks: the parameters of the layers.
        adapter: their low-rank updates.
        numbers: a tree of arrays [len(kinds), ...], of which each layer is given its row.
        with_index: whether `step` is given the layer's index; otherwise it is given None.

    Returns:
        The carry behind the last layer.
    """
    period = list(config.period)
    repeats, rest = divmod(len(kinds), len(period))
    if rest or list(kinds) != period * repeats:
        period, repeats = list(kinds), 1
    kind_counts = Counter(kind.name for kind in period)
    targets = {kind: set(kind_projections(config, kind)) for kind in set(period)}
    target_counts = Counter(target for kind in period for target in targets[kind])

    def by_period(tree: Any, count: int) -> Any:
        # A kind that occurs once in a period needs no axis of its own, and no slice in the body.
        if count == 1:
            return tree
        return jax.tree.map(lambda array: array.reshape(repeats, count, *array.shape[1:]), tree)

    def body(carry: Carry, scanned: Any) -> tuple[Carry, None]:
        stacks, adapter, numbers, repeat = scanned
        seen: Counter[str] = Counter()

        def pick(name: str, tree: Any, count: int) -> Any:
            index = seen[name]
            seen[name] += 1
            return tree if count == 1 else jax.tree.map(lambda array: array[index], tree)

        for slot, kind in enumerate(period):
            index = None
            if with_index:
                count = kind_counts[kind.name]
                index = repeat if count == 1 else repeat * count + seen[f"kind {kind.name}"]
            parameters = pick(f"kind {kind.name}", stacks[kind.name], kind_counts[kind.name])
            layer_adapter = {
                target: pick(f"target {target}", pair, target_counts[target])
                for target, pair in adapter.items()
                if target in targets[kind]
            }
            own = numbers
            if len(period) > 1:
                own = jax.tree.map(lambda array, slot=slot: array[slot], numbers)
            carry = step(carry, kind, parameters, layer_adapter, own, index)
        return carry, None

    scanned = (
        {name: by_period(stacks[name], count) for name, count in kind_counts.items()},
        {target: by_period(pair, target_counts[target]) for target, pair in adapter.items()},
        by_period(numbers, len(period)),
        jax.numpy.arange(repeats) if with_index else None,
    )
    if repeats > 1:
        # A single period is not cut by a loop, so viewing it as bits would only copy it.
        scanned = as_bits(scanned)
    carry, _ = jax.lax.scan(body, carry, scanned, unroll=repeats == 1)
    return carry
