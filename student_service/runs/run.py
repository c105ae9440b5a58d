"""A run: the owner of one training state, and what is read of it."""

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from distill.engine.device_queue import DeviceQueue
from distill.engine.weights import ModelWeights
from distill.network.adapters import LoraSpec
from student_service.runs.caller import Caller
from student_service.runs.checkpoints import CheckpointStore
from student_service.runs.kept_answers import Ticket
from student_service.runs.manifests import CheckpointInfo
from student_service.runs.operations import Operations, Seconds, timed
from student_service.runs.run_state import RunState
from student_service.runs.sequencer import AnswerT, Operation, Sequencer
from student_service.training.batch import BatchOutcome, TrainingBatch
from student_service.training.optimizer import Trainable
from student_service.training.trainer import Trainer, parameter_count

KEPT_CHECKPOINT_WEIGHTS = 2
"""Checkpoints whose weights stay in memory for sampling and scoring."""


class Run:
    """One training state and the sequence of what changes it.

    A state is replaced and never edited, so whoever has one may go on reading it.
    """

    def __init__(
        self,
        run_id: str,
        lora: LoraSpec | None,
        *,
        operations: Operations,
        sequencer: Sequencer[RunState],
        trainer: Trainer,
        queue: DeviceQueue,
        store: CheckpointStore,
    ) -> None:
        """Args:
        run_id: name.
        lora: the adapter that it trains; None: all weights.
        operations: its mutations.
        sequencer: its state.
        trainer: computes.
        queue: the device.
        store: the checkpoints.
        """
        self.run_id = run_id
        self.lora = lora
        self.operations = operations
        self.sequencer = sequencer
        self.trainable_parameter_count = parameter_count(self.state.trainable)
        self._trainer = trainer
        self._queue = queue
        self._store = store
        self._current_weights: tuple[Trainable, ModelWeights] | None = None
        self._saved_weights: OrderedDict[str, ModelWeights] = OrderedDict()
        self._weights_lock = threading.Lock()

    @property
    def state(self) -> RunState:
        """The present state. It never changes: later mutations make other states."""
        return self.sequencer.committed.state

    def apply(
        self,
        ticket: Ticket,
        operation: Operation[RunState, AnswerT],
        *,
        timeout_seconds: float | None,
        is_active: Callable[[], bool],
        held_bytes: int,
    ) -> tuple[AnswerT, bool]:
        """Apply a mutation exactly once; see `Sequencer.execute`."""
        answer = self.sequencer.execute(
            ticket,
            operation,
            timeout_seconds=timeout_seconds,
            is_active=is_active,
            held_bytes=held_bytes,
        )
        self._forget_outdated_weights()
        return answer

    def forward(
        self, batch: TrainingBatch, checkpoint: str | None, base: bool, caller: Caller
    ) -> tuple[BatchOutcome, Seconds]:
        """Evaluate a batch under the base, a saved, or the current weights; nothing changes."""
        trainable = self.state.trainable
        if base:
            # A fresh adapter adds nothing to the base, and fresh full weights equal the base.
            trainable = caller.run(self._queue, lambda: self._trainer.initial_trainable(self.lora))
        elif checkpoint is not None:
            trainable = self.checkpoint_trainable(checkpoint, caller)
        return timed(
            self._trainer.forward(trainable, self.lora, batch),
            lambda pieces: caller.finish(self._queue, pieces),
        )

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
        kept = self._kept_weights(self.state.trainable)
        return kept or caller.run(self._queue, self._make_current_weights)

    def _make_current_weights(self) -> ModelWeights:
        # Callers may come here side by side. The device runs one piece at a time, so the first one
        # makes the weights and the others find them.
        trainable = self.state.trainable
        kept = self._kept_weights(trainable)
        if kept is not None:
            return kept
        weights = self._trainer.weights(trainable, self.lora)
        with self._weights_lock:
            self._current_weights = (trainable, weights)
        self._forget_outdated_weights()
        return weights

    def _kept_weights(self, trainable: Trainable) -> ModelWeights | None:
        with self._weights_lock:
            if self._current_weights is None or self._current_weights[0] is not trainable:
                return None
            return self._current_weights[1]

    def _forget_outdated_weights(self) -> None:
        """Free the weights of a state that is no longer the present one."""
        trainable = self.state.trainable
        with self._weights_lock:
            if self._current_weights is not None and self._current_weights[0] is not trainable:
                self._current_weights = None

    def checkpoint_weights(self, name: str, caller: Caller) -> ModelWeights:
        """What to score and sample under for a checkpoint."""
        # By the file's name: a checkpoint that is overwritten keeps its name and gets another file.
        key = self._store.manifest(self.run_id, name)["state_file"]
        with self._weights_lock:
            if key in self._saved_weights:
                self._saved_weights.move_to_end(key)
                return self._saved_weights[key]
        # The checkpoint may be overwritten between the two reads: this manifest belongs to `state`.
        state, manifest = self._restore(name, caller)
        weights = caller.run(self._queue, lambda: self._trainer.weights(state.trainable, self.lora))
        with self._weights_lock:
            # Callers may have restored it side by side: all of them use the arrays of the first.
            weights = self._saved_weights.setdefault(manifest["state_file"], weights)
            while len(self._saved_weights) > KEPT_CHECKPOINT_WEIGHTS:
                self._saved_weights.popitem(last=False)
        return weights

    def checkpoint_trainable(self, name: str, caller: Caller) -> Trainable:
        """The trained parameters of a checkpoint."""
        return self._restore(name, caller)[0].trainable

    def _restore(self, name: str, caller: Caller) -> tuple[RunState, Mapping[str, Any]]:
        return self.operations.restore(self.state, name, partial(caller.run, self._queue))
