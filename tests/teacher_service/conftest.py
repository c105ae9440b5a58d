"""A teacher in this process, on a real connection."""

from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from distill.engine.device_queue import DeviceQueue
from distill.engine.process import Engine
from distill.engine.sampler import Sampler
from distill.engine.scorer import Scorer
from distill.engine.scoring_scheduler import ScoringScheduler
from distill.limits import RequestLimits
from distill.models.loading import LoadedModel, load_model
from distill.rpc.scoring_service import ScoringService
from distill.rpc.server import RunningServer, Service
from distill.v1.teacher_service_pb2_grpc import (
    TeacherServiceStub,
    add_TeacherServiceServicer_to_server,
)
from teacher_service.servicer import TeacherServicer


@pytest.fixture(scope="session")
def model(tiny_model_directory: Path) -> LoadedModel:
    return load_model(str(tiny_model_directory))


@pytest.fixture(scope="session")
def queue() -> Iterator[DeviceQueue]:
    queue = DeviceQueue()
    yield queue
    queue.close(grace_seconds=20)


@pytest.fixture(scope="session")
def limits() -> RequestLimits:
    return RequestLimits(max_sequence_tokens=600, max_top_k=512, max_sequences=16)


@pytest.fixture(scope="session")
def scorer(model: LoadedModel) -> Scorer:
    return Scorer(model)


@pytest.fixture(scope="session")
def scoring(queue: DeviceQueue, scorer: Scorer) -> ScoringScheduler:
    return ScoringScheduler(queue, scorer, token_budget=1024)


@pytest.fixture(scope="session")
def servicer(
    model: LoadedModel, limits: RequestLimits, queue: DeviceQueue, scoring: ScoringScheduler
) -> TeacherServicer:
    engine = Engine(model=model, queue=queue, scoring=scoring, sampler=Sampler(model))
    return TeacherServicer(ScoringService(engine, limits))


@pytest.fixture(scope="session")
def stub(servicer: TeacherServicer) -> Iterator[TeacherServiceStub]:
    server = RunningServer(host="127.0.0.1", port=0)
    server.start(
        Service(
            full_name="distill.v1.TeacherService",
            description="the tiny model",
            register=lambda server: add_TeacherServiceServicer_to_server(servicer, server),
            close=lambda _grace_seconds: None,
        )
    )
    with grpc.insecure_channel(server.address) as channel:
        yield TeacherServiceStub(channel)
    server.stop(0)
