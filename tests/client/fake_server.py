"""Serves a fake service on loopback, with health and errors as the real ones have them."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from distill.rpc.request_guard import RequestGuard
from distill.v1 import student_service_pb2_grpc, teacher_service_pb2_grpc
from tests.client.fake_student import FakeStudent
from tests.client.fake_teacher import FakeTeacher


@contextmanager
def serving(servicer: FakeTeacher | FakeStudent) -> Iterator[str]:
    """Serve it on a free loopback port; yields the address."""
    server = grpc.server(ThreadPoolExecutor(32), interceptors=[RequestGuard(32)])
    port = server.add_insecure_port("127.0.0.1:0")
    if isinstance(servicer, FakeTeacher):
        teacher_service_pb2_grpc.add_TeacherServiceServicer_to_server(servicer, server)
    else:
        student_service_pb2_grpc.add_StudentServiceServicer_to_server(servicer, server)
    checks = health.HealthServicer()
    kind = "Teacher" if isinstance(servicer, FakeTeacher) else "Student"
    checks.set(f"distill.v1.{kind}Service", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
