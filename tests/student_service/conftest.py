"""A student in this process, on a real connection, whose device a test can hold."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from client.student import StudentClient
from distill.engine.device_queue import DeviceQueue
from distill.engine.process import Engine
from distill.engine.sampler import Sampler
from distill.engine.scorer import Scorer
from distill.engine.scoring_scheduler import ScoringScheduler
from distill.limits import RequestLimits
from distill.models.loading import LoadedModel, load_model
from distill.rpc.scoring_service import ScoringService
from distill.rpc.server import RunningServer, Service
from distill.v1.student_service_pb2_grpc import add_StudentServiceServicer_to_server
from student_service.edge.teacher_pool import TeacherPool
from student_service.runs.checkpoints import CheckpointStore
from student_service.runs.registry import RunRegistry
from student_service.runs.waiting_room import WaitingRoom
from student_service.servicer import StudentServicer
from student_service.training.trainer import Trainer


@dataclass(frozen=True, kw_only=True)
class StudentInProcess:
    """The parts of a student that tests reach into."""

    address: str
    model: LoadedModel
    queue: DeviceQueue
    trainer: Trainer
    runs: RunRegistry
    runs_dir: Path
    server: RunningServer

    @contextmanager
    def device_held(self) -> Iterator[None]:
        """Inside, everything that needs the device waits."""
        started, release = threading.Event(), threading.Event()

        def hold() -> None:
            started.set()
            release.wait(60)

        held = self.queue.submit(hold)
        assert started.wait(20)
        try:
            yield
        finally:
            release.set()
            held.result()


@pytest.fixture(scope="session")
def in_process(tiny_model_directory: Path, tmp_path_factory) -> Iterator[StudentInProcess]:
    model = load_model(str(tiny_model_directory))
    limits = RequestLimits(max_sequence_tokens=64, max_top_k=64)
    queue = DeviceQueue()
    trainer = Trainer(model, token_budget=256, remat=False)
    teachers = TeacherPool({}, tokenizer_fingerprint=model.tokenizer.fingerprint)
    runs_dir = tmp_path_factory.mktemp("runs")
    runs = RunRegistry(
        model,
        trainer=trainer,
        queue=queue,
        store=CheckpointStore(runs_dir),
        waiting_room=WaitingRoom(places=8),
        first_epoch=1,
        max_runs=64,
    )
    engine = Engine(
        model=model,
        queue=queue,
        scoring=ScoringScheduler(queue, Scorer(model), token_budget=1024),
        sampler=Sampler(model),
    )
    servicer = StudentServicer(
        ScoringService(engine, limits),
        runs=runs,
        teachers=teachers,
    )
    server = RunningServer(host="127.0.0.1", port=0, max_concurrent_requests=16)
    server.start(
        Service(
            full_name="distill.v1.StudentService",
            description="the tiny model",
            register=lambda server: add_StudentServiceServicer_to_server(servicer, server),
            close=lambda grace_seconds: queue.close(grace_seconds=grace_seconds),
        )
    )
    yield StudentInProcess(
        address=server.address,
        model=model,
        queue=queue,
        trainer=trainer,
        runs=runs,
        runs_dir=runs_dir,
        server=server,
    )
    server.stop(0)
    teachers.close()


@pytest.fixture
def student(in_process: StudentInProcess) -> Iterator[StudentClient]:
    with StudentClient(in_process.address, timeout_seconds=60) as client:
        yield client
