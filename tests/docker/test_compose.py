"""The shipped images and compose file on a real container engine, from build to removal.

One deployment serves all tests of this module, in the order of the file.
"""

import json
import time
from collections.abc import Iterator

import pytest

from distill.rpc.health_probe import health_problem
from tests.docker.commands import CommandError
from tests.docker.compose import SERVICES, Deployment, deployment
from tests.docker.engine import EngineError, container_engine

pytestmark = [pytest.mark.docker, pytest.mark.timeout(2400)]

SERVICE_UID = 10001

SERVICE_PROCESS = """
import os, pathlib
for process in pathlib.Path("/proc").glob("[0-9]*"):
    arguments = (process / "cmdline").read_bytes().split(b"\\0")
    if len(arguments) > 1 and arguments[1].endswith((b"distill-teacher", b"distill-student")):
        pid = int(process.name)
        break
else:
    raise SystemExit("the service's process is not found")
"""
"""Finds the `pid` of the service inside its container, where process 1 is a small init."""

PRIVILEGES = f"""{SERVICE_PROCESS}
import json
lines = pathlib.Path("/proc", str(pid), "status").read_text().splitlines()
status = dict(line.split(":\\t", 1) for line in lines if ":\\t" in line)

def can_write(directory):
    path = pathlib.Path(directory, "written-by-test")
    try:
        path.write_text("")
    except OSError:
        return False
    path.unlink()
    return True

directories = ("/", "/opt/service", "/etc", "/models", "/runs", "/tmp")
print(json.dumps({{
    "uids": sorted(set(status["Uid"].split())),
    "capabilities": [status[name] for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb")],
    "no_new_privileges": status["NoNewPrivs"],
    "writable": [each for each in directories if can_write(each)],
}}))
"""
"""Prints what a service may do. Run with `exec`, under the same limits as the service."""

STORED_FILES = """
import json, pathlib
print(json.dumps({
    str(path): path.stat().st_mtime_ns
    for root in ("/models/models", "/runs")
    for path in pathlib.Path(root).rglob("*")
    if path.is_file() and path.suffix != ".lock"
}))
"""
"""Prints the files on a service's volumes with the times they were written at."""

INCARNATION_FILE = "/runs/.incarnation"


@pytest.fixture(scope="module")
def deployed(request: pytest.FixtureRequest) -> Iterator[Deployment]:
    """The whole deployment, built and healthy."""
    try:
        with container_engine() as engine, deployment(engine) as project:
            project.compose("build", what="building the images", timeout_seconds=1500)
            try:
                project.compose(
                    "up", "--wait", *SERVICES, what="starting the services", timeout_seconds=300
                )
            except CommandError:
                print(project.compose("logs", "--tail=50"))
                raise
            yield project
    except EngineError as error:
        if request.config.getoption("--allow-no-engine"):
            pytest.skip(str(error))
        pytest.fail(str(error), pytrace=False)


def test_services_answer_on_loopback_alone(deployed: Deployment) -> None:
    for service in SERVICES:
        address = f"127.0.0.1:{deployed.ports[service]}"
        assert health_problem(address, service="", timeout_seconds=5) is None
        bindings = json.loads(deployed.inspect(service, "{{json .HostConfig.PortBindings}}"))
        assert [each["HostIp"] for port in bindings.values() for each in port] == ["127.0.0.1"]


def test_services_have_no_privileges_and_write_only_to_their_volumes(deployed: Deployment) -> None:
    for service, volumes in (("teacher", ["/models"]), ("student", ["/models", "/runs"])):
        assert json.loads(deployed.python(service, PRIVILEGES)) == {
            "uids": [str(SERVICE_UID)],
            "capabilities": ["0" * 16] * 4,
            "no_new_privileges": "1",
            "writable": [*volumes, "/tmp"],
        }


def test_client_image_has_the_command_and_no_jax(deployed: Deployment) -> None:
    script = "import importlib.util, client.cli; print(importlib.util.find_spec('jax'))"
    output = deployed.compose(
        "run", "--rm", "--no-TTY", "--no-deps", "--entrypoint=python", "client", "-c", script
    )
    assert output.strip() == "None"


def test_job_distils_through_the_services_to_its_end(deployed: Deployment) -> None:
    printed = deployed.compose(
        *("run", "--rm", "--no-TTY", "client", "--steps=3"),
        what="running the client's job, 3 steps",
        timeout_seconds=900,
    )
    print(printed)
    summary = json.loads(
        deployed.compose(
            *("run", "--rm", "--no-TTY", "--no-deps", "--entrypoint=cat"),
            *("client", "/out/summary.json"),
        )
    )
    assert summary["step_count"] == 3
    assert summary["settings"]["targets"] == "pull"
    # The training objective is of other questions at every step; the held-out KL is of the same.
    assert summary["heldout_kl_after"] < 0.9 * summary["heldout_kl_before"]
    # The teacher can do what is to be learned; otherwise the job would prove nothing.
    assert summary["success_teacher"] >= 0.9
    assert f"{summary['heldout_kl_before']:.2f}" in printed
    assert f"{summary['heldout_kl_after']:.2f}" in printed


def test_frozen_service_turns_unhealthy_and_recovers(deployed: Deployment) -> None:
    def signal_service(name: str) -> None:
        deployed.python("student", f"{SERVICE_PROCESS}\nimport signal\nos.kill(pid, signal.{name})")

    signal_service("SIGSTOP")
    try:
        seconds = wait_for_health(deployed, "student", "unhealthy")
        print(f"==> a frozen student is unhealthy after {seconds:.0f} s", flush=True)
    finally:
        signal_service("SIGCONT")
    wait_for_health(deployed, "student", "healthy")


def test_stop_is_graceful_and_restart_keeps_the_volumes(deployed: Deployment) -> None:
    before = json.loads(deployed.python("student", STORED_FILES))
    assert any(path.startswith("/models/") for path in before)
    assert any(path.startswith("/runs/") for path in before), "the job saved no checkpoint"

    deployed.compose("stop", *SERVICES, what="stopping the services")
    for service in SERVICES:
        assert deployed.inspect(service, "{{.State.Status}} {{.State.ExitCode}}") == "exited 0"

    deployed.compose(
        "up", "--wait", *SERVICES, what="starting the services again", timeout_seconds=300
    )
    after = json.loads(deployed.python("student", STORED_FILES))
    # Each process of the student counts itself (student_service/runs/incarnation.py).
    assert after.pop(INCARNATION_FILE) > before.pop(INCARNATION_FILE)
    # Neither converted again nor lost.
    assert after == before


def test_service_that_cannot_start_fails_the_deployment(deployed: Deployment) -> None:
    with pytest.raises(CommandError, match="error: "):
        deployed.compose(
            *("run", "--rm", "--no-TTY", "--no-deps", "student"),
            *("--model", "/models/no-such-model"),
        )


def wait_for_health(deployed: Deployment, service: str, status: str) -> float:
    """Wait until the engine reports a health status; returns the seconds it took."""
    started = time.monotonic()
    while deployed.inspect(service, "{{.State.Health.Status}}") != status:
        if time.monotonic() - started > 120:
            pytest.fail(f"{service} is not {status} after 120 s")
        time.sleep(1)
    return time.monotonic() - started
