"""All runs of the service, by name."""

import threading
import uuid
from collections import OrderedDict

from distill.engine.device_queue import DeviceQueue
from distill.errors import AlreadyExistsError, DeadlineError, LimitExceededError, NotFoundError
from distill.models.loading import LoadedModel
from distill.network.adapters import LoraSpec
from student_service.runs.caller import Remaining
from student_service.runs.checkpoints import CheckpointStore
from student_service.runs.kept_answers import Ticket
from student_service.runs.operations import Operations
from student_service.runs.run import Run
from student_service.runs.sequencer import Sequencer
from student_service.runs.waiting_room import WaitingRoom
from student_service.training.trainer import Trainer

KEPT_DELETIONS = 1024
"""Deletions that can be repeated. The writers of older deleted runs stay fenced all the same."""


class RunRegistry:
    """All runs of the service."""

    def __init__(
        self,
        model: LoadedModel,
        *,
        trainer: Trainer,
        queue: DeviceQueue,
        store: CheckpointStore,
        waiting_room: WaitingRoom,
        first_epoch: int,
        max_runs: int,
        kept_deletions: int = KEPT_DELETIONS,
    ) -> None:
        """Args:
        model: the base of all runs.
        trainer: computes for them.
        queue: the device.
        store: their checkpoints.
        waiting_room: of the mutations of all runs that wait for their turn; smaller than the
            service, so that those they wait for find room.
        first_epoch: of a new run's first writer; above every epoch of earlier processes.
        max_runs: most runs at a time; each holds its parameters three times, and its gradient.
        kept_deletions: names of deleted runs whose deletion can be repeated.
        """
        self._model = model
        self._trainer = trainer
        self._queue = queue
        self._store = store
        self._waiting_room = waiting_room
        self._lock = threading.Lock()
        self._creating = threading.Lock()
        self._runs: dict[str, Run] = {}
        self._deletions: OrderedDict[str, Ticket] = OrderedDict()
        self._kept_deletions = kept_deletions
        self._first_epoch = first_epoch
        self._max_runs = max_runs

    def create(
        self, run_id: str, lora: LoraSpec | None, remaining: Remaining, *, attach_id: str = ""
    ) -> tuple[Run, bool]:
        """The run of that name, and whether this call made it.

        Args:
            run_id: its name.
            lora: the adapter that it trains; None: all weights.
            remaining: time within which it may be made.
            attach_id: the caller's name for its attempt; see `Sequencer`.

        Raises:
            AlreadyExistsError: it exists with another configuration.
            LimitExceededError: it would be one too many.
            DeadlineError: the device was not free in time.
        """
        run = self._find(run_id)
        if run is None:
            run, is_new = self._create(run_id, lora, remaining, attach_id)
            if is_new:
                return run, True
        _check_configuration(run, lora)
        return run, False

    def find(self, run_id: str, lora: LoraSpec | None) -> Run:
        """The run of that name and configuration; none is made.

        Raises:
            NotFoundError: there is none of that name.
            AlreadyExistsError: it exists with another configuration.
        """
        run = self.get(run_id)
        _check_configuration(run, lora)
        return run

    def _find(self, run_id: str) -> Run | None:
        with self._lock:
            return self._runs.get(run_id)

    def _create(
        self, run_id: str, lora: LoraSpec | None, remaining: Remaining, attach_id: str
    ) -> tuple[Run, bool]:
        # Not `_lock`: a new run waits for the device, and requests of other runs must not wait with
        # it.
        timeout = remaining()
        if not self._creating.acquire(timeout=-1 if timeout is None else max(0.0, timeout)):
            raise DeadlineError("the deadline passed while another run was created")
        try:
            run = self._find(run_id)
            if run is not None:
                return run, False
            with self._lock:
                if len(self._runs) >= self._max_runs:
                    raise LimitExceededError(
                        "runs of the service", self._max_runs, len(self._runs) + 1
                    )
            run = self._new_run(run_id, lora, remaining, attach_id)
            with self._lock:
                self._runs[run_id] = run
            return run, True
        finally:
            self._creating.release()

    def _new_run(
        self, run_id: str, lora: LoraSpec | None, remaining: Remaining, attach_id: str
    ) -> Run:
        operations = Operations(
            run_id,
            uuid.uuid4().hex[:12],
            lora,
            trainer=self._trainer,
            queue=self._queue,
            store=self._store,
            base_version=self._model.weights_version,
        )
        # A higher epoch than the deleted run of that name had, so that its writer is refused.
        with self._lock:
            deletion = self._deletions.get(run_id)
            epoch = self._first_epoch if deletion is None else deletion.writer_epoch + 1
        sequencer = Sequencer(
            operations.initial_state(remaining),
            epoch=epoch,
            attach_id=attach_id,
            waiting_room=self._waiting_room,
            measure=lambda answer: answer.ByteSize(),
        )
        return Run(
            run_id,
            lora,
            operations=operations,
            sequencer=sequencer,
            trainer=self._trainer,
            queue=self._queue,
            store=self._store,
        )

    def get(self, run_id: str, field: str = "run_id") -> Run:
        """Raises NotFoundError when there is none of that name."""
        run = self._find(run_id)
        if run is None:
            raise NotFoundError(f"{field}: there is no run {run_id!r}")
        return run

    def list(self) -> list[Run]:
        """All runs, sorted by name."""
        with self._lock:
            return [self._runs[name] for name in sorted(self._runs)]

    def remove(self, run: Run, ticket: Ticket) -> None:
        """Forget a run. Later mutations of it are refused.

        Args:
            run: to be forgotten.
            ticket: of the mutation that deletes it; the registry remembers nothing else of the run.
        """
        with self._lock:
            self._runs.pop(run.run_id, None)
            self._deletions.pop(run.run_id, None)
            self._deletions[run.run_id] = ticket
            while len(self._deletions) > self._kept_deletions:
                forgotten = self._deletions.popitem(last=False)[1]
                # A new run of that name is no longer recognised, so all new runs start above.
                self._first_epoch = max(self._first_epoch, forgotten.writer_epoch + 1)
        run.sequencer.close()

    def deleted_by(self, run_id: str) -> Ticket | None:
        """The mutation that deleted the last run of that name; None where it is not remembered."""
        with self._lock:
            return self._deletions.get(run_id)


def _check_configuration(run: Run, lora: LoraSpec | None) -> None:
    if run.lora != lora:
        raise AlreadyExistsError(
            f"run_id: run {run.run_id!r} exists with another configuration: it trains "
            f"{_described(run.lora)}, asked for {_described(lora)}"
        )


def _described(lora: LoraSpec | None) -> str:
    if lora is None:
        return "all weights"
    return (
        f"a LoRA of rank {lora.rank}, alpha {lora.alpha:g}, seed {lora.seed} on "
        f"{', '.join(lora.target_modules)}"
    )
