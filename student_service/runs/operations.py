"""What a mutation does to the state of a run: functions from a state to a proposed one.

Nothing here changes a run. The sequencer commits what an operation returns, together with the
answer that the edge makes of it. Files of checkpoints are the one effect outside of the state.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import CancelledError
from dataclasses import asdict, replace
from typing import Any

from distill.engine.device_queue import DeviceQueue
from distill.errors import NoGradientError, UnavailableError, WrongStateError
from distill.network.adapters import LoraSpec
from student_service.runs.caller import Remaining
from student_service.runs.checkpoints import CheckpointStore
from student_service.runs.kept_answers import Ticket
from student_service.runs.manifests import CheckpointInfo
from student_service.runs.run_state import (
    COUNTERS,
    RunState,
    from_named_arrays,
    named_arrays,
)
from student_service.training.batch import BatchOutcome, TrainingBatch
from student_service.training.optimizer import AdamWSettings
from student_service.training.trainer import Trainer

Seconds = dict[str, float]
"""Where the time of a batch went, by names of `BatchSeconds` in the contract: "queue" is the time
until the device began, "compute" the time from the first piece to the last. The device may serve
other streams between the pieces; that time is part of "compute"."""

RunPiece = Callable[[Callable[[], Any]], Any]
"""Runs a piece of compute on the device and returns its result."""


class Operations:
    """The mutations of one run."""

    def __init__(
        self,
        run_id: str,
        unique_id: str,
        lora: LoraSpec | None,
        *,
        trainer: Trainer,
        queue: DeviceQueue,
        store: CheckpointStore,
        base_version: str,
    ) -> None:
        """Args:
        run_id: name of the run.
        unique_id: differs from that of every other run, also of one of the same name.
        lora: the adapter that it trains; None: all weights.
        trainer: computes.
        queue: the device.
        store: the checkpoints.
        base_version: of the base model's weights.
        """
        self._run_id = run_id
        self._unique_id = unique_id
        self._lora = lora
        self._trainer = trainer
        self._queue = queue
        self._store = store
        self._base_version = base_version

    def initial_state(self, remaining: Remaining) -> RunState:
        """The state of a new run.

        Raises:
            DeadlineError: the device was not free in time.
        """

        def make() -> RunState:
            trainable = self._trainer.initial_trainable(self._lora)
            return RunState(
                trainable=trainable,
                optimizer_state=self._trainer.initial_optimizer_state(trainable),
                weights_version=self._weights_version(0),
            )

        return self._queue.run(make, timeout_seconds=remaining())

    def forward_backward(
        self, state: RunState, batch: TrainingBatch, remaining: Remaining
    ) -> tuple[RunState, BatchOutcome, Seconds]:
        """Add the gradient of a batch to the sum.

        Raises:
            DeadlineError: the deadline passed before it was computed.
            NonFiniteGradientError: a gradient or a loss is NaN or infinite.
            UnavailableError: the service is shutting down.
        """
        outcome, seconds = timed(
            self._trainer.forward_backward(state.trainable, self._lora, batch),
            lambda pieces: self._finish(pieces, remaining),
        )
        gradient_sum = self._queue.run(
            lambda: self._trainer.accumulate(state.gradient_sum, outcome.gradients),
            timeout_seconds=remaining(),
        )
        summed = replace(
            state,
            gradient_sum=gradient_sum,
            accumulated_batches=state.accumulated_batches + 1,
            accumulated_rows=state.accumulated_rows + outcome.batch.row_count,
            accumulated_examples=state.accumulated_examples + len(batch.examples),
        )
        return summed, outcome.batch, seconds

    def optim_step(
        self,
        state: RunState,
        settings: AdamWSettings,
        normalization: str,
        sequence_number: int,
        remaining: Remaining,
    ) -> tuple[RunState, dict[str, Any]]:
        """Apply the gradient sum and clear it.

        Args:
            state: before the step.
            settings: of this step.
            normalization: "none", "rows" or "examples".
            sequence_number: of the mutation; names the new weights.
            remaining: time within which it may start.

        Returns:
            The state, and the fields of `OptimStepResponse` in the contract.

        Raises:
            DeadlineError: the device was not free in time.
            NoGradientError: the sum has no weighted row.
            NonFiniteGradientError: the step would not be finite.
        """
        gradient_sum = state.gradient_sum
        if gradient_sum is None:
            raise NoGradientError(
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
            weights_version=self._weights_version(sequence_number),
        )
        return stepped, {
            **{name: float(norm) for name, norm in outcome.norms.items()},
            "normalizer": normalizer,
            "step": stepped.step,
            "weights_version": stepped.weights_version,
        }

    @staticmethod
    def discard_gradient(state: RunState) -> RunState:
        """Drop the gradient sum and what was counted in it."""
        return RunState(
            trainable=state.trainable,
            optimizer_state=state.optimizer_state,
            step=state.step,
            weights_version=state.weights_version,
        )

    def save_checkpoint(
        self, state: RunState, name: str, overwrite: bool, ticket: Ticket, remaining: Remaining
    ) -> CheckpointInfo:
        """Save the whole state, which stays as it is.

        Args:
            state: what is saved.
            name: of the checkpoint.
            overwrite: replace one of the same name.
            ticket: of the mutation. One that is repeated because it failed after the checkpoint
                was in place finds its own.
            remaining: time within which it may start.

        What `CheckpointStore.save` raises passes through.
        """
        info = {
            "name": name,
            "writer_epoch": ticket.writer_epoch,
            "sequence_number": ticket.sequence_number,
            "weights_version": state.weights_version,
            "base_weights_version": self._base_version,
            "lora": self._lora_values(),
            **{counter: getattr(state, counter) for counter in COUNTERS},
        }
        arrays = self._queue.run(lambda: named_arrays(state), timeout_seconds=remaining())
        return self._store.save(self._run_id, info, arrays, overwrite=overwrite)

    def load_checkpoint(self, state: RunState, name: str, remaining: Remaining) -> RunState:
        """A saved state in place of this one.

        Raises:
            DeadlineError: the device was not free in time.

        What `restore` raises passes through.
        """

        def run_piece(function: Callable[[], Any]) -> Any:
            # Asked for after the file was read, which may take most of the time.
            return self._queue.run(function, timeout_seconds=remaining())

        return self.restore(state, name, run_piece)[0]

    def restore(
        self, like: RunState, name: str, run_piece: RunPiece
    ) -> tuple[RunState, Mapping[str, Any]]:
        """The state and the manifest of a checkpoint.

        Args:
            like: a state of this run.
            name: of the checkpoint.
            run_piece: puts the arrays on the device.

        Raises:
            NotFoundError: there is no such checkpoint.
            CorruptDataError: it is damaged.
            WrongStateError: it was saved by a run of another configuration, or on another base.
        """
        manifest, arrays = self._store.load(self._run_id, name)
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
        has_gradient = manifest["accumulated_rows"] > 0
        restored = run_piece(lambda: from_named_arrays(like, arrays, has_gradient=has_gradient))
        state = RunState(
            **restored,
            **{counter: manifest[counter] for counter in COUNTERS},
            weights_version=manifest["weights_version"],
        )
        return state, manifest

    def _weights_version(self, sequence_number: int) -> str:
        # The sequence number alone would come again when the run is deleted and made anew.
        return f"{self._run_id}:{self._unique_id}:{sequence_number}"

    def _lora_values(self) -> dict[str, Any] | None:
        """The adapter's settings as a manifest has them; None: the run trains all weights."""
        if self._lora is None:
            return None
        return {**asdict(self._lora), "target_modules": list(self._lora.target_modules)}

    def _finish(self, pieces: Iterator[Any], remaining: Remaining) -> Any:
        """Run the pieces of a mutation on the device. They go on when the caller leaves."""
        with self._queue.stream(pieces, timeout_seconds=remaining()) as stream:
            try:
                return next(stream)
            except CancelledError:  # the queue cancels what is left at the end of a drain
                raise UnavailableError("the service is shutting down") from None


def timed(pieces: Iterator[Any], finish: Callable[[Iterator[Any]], Any]) -> tuple[Any, Seconds]:
    """Finish a trainer's pieces. Returns their result and where the time went."""
    queued = time.monotonic()
    started: list[float] = []

    def noting_the_start() -> Iterator[Any]:
        started.append(time.monotonic())
        yield from pieces

    result = finish(noting_the_start())
    finished = time.monotonic()
    return result, {"queue": started[0] - queued, "compute": finished - started[0]}
