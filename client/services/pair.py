"""A teacher and a student to work with: started here, or running already."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from client.connection import wait_until_serving
from client.errors import ClientError, ServiceError
from client.recipes.batches import Targets, TeacherLink
from client.results import check_pair
from client.retry import RetryPolicy
from client.services.local import (
    STUDENT_MODULE,
    TEACHER_MODULE,
    LocalService,
    log_tail,
)
from client.student import StudentClient
from client.teacher import TeacherClient
from distill.tokenizer import TextTokenizer


class PairError(ClientError):
    """The two services cannot work together; the message is for the person who started them."""


@dataclass(frozen=True, kw_only=True)
class RunningPair:
    """Services that are running already."""

    teacher: str
    """HOST:PORT of the teacher, as this program reaches it."""

    student: str
    """HOST:PORT of the student."""

    wait_seconds: float = 300.0
    """Time for them to become ready."""


@dataclass(frozen=True, kw_only=True)
class LocalPair:
    """Services to start, on free loopback ports, and to stop at the end."""

    model: str
    """Reference of the teacher's model."""

    student_model: str | None = None
    """Reference of the student's model. None: the teacher's."""

    directory: Path
    """Where teacher.log, student.log and runs/ go."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both clients and what belongs to them."""

    teacher: TeacherClient
    """Client of the teacher."""

    student: StudentClient
    """Client of the student."""

    link: TeacherLink
    """The teacher as recipes use it."""

    tokenizer: TextTokenizer
    """The tokenizer of both."""


@contextmanager
def open_pair(
    source: LocalPair | RunningPair,
    *,
    teacher_name: str,
    targets: Targets,
    say: Callable[[str], None],
) -> Iterator[Pair]:
    """Connect to both services, after starting them where asked.

    Started services are stopped in every case. When a call fails inside, the error says how their
    logs end.

    Args:
        source: which services.
        teacher_name: the student's name for the teacher.
        targets: how the distributions travel.
        say: called with lines for a person.

    Raises:
        ServiceStartError: a service did not start, or ended.
        ServiceError: running services did not become ready.
        MismatchedPairError: they do not share a vocabulary.
        PairError: the student cannot pull from the teacher, or a call failed inside.
    """
    with ExitStack() as stack:
        services: list[LocalService] = []
        if isinstance(source, LocalPair):
            student_model = source.student_model
            say(
                f"starting the teacher and the student with {source.model}"
                if student_model is None
                else f"starting the teacher with {source.model}, the student with {student_model}"
            )
            addresses = _start(source, teacher_name, stack, services)
        else:
            addresses = (source.teacher, source.student)
            _wait(source)

        def check_all() -> None:
            # Nobody restarts what was started here. The student's calls need the teacher too.
            for service in services:
                service.check()

        retry = RetryPolicy(before_retry=check_all)
        teacher = stack.enter_context(TeacherClient(addresses[0], timeout_seconds=600, retry=retry))
        student = stack.enter_context(StudentClient(addresses[1], timeout_seconds=600, retry=retry))
        try:
            _check(teacher, student, teacher_name, targets, say)
            link = TeacherLink(client=teacher, name=teacher_name, targets=targets)
            yield Pair(teacher=teacher, student=student, link=link, tokenizer=teacher.tokenizer())
        except ServiceError as error:
            check_all()  # its end explains more than the failed call
            ends = [f"\nthe end of {one.log_path}:\n{log_tail(one.log_path)}" for one in services]
            raise PairError(f"{error}{''.join(ends)}") from None


def _start(
    source: LocalPair, teacher_name: str, stack: ExitStack, services: list[LocalService]
) -> tuple[str, str]:
    teacher = LocalService(
        TEACHER_MODULE, ["--model", source.model], log_path=source.directory / "teacher.log"
    )
    services.append(stack.enter_context(teacher))
    student = LocalService(
        STUDENT_MODULE,
        [
            *("--model", source.student_model or source.model),
            *("--teacher", f"{teacher_name}={teacher.address}"),
            *("--runs-dir", str(source.directory / "runs")),
        ],
        log_path=source.directory / "student.log",
    )
    services.append(stack.enter_context(student))
    return teacher.address, student.address


def _wait(source: RunningPair) -> None:
    for address, service in (
        (source.teacher, "distill.v1.TeacherService"),
        (source.student, "distill.v1.StudentService"),
    ):
        wait_until_serving(address, service=service, timeout_seconds=source.wait_seconds)


def _check(
    teacher: TeacherClient,
    student: StudentClient,
    teacher_name: str,
    targets: Targets,
    say: Callable[[str], None],
) -> None:
    teacher_info, student_info = teacher.model_info(), student.model_info()
    check_pair(teacher_info, student_info)
    teacher_names = student.teacher_names()
    if targets is Targets.PULL and teacher_name not in teacher_names:
        known = ", ".join(teacher_names) or "none"
        raise PairError(
            f"the student knows no teacher named {teacher_name!r} (it knows: {known}); start it "
            f"with --teacher {teacher_name}=HOST:PORT, or use --targets inline"
        )
    sizes = [
        f"{one.parameter_count / 1e6:.1f} M parameters" for one in (teacher_info, student_info)
    ]
    say(
        f"teacher {teacher_info.name}, student {student_info.name}: {sizes[1]}, "
        f"{student_info.compute_dtype}"
        if teacher_info.parameter_count == student_info.parameter_count
        else f"teacher {teacher_info.name}: {sizes[0]}, student {student_info.name}: {sizes[1]}, "
        f"{student_info.compute_dtype}"
    )
