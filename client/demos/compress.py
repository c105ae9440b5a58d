"""A model of half the layers learns to speak again: pruning, then off-policy distillation.

The student is the teacher without some of its layers, all of whose weights are trained on the
teacher's top-K distributions over a text. Both are measured on other parts of that text.
"""

import platform
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.data.corpus import Corpus, cut_sequences, load_corpus
from client.demos.compress_settings import CompressSettings
from client.errors import DatasetError
from client.recipes.measured_training import CurvePoint, train_and_measure
from client.recipes.metrics import StepMetrics
from client.recipes.perplexity import share_won_back, teacher_prediction
from client.reports.json_values import json_value
from client.reports.perplexity_curve import draw_perplexity
from client.reports.report import (
    Reporter,
    append_json_line,
    open_reporter,
    remove_files,
    tokens_per_second,
)
from client.services.pair import LocalPair, Pair, open_pair
from distill.errors import ModelError
from distill.files import replace_json
from distill.tokenizer import TextTokenizer

TEACHER_NAME = "main"
"""The student's name for the teacher."""

RESULT_FILES = ("summary.json", "metrics.jsonl", "perplexity.png")
RESULT_DIRECTORIES = ("pruned", "student")


def run_compress(settings: CompressSettings) -> dict[str, Any]:
    """Prune, train and measure; returns what it wrote to summary.json.

    Raises:
        DistillError, ServiceStartError, ClientError: the message is for a person.
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
        summary = _run_recipe(settings, corpus, pair, reporter, started)
    summary |= {"kept_layers": layers, "wall_seconds": time.monotonic() - started}
    replace_json(settings.out / "summary.json", summary)
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


def _run_recipe(
    settings: CompressSettings, corpus: Corpus, pair: Pair, reporter: Reporter, started: float
) -> dict[str, Any]:
    """Train, measure and export; returns the numbers of it for summary.json."""
    length = settings.sequence_tokens
    training = _cut(pair.tokenizer, corpus.training, length, "training")
    heldout = _cut(pair.tokenizer, corpus.heldout, length, "held-out")
    heldout = heldout[: settings.max_heldout_sequences]
    ready_seconds = time.monotonic() - started

    asked = time.monotonic()
    teacher = teacher_prediction(pair.teacher, heldout)
    teacher_seconds = time.monotonic() - asked
    reporter.line(
        f"held out: {len(heldout)} sequences of {length} tokens; to train on: {len(training)}"
    )
    reporter.line(f"the teacher: perplexity {teacher.perplexity:.2f}")

    def on_step(metrics: StepMetrics) -> None:
        append_json_line(settings.out / "metrics.jsonl", metrics.flat())
        reporter.step(metrics)

    def on_point(point: CurvePoint) -> None:
        reporter.line(
            f"the student after {point.step} steps, {point.tokens:,} tokens, "
            f"{point.seconds:.0f} s of training: perplexity {point.perplexity:.2f}"
        )

    run = pair.student.create_run(time.strftime("compress-%Y%m%d-%H%M%S"), lora=None)
    trained = train_and_measure(
        student=pair.student,
        run=run,
        teacher=pair.link,
        training=training,
        heldout=heldout,
        settings=settings.training,
        measurement_count=settings.measurements,
        on_step=on_step,
        on_point=on_point,
    )
    run.export_weights(settings.out / "student")
    history, before, after = trained.history, trained.before, trained.after
    return {
        "teacher_perplexity": teacher.perplexity,
        "perplexity_before": before.perplexity,
        "perplexity_after": after.perplexity,
        "share_won_back": share_won_back(teacher=teacher, before=before, after=after),
        "heldout_tokens": after.token_count,
        "kl_first": history[0].batch["tail_bucket_kl"],
        "kl_last": history[-1].batch["tail_bucket_kl"],
        "tokens_trained": trained.tokens_trained,
        "ready_seconds": ready_seconds,
        "training_seconds": trained.training_seconds,
        "scoring_seconds": sum(one.scoring_seconds for one in history),
        "forward_backward_seconds": sum(one.training_seconds for one in history),
        "evaluation_seconds": teacher_seconds + trained.evaluation_seconds,
        "tokens_per_second_teacher": tokens_per_second(
            history, count="teacher_token_count", seconds="scoring_seconds"
        ),
        "tokens_per_second_student": tokens_per_second(
            history, count="student_token_count", seconds="training_seconds"
        ),
        "tokens_per_second_training": tokens_per_second(
            history, count="student_token_count", seconds="step_seconds"
        ),
        "step_count": len(history),
        "teacher": json_value(pair.teacher.model_info()),
        "student": json_value(pair.student.model_info()),
        "run_id": run.run_id,
        "run_weights_version": run.state().weights_version,
        "curve": [json_value(point) for point in trained.points],
        "curve_drawn": draw_perplexity(
            trained.points, teacher.perplexity, settings.out / "perplexity.png"
        ),
        "corpus_digest": corpus.digest,
        "python": platform.python_version(),
        "settings": {
            **json_value(settings.training),
            "keep_layers": settings.keep_layers,
            "sequence_tokens": settings.sequence_tokens,
            "targets": settings.targets,
        },
    }


def _cut(
    tokenizer: TextTokenizer, blocks: Sequence[str], sequence_tokens: int, what: str
) -> list[list[int]]:
    sequences = cut_sequences(tokenizer, blocks, sequence_tokens)
    if not sequences:
        raise DatasetError(f"the {what} text must have {sequence_tokens} tokens or more")
    return sequences
