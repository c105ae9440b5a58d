"""Which layers of a model stay when it is pruned.

Layers are counted from 0.
"""

from collections.abc import Sequence
from itertools import pairwise

from distill.errors import InvalidFieldError

FIELD = "keep_layers"


def parse_layers(text: str, layer_count: int) -> tuple[int, ...]:
    """What "15" (a count), "0-6,22-29" or "0,2,29" (layers, ranges with both ends) mean.

    A single layer is written "4-4"; a number alone is a count, for which `middle_cut` chooses.

    Args:
        text: as a person types it.
        layer_count: of the model.

    Raises:
        InvalidFieldError: none, one that the model does not have, or one twice; names it.
    """
    parts = [part.strip() for part in text.split(",")]
    if len(parts) == 1 and parts[0].isdecimal():
        return middle_cut(int(parts[0]), layer_count)
    layers: list[int] = []
    for part in parts:
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InvalidFieldError(
                FIELD, f"must be a count, or layers such as 0-6,22-29; got {part!r} in {text!r}"
            )
        start, end = int(first), int(last or first)
        if end < start:
            raise InvalidFieldError(FIELD, f"the range {part} is empty: it ends before it begins")
        if end >= layer_count:  # here, for a range may be of billions
            raise _outside(end, layer_count)
        layers += range(start, end + 1)
    ordered = tuple(sorted(layers))
    check_layers(ordered, layer_count)
    return ordered


def check_layers(layers: Sequence[int], layer_count: int) -> None:
    """Refuse layers that cannot be those of a pruned model.

    Raises:
        InvalidFieldError: none, one that the model does not have, one twice, or not ascending.
    """
    if not layers:
        raise InvalidFieldError(FIELD, "must name a layer or more, got none")
    for layer in layers:
        if not 0 <= layer < layer_count:
            raise _outside(layer, layer_count)
    for layer, following in pairwise(layers):
        if following == layer:
            raise InvalidFieldError(FIELD, f"names layer {layer} twice")
        if following < layer:
            raise InvalidFieldError(FIELD, f"must ascend, got {following} after {layer}")


def _outside(layer: int, layer_count: int) -> InvalidFieldError:
    return InvalidFieldError(
        FIELD,
        f"must be in [0, {layer_count - 1}], for the model has {layer_count} layers; got {layer}",
    )


def middle_cut(count: int, layer_count: int) -> tuple[int, ...]:
    """The layers that stay when one block is cut from the middle: a third of them lies before it.

    Neighbouring layers do similar things, except the first and the last
    (https://arxiv.org/abs/2403.17887). docs/compress.md compares this choice with others, among
    them evenly spaced layers and those that change their input most. Measuring the layers of a
    model gives a better choice for it.

    Raises:
        InvalidFieldError: none, or more than the model has.
    """
    if not 1 <= count <= layer_count:
        raise InvalidFieldError(
            FIELD,
            f"must be in [1, {layer_count}], for the model has {layer_count} layers; got {count}",
        )
    before = -(-count // 3)
    after = count - before
    return (*range(before), *range(layer_count - after, layer_count))
