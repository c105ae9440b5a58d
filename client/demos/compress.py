"""A model of half the layers learns to speak again: pruning, then off-policy distillation.

The student is the teacher without some of its layers, all of whose weights are trained on the
teacher's top-K distributions over a text. Both are measured on other parts of that text.
"""

import shutil
import time
from pathlib import Path
from typing import Any

from client.data.corpus import load_corpus
from client.demos.compress_settings import CompressSettings
from client.demos.compress_training import CompressTraining
from client.reports.report import open_reporter, remove_files, write_json
from client.services.pair import LocalPair, open_pair
from distill.errors import ModelError

TEACHER_NAME = "main"
"""The student's name for the teacher."""

RESULT_FILES = ("summary.json", "metrics.jsonl", "perplexity.png")
RESULT_DIRECTORIES = ("pruned", "student")


def run_compress(settings: CompressSettings) -> dict[str, Any]:
    """Prune, train and measure; returns what it wrote to summary.json.

    Raises:
        DemoError, DistillError, ServiceStartError, ClientError: the message is for a person.
    """
    started = time.monotonic()
    corpus = load_corpus(settings.text_file)
    _remove_earlier_results(settings.out)
    pruned = settings.out / "pruned"
    layers = _prune(settings, pruned)
    with (
        open_reporter(settings.training.step_count) as reporter,
        open_pair(
            LocalPair(model=settings.model, student_model=str(pruned), directory=settings.out),
            teacher_name=TEACHER_NAME,
            targets=settings.targets,
            say=reporter.line,
        ) as pair,
    ):
        training = CompressTraining(settings, corpus, pair, reporter)
        ready_seconds = time.monotonic() - started
        summary = training.run()
    summary |= {
        "kept_layers": layers,
        "ready_seconds": ready_seconds,
        "wall_seconds": time.monotonic() - started,
    }
    write_json(settings.out / "summary.json", summary)
    return summary


def _remove_earlier_results(out: Path) -> None:
    remove_files(out, RESULT_FILES)
    # Directories only where an earlier run made them: these names may be anybody's.
    if (out / "pruned" / "pruning.json").is_file():
        for name in RESULT_DIRECTORIES:
            shutil.rmtree(out / name, ignore_errors=True)


def _prune(settings: CompressSettings, directory: Path) -> tuple[int, ...]:
    try:
        # Only here: a client may be installed without what reads models.
        from distill.models.pruning import prune
    except ModuleNotFoundError as error:
        raise ModelError(f"pruning needs the package {error.name}") from None
    return prune(settings.model, settings.keep_layers, directory)
