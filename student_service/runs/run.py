"""A run: the owner of one training state, and how it changes.

A state is replaced and never edited: an operation computes a new one from the old and swaps it in
when it has succeeded. The sequencer makes sure that one operation runs at a time.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import asdict, replace
from functools import partial
from typing import Any

from distill.engine.device_queue import DeviceQueue
from distill.engine.weights import ModelWeights
from distill.errors import UnavailableError, WrongStateError
from distill.network.adapters import LoraSpec
from student_service.runs.caller import Caller, Remaining
from student_service.runs.checkpoints import CheckpointStore
from student_service.runs.manifests import CheckpointInfo
from student_service.runs.run_state import (
    COUNTERS,
    RunState,
    from_named_arrays,
    named_arrays,
)
from student_service.runs.sequencer import Sequencer
from student_service.training.batch import BatchOutcome, TrainingBatch
from student_service.training.optimizer import AdamWSettings, Trainable
from student_service.training.trainer import Trainer, parameter_count

KEPT_CHECKPOINT_WEIGHTS = 2
"""Checkpoints whose weights stay in memory for sampling and scoring."""

Seconds = dict[str, float]
"""Where the time of a batch went, by names of `BatchSeconds` in the contract: "queue" is the time
until the device began, "compute" the time from the first piece to the last. The device may serve
other streams between the pieces; that time is part of "compute"."""


class Run:
    """One training state and the sequence of what changes it."""

    def __init__(
        self,
        run_id: str,
        lora: LoraSpec | None,
        *,
        trainer: Trainer,
        queue: DeviceQueue,
        store: CheckpointStore,
        base_version: str,
        sequencer: Sequencer,
        remaining: Remaining,
    ) -> None:
        self.run_id = run_id
        self.lora = lora
        self.sequencer = sequencer
        self._trainer = trainer
        self._queue = queue
        self._store = store
        self._base_version = base_version
        trainable = queue.run(lambda: trainer.initial_trainable(lora), timeout_seconds=remaining())
        self.trainable_parameter_count = parameter_count(trainable)
        self._state = RunState(
            trainable=trainable,
            optimizer_state=trainer.initial_optimizer_state(trainable),
            weights_version=f"{run_id}:0",
        )
        self._current_weights: ModelWeights | None = None
        self._saved_weights: OrderedDict[str, ModelWeights] = OrderedDict()
        self._weights_lock = threading.Lock()

    @property
    def state(self) -> RunState:
        """The present state. It never changes: later mutations make other states."""
        return self._state

    def forward_backward(
        self, batch: TrainingBatch, remaining: Remaining
    ) -> tuple[BatchOutcome, Seconds]:
        """Add the gradient of a batch to the sum. Call through the sequencer."""
        state = self._state
        outcome, seconds = _timed(
            self._trainer.forward_backward(state.trainable, self.lora, batch),
            lambda pieces: self._finish(pieces, remaining),
        )
        gradient_sum = self._queue.run(
            lambda: self._trainer.accumulate(state.gradient_sum, outcome.gradients),
            timeout_seconds=remaining(),
        )
        self._swap(
            replace(
                state,
                gradient_sum=gradient_sum,
                accumulated_batches=state.accumulated_batches + 1,
                accumulated_rows=state.accumulated_rows + outcome.batch.row_count,
                accumulated_examples=state.accumulated_examples + len(batch.examples),
            )
        )
        return outcome.batch, seconds

    def forward(
        self, batch: TrainingBatch, checkpoint: str | None, base: bool, caller: Caller
    ) -> tuple[BatchOutcome, Seconds]:
        """Evaluate a batch under the base, a saved, or the current weights; nothing changes."""
        trainable = self._state.trainable
        if base:
            # A fresh adapter adds nothing to the base, and fresh full weights equal the base.
            trainable = caller.run(self._queue, lambda: self._trainer.initial_trainable(self.lora))
        elif checkpoint is not None:
            trainable = self.checkpoint_trainable(checkpoint, caller)
        return _timed(
            self._trainer.forward(trainable, self.lora, batch),
            lambda pieces: caller.finish(self._queue, pieces),
        )

    def optim_step(
        self,
        settings: AdamWSettings,
        normalization: str,
        sequence_number: int,
        remaining: Remaining,
    ) -> dict[str, Any]:
        """Apply the gradient sum and clear it. Call through the sequencer.

        Returns the fields of `OptimStepResponse` in the contract.

        Args:
            settings: of this step.
            normalization: "none", "rows" or "examples".
            sequence_number: of the mutation; names the new weights.
            remaining: time within which it may start.

        Raises:
            DeadlineError: the device was not free in time.
            WrongStateError: nothing was accumulated.
            NonFiniteGradientError: the step would not be finite.
        """
        state = self._state
        gradient_sum = state.gradient_sum
        if gradient_sum is None:
            raise WrongStateError(
                "the run has no gradient: ForwardBackward with at least one weighted row must "
                "come before OptimStep"
            )
        normalizer = {
            "none": 1.0,
            "rows": float(state.accumulated_rows),
            "examples": float(state.accumulated_examples),
        }[normalization]
        outcome = self._queue.run(
            lambda: self._trainer.optim_step(
                state.trainable, state.optimizer_state, gradient_sum, normalizer, settings
            ),
            timeout_seconds=remaining(),
        )
        stepped = RunState(
            trainable=outcome.trainable,
            optimizer_state=outcome.optimizer_state,
            step=state.step + 1,
            weights_version=f"{self.run_id}:{sequence_number}",
        )
        self._swap(stepped)
        return {
            **{name: float(norm) for name, norm in outcome.norms.items()},
            "normalizer": normalizer,
            "step": stepped.step,
            "weights_version": stepped.weights_version,
        }

    def save_checkpoint(
        self, name: str, overwrite: bool, sequence_number: int, remaining: Remaining
    ) -> CheckpointInfo:
        """Save the whole state. Call through the sequencer."""
        state = self._state
        info = {
            "name": name,
            "sequence_number": sequence_number,
            "writer_epoch": self.sequencer.epoch,
            "weights_version": state.weights_version,
            "base_weights_version": self._base_version,
            "lora": self._lora_values(),
            **{counter: getattr(state, counter) for counter in COUNTERS},
        }
        arrays = self._queue.run(lambda: named_arrays(state), timeout_seconds=remaining())
        return self._store.save(self.run_id, info, arrays, overwrite=overwrite)

    def load_checkpoint(self, name: str, remaining: Remaining) -> None:
        """Replace the state by a saved one; the sequence goes on. Call through the sequencer."""
        run_piece = partial(self._queue.run, timeout_seconds=remaining())
        self._swap(self._restore(name, run_piece)[0])

    def list_checkpoints(self) -> list[CheckpointInfo]:
        """The saved checkpoints, oldest first."""
        return self._store.list(self.run_id)

    def delete_checkpoints(self) -> None:
        """Remove all of them from the disk."""
        self._store.delete_all(self.run_id)

    def current_weights(self, caller: Caller) -> ModelWeights:
        """What to score and sample under now.

        Every caller gets the same arrays until the weights change: requests under the same arrays
        share calls of the model, and there is one copy in memory.
        """
        with self._weights_lock:
            if self._current_weights is not None:
                return self._current_weights
        return caller.run(self._queue, self._make_current_weights)

    def _make_current_weights(self) -> ModelWeights:
        # Callers may come here side by side. The device runs one piece at a time, so the first one
        # makes the weights and the others find them.
        with self._weights_lock:
            trainable, kept = self._state.trainable, self._current_weights
        if kept is not None:
            return kept
        weights = self._trainer.weights(trainable, self.lora)
        with self._weights_lock:
            if self._state.trainable is trainable:
                self._current_weights = weights
        return weights

    def _swap(self, state: RunState) -> None:
        """Make a new state the present one."""
        with self._weights_lock:
            if state.trainable is not self._state.trainable:
                self._current_weights = None
            self._state = state

    def checkpoint_weights(self, name: str, caller: Caller) -> ModelWeights:
        """What to score and sample under for a checkpoint."""
        # By the file's name: a checkpoint that is overwritten keeps its name and gets another file.
        key = self._store.manifest(self.run_id, name)["state_file"]
        with self._weights_lock:
            if key in self._saved_weights:
                self._saved_weights.move_to_end(key)
                return self._saved_weights[key]
        # The checkpoint may be overwritten between the two reads: this manifest belongs to `state`.
        state, manifest = self._restore(name, partial(caller.run, self._queue))
        weights = caller.run(self._queue, lambda: self._trainer.weights(state.trainable, self.lora))
        with self._weights_lock:
            # Callers may have restored it side by side: all of them use the arrays of the first.
            weights = self._saved_weights.setdefault(manifest["state_file"], weights)
            while len(self._saved_weights) > KEPT_CHECKPOINT_WEIGHTS:
                self._saved_weights.popitem(last=False)
        return weights

    def checkpoint_trainable(self, name: str, caller: Caller) -> Trainable:
        """The trained parameters of a checkpoint."""
        return self._restore(name, partial(caller.run, self._queue))[0].trainable

    def _lora_values(self) -> dict[str, Any] | None:
        """The adapter's settings as a manifest has them; None: the run trains all weights."""
        if self.lora is None:
            return None
        return {**asdict(self.lora), "target_modules": list(self.lora.target_modules)}

    def _restore(
        self, name: str, run_piece: Callable[[Callable[[], dict[str, Any]]], dict[str, Any]]
    ) -> tuple[RunState, Mapping[str, Any]]:
        manifest, arrays = self._store.load(self.run_id, name)
        saved, mine = manifest["lora"], self._lora_values()
        if saved != mine:
            raise WrongStateError(
                f"checkpoint {name!r} was saved by a run of another configuration: "
                f"{saved or 'all weights'}, this run has {mine or 'all weights'}"
            )
        if manifest["base_weights_version"] != self._base_version:
            raise WrongStateError(
                f"checkpoint {name!r} was trained on base weights "
                f"{manifest['base_weights_version']}, this service has {self._base_version}"
            )
        like, has_gradient = self._state, manifest["accumulated_rows"] > 0
        restored = run_piece(lambda: from_named_arrays(like, arrays, has_gradient=has_gradient))
        state = RunState(
            **restored,
            **{counter: manifest[counter] for counter in COUNTERS},
            weights_version=manifest["weights_version"],
        )
        return state, manifest

    def _finish(self, pieces: Iterator[Any], remaining: Remaining) -> Any:
        """Run the pieces of a mutation on the device. They go on when the caller leaves."""
        with self._queue.stream(pieces, timeout_seconds=remaining()) as stream:
            try:
                return next(stream)
            except CancelledError:  # the queue cancels what is left at the end of a drain
                raise UnavailableError("the service is shutting down") from None


def _timed(pieces: Iterator[Any], finish: Callable[[Iterator[Any]], Any]) -> tuple[Any, Seconds]:
    """Finish a trainer's pieces. Returns their result and where the time went."""
    queued = time.monotonic()
    started: list[float] = []

    def noting_the_start() -> Iterator[Any]:
        started.append(time.monotonic())
        yield from pieces

    result = finish(noting_the_start())
    finished = time.monotonic()
    return result, {"queue": started[0] - queued, "compute": finished - started[0]}
