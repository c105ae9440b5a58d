"""Where the weights of a sparse MLP are in Hugging Face files. Knows no JAX.

Checkpoints have a tensor for each projection of each expert, or two tensors for all experts of a
layer, as Transformers 5 holds them in memory. Both forms are read. The first is written, which all
versions read.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from numpy.typing import NDArray

from distill.errors import ModelError
from distill.formats.weight_map import LayerWeight
from distill.network.config import ModelConfig

_FUSED = re.compile(r"(?P<experts>.*\.mlp\.experts)\.(?P<part>gate_up_proj|down_proj)")


def sparse_mlp_weights(config: ModelConfig) -> tuple[LayerWeight, ...]:
    """The router, the shared expert where there is one, and each expert's projections."""
    experts = config.experts
    assert experts is not None
    weights = [
        LayerWeight(path=("mlp", "router", "kernel"), hf_name="mlp.gate", gguf_name="ffn_gate_inp")
    ]
    projections = (("gate_proj", "gate"), ("up_proj", "up"), ("down_proj", "down"))
    if experts.shared_expert_size is not None:
        weights += [
            LayerWeight(
                path=("mlp", "shared_expert", name, "kernel"),
                hf_name=f"mlp.shared_expert.{name}",
                gguf_name=f"ffn_{short}_shexp",
            )
            for name, short in projections
        ]
        weights.append(
            LayerWeight(
                path=("mlp", "shared_expert", "gate", "kernel"),
                hf_name="mlp.shared_expert_gate",
                gguf_name="ffn_gate_inp_shexp",
            )
        )
    weights += [
        LayerWeight(
            path=("mlp", "experts", name, "kernel"),
            hf_name=f"mlp.experts.{expert}.{name}",
            gguf_name=f"ffn_{short}.{expert}",
            index=(expert,),
        )
        for expert in range(experts.expert_count)
        for name, short in projections
    ]
    return tuple(weights)


class ExpertSlice:
    """One expert's projection in the tensor of all experts, read without the others.

    It stands in for an open file, and for its slice, with the methods that readers use.
    """

    def __init__(self, file: Any, stored_name: str, expert: int, rows: slice) -> None:
        self._file = file
        self._stored_name = stored_name
        self._expert = expert
        self._rows = rows

    def get_slice(self, _name: str) -> "ExpertSlice":
        """Itself: `get_shape` and `get_dtype` read no values."""
        return self

    def get_dtype(self) -> str:
        """As the file calls it: "F32"."""
        name: str = self._file.get_slice(self._stored_name).get_dtype()
        return name

    def get_shape(self) -> list[int]:
        """[out, in]."""
        _, row_count, column_count = self._file.get_slice(self._stored_name).get_shape()
        return [len(range(row_count)[self._rows]), column_count]

    def get_tensor(self, _name: str) -> NDArray[Any]:
        """[out, in], as a file with a tensor of this expert has it."""
        tensor: NDArray[Any] = self._file.get_slice(self._stored_name)[self._expert, self._rows]
        return tensor


def split_fused_experts(
    files: Mapping[str, tuple[Any, str]],
) -> dict[str, tuple[Any, str]]:
    """The tensors of a model, with one for each expert in the place of one for all experts.

    Args:
        files: by name, the open file and the name in that file.

    Raises:
        ModelError: an expert comes in both forms, or a tensor of all experts has not three axes.
    """
    split: dict[str, tuple[Any, str]] = {}
    for name, (file, stored_name) in files.items():
        fused = _FUSED.fullmatch(name)
        parts = (
            [(name, (file, stored_name))] if fused is None else _slices(fused, file, stored_name)
        )
        for part_name, part in parts:
            if part_name in split:
                raise ModelError(f"the weights have {part_name} twice, alone and in {name}")
            split[part_name] = part
    return split


def _slices(
    fused: re.Match[str], file: Any, stored_name: str
) -> Iterator[tuple[str, tuple[Any, str]]]:
    shape = file.get_slice(stored_name).get_shape()
    if len(shape) != 3:
        raise ModelError(f"{stored_name}: must be [experts, out, in], the file has {list(shape)}")
    expert_count, row_count, _ = shape
    half = row_count // 2
    rows = (
        {"down_proj": slice(None)}
        if fused["part"] == "down_proj"
        else {"gate_proj": slice(half), "up_proj": slice(half, None)}
    )
    for expert in range(expert_count):
        for part, part_rows in rows.items():
            name = f"{fused['experts']}.{expert}.{part}.weight"
            yield name, (ExpertSlice(file, stored_name, expert, part_rows), name)
