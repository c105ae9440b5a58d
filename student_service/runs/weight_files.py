"""Trained weights as files that Transformers and PEFT can load."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from distill.models.loading import LoadedModel
from distill.models.write_directory import write_hf_directory, write_peft_adapter
from distill.network.adapters import LoraSpec
from student_service.training.optimizer import Trainable


def export_files(
    model: LoadedModel,
    lora: LoraSpec | None,
    trainable: Trainable,
    directory: Path,
    run_piece: Callable[[Callable[[], Trainable]], Trainable],
) -> None:
    """Write a PEFT adapter, or the whole model for a run that trains all weights.

    Args:
        model: the base of the run.
        lora: the run's adapter; None: it trains all weights.
        trainable: what it has trained.
        directory: where the files go.
        run_piece: runs a piece of compute on the device; its exceptions pass through.
    """
    arrays = run_piece(lambda: jax.tree.map(np.asarray, trainable))
    if lora is not None:
        write_peft_adapter(arrays, lora, model.config, model.name, directory)
    else:
        write_hf_directory(model.config, arrays, model.tokenizer, directory)
