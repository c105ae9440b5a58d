"""Trained weights as files that Transformers and PEFT can load."""

from distill.models.export_file import ExportFile
from distill.models.loading import LoadedModel
from distill.models.write_directory import RunPiece, hf_files, peft_files
from distill.network.adapters import LoraSpec
from student_service.training.optimizer import Trainable


def export_files(
    model: LoadedModel, lora: LoraSpec | None, trainable: Trainable, run_piece: RunPiece
) -> list[ExportFile]:
    """A PEFT adapter, or the whole model for a run that trains all weights.

    Nothing is fetched yet: reading a file fetches its tensors from the device, one at a time.

    Args:
        model: the base of the run.
        lora: the run's adapter; None: it trains all weights.
        trainable: what it has trained.
        run_piece: runs a piece of compute on the device; its exceptions pass through.
    """
    if lora is not None:
        return peft_files(trainable, lora, model.config, model.name, run_piece=run_piece)
    return hf_files(model.config, trainable, model.tokenizer, run_piece=run_piece)
