"""Trained weights as files that Transformers and PEFT load."""

from pathlib import Path

import jax
import numpy as np

from distill.engine.device_queue import DeviceQueue
from distill.models.adapters import LoraSpec
from distill.models.export import write_hf_directory, write_peft_adapter
from distill.models.loading import LoadedModel
from student_service.optimizer import Trainable


def export_files(
    model: LoadedModel,
    lora: LoraSpec | None,
    trainable: Trainable,
    directory: Path,
    queue: DeviceQueue,
    timeout_seconds: float | None,
) -> None:
    """Write a PEFT adapter, or the whole model for a run that trains all weights.

    Raises:
        DeadlineError: the device was not free within `timeout_seconds`.
    """
    arrays = queue.run(lambda: jax.tree.map(np.asarray, trainable), timeout_seconds=timeout_seconds)
    if lora is not None:
        write_peft_adapter(arrays, lora, model.config, model.name, directory)
    else:
        write_hf_directory(model.config, arrays, model.tokenizer, directory)
