"""The reference: Transformers on PyTorch, float32 on the CPU, plain attention.

Imports torch; only `tests/parity` and the script that makes the fixtures use it.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from tests.support.comparison import FloatArray, SoftTargets


def load_reference(directory: Path) -> torch.nn.Module:
    """The model in `directory` as Transformers reads it. Nothing is fetched."""
    model, report = AutoModelForCausalLM.from_pretrained(
        directory,
        dtype=torch.float32,
        attn_implementation="eager",
        # The grouped products of the default want widths that are multiples of 16 bytes.
        experts_implementation="eager",
        local_files_only=True,
        output_loading_info=True,
    )
    # Transformers fills a missing tensor with random numbers and only warns.
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if report.get(problem):
            raise AssertionError(f"Transformers reads the directory with {problem}: {report}")
    return model.eval()


def load_reference_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in `directory` as Transformers reads it. Nothing is fetched."""
    return AutoTokenizer.from_pretrained(directory, local_files_only=True)


def reference_log_probs(model: torch.nn.Module, token_ids: NDArray[np.int32]) -> FloatArray:
    """log p of every token at every position of one sequence: [T] -> [T, V]."""
    with torch.no_grad():
        return _log_softmax(_logits(model, token_ids)).float().numpy()


def reference_gradients(
    model: torch.nn.Module, token_ids: NDArray[np.int32], targets: SoftTargets
) -> dict[str, FloatArray]:
    """Gradient of `SoftTargets.loss` in every parameter that requires one, by name."""
    model.zero_grad()
    logits = _logits(model, token_ids) / targets.temperature
    selected = _log_softmax(logits).gather(-1, torch.from_numpy(targets.token_ids).long())
    (-(torch.from_numpy(targets.weights) * selected).sum()).backward()
    return {
        stored_name: gradient
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.grad is not None
        for stored_name, gradient in _as_stored(name, parameter.grad.numpy().copy())
    }


def _as_stored(name: str, tensor: FloatArray) -> Iterator[tuple[str, FloatArray]]:
    """Transformers 5 holds all experts of a layer in two parameters; files have each alone."""
    experts, _, part = name.rpartition(".")
    if not experts.endswith(".mlp.experts"):
        yield name, tensor
        return
    for index, expert in enumerate(tensor):
        if part == "down_proj":
            yield f"{experts}.{index}.down_proj.weight", expert
        else:
            gate, up = np.split(expert, 2)
            yield f"{experts}.{index}.gate_proj.weight", gate
            yield f"{experts}.{index}.up_proj.weight", up


def _logits(model: torch.nn.Module, token_ids: NDArray[np.int32]) -> torch.Tensor:
    batch = torch.from_numpy(np.asarray(token_ids, dtype=np.int64))[None]
    return model(input_ids=batch, use_cache=False).logits[0]


def _log_softmax(logits: torch.Tensor) -> torch.Tensor:
    # In float64: torch's float32 log_softmax over 49152 tokens gives probabilities that sum to
    # 1.000018. The excess is the same at all positions, and makes its mean gradient over a text
    # wrong by up to 1.3e-3, measured against the whole model in float64.
    return logits.double().log_softmax(-1)
