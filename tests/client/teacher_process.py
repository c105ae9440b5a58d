"""The fake teacher in a process of its own, on the server that the real services run on."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from distill.rpc.server import RunningServer, Service
from distill.v1 import teacher_service_pb2_grpc
from tests.client.fake_teacher import FakeTeacher

LAST_SIGNALS = (signal.SIGCONT, signal.SIGKILL)


@contextmanager
def teacher_process(
    *, port: int = 0, silent_seconds: float = 0.0
) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A teacher that answers its first call after some silence; yields its address and process."""
    program = [sys.executable, "-m", __name__, str(port), str(silent_seconds)]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            for number in LAST_SIGNALS:
                process.send_signal(number)


def main() -> None:
    """Serve until the process is killed."""
    teacher = FakeTeacher()
    teacher.silent_seconds = float(sys.argv[2])
    server = RunningServer(host="127.0.0.1", port=int(sys.argv[1]))
    server.start(
        Service(
            full_name="distill.v1.TeacherService",
            description="a fake",
            register=lambda to: teacher_service_pb2_grpc.add_TeacherServiceServicer_to_server(
                teacher, to
            ),
            close=lambda _seconds: None,
        )
    )
    print(server.address, flush=True)
    signal.pause()


if __name__ == "__main__":
    main()
