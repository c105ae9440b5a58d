"""A container engine for the tests: the one that answers, or else one that they start and remove.

An engine of their own needs root and Debian's packages; everything it writes lies in one temporary
directory, and what it changes in the machine's network is put back.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.docker.commands import CommandError, run, succeeds

BASE_IMAGE = "python:3.11-slim"
"""What the Dockerfile builds on."""

PACKAGES = {"dockerd": "docker.io", "iptables": "iptables", "debootstrap": "debootstrap"}
"""Command → the Debian package that has it."""

IP_FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
BRIDGE = "docker0"


class EngineError(Exception):
    """No container engine can be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A container engine that answers."""

    docker: str
    """Its client."""

    environment: Mapping[str, str]
    """Environment under which clients reach it."""

    def run(self, *arguments: str, timeout_seconds: float = 60) -> str:
        """`docker ARGUMENTS`; returns its output."""
        return run(
            [self.docker, *arguments],
            environment=self.environment,
            timeout_seconds=timeout_seconds,
        )


@contextmanager
def container_engine() -> Iterator[Engine]:
    """The engine that answers on this machine, or else a new one for as long as the context lasts.

    Raises:
        EngineError: none answers and none can be started.
    """
    docker = shutil.which("docker")
    if docker and succeeds([docker, "info"]):
        print(f"==> using the engine that {docker} reaches", flush=True)
        yield Engine(docker=docker, environment=dict(os.environ))
        return
    _require_tools()
    with _network_put_back(), _own_engine() as engine:
        _provide_base_image(engine)
        yield engine


def _require_tools() -> None:
    if os.geteuid() != 0:
        raise EngineError("no container engine answers, and only root can start one")
    missing = [package for command, package in PACKAGES.items() if not shutil.which(command)]
    if not missing:
        return
    if not shutil.which("apt-get"):
        raise EngineError(
            f"no container engine answers; starting one needs {', '.join(missing)}, and there is "
            "no apt-get to install them"
        )
    # Neither questions, nor a system-wide engine started by the package.
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    try:
        run(["apt-get", "update", "-qq"], environment=environment, timeout_seconds=300)
        run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *missing],
            what=f"installing {', '.join(missing)}",
            environment=environment,
            timeout_seconds=600,
        )
    except CommandError as error:
        raise EngineError(f"the packages for an engine cannot be installed: {error}") from None


@contextmanager
def _network_put_back() -> Iterator[None]:
    """Undo what dockerd does to forwarding, to the packet filter and to the interfaces."""
    ip_forward = IP_FORWARD.read_text()
    had_bridge = Path("/sys/class/net", BRIDGE).exists()
    rules = run(["iptables-save"])
    try:
        yield
    finally:
        for table in ("filter", "nat"):
            if f"*{table}\n" not in rules:
                run(["iptables", "-t", table, "-F"])
                run(["iptables", "-t", table, "-X"])
        if "*filter\n" not in rules:
            run(["iptables", "-P", "FORWARD", "ACCEPT"])
        subprocess.run(["iptables-restore"], input=rules, text=True, check=True, timeout=60)
        if not had_bridge and Path("/sys/class/net", BRIDGE).exists():
            run(["ip", "link", "delete", BRIDGE])
        IP_FORWARD.write_text(ip_forward)


@contextmanager
def _own_engine() -> Iterator[Engine]:
    # Short: the path of a socket has at most 107 characters.
    root = Path(tempfile.mkdtemp(prefix="distill-engine-"))
    try:
        daemon, engine = _start_daemon(root)
        try:
            yield engine
        finally:
            print("==> stopping the engine", flush=True)
            containers = engine.run("ps", "--all", "--quiet").split()
            if containers:
                engine.run("rm", "--force", *containers)
            _stop(daemon)
    finally:
        _unmount_below(root)
        shutil.rmtree(root)


def _start_daemon(root: Path) -> tuple[subprocess.Popen[bytes], Engine]:
    # Debian's client, because another one first on the PATH may be newer than Debian's engine.
    docker = "/usr/bin/docker"
    environment = {**os.environ, "DOCKER_HOST": f"unix://{root / 'socket'}", "DOCKER_BUILDKIT": "1"}
    environment.pop("DOCKER_CONTEXT", None)
    engine = Engine(docker=docker, environment=environment)
    problem = ""
    # vfs copies whole layers, but works on any file system.
    for driver in ("overlay2", "vfs"):
        started = time.monotonic()
        log_path = root / f"dockerd-{driver}.log"
        with log_path.open("wb") as log:
            daemon = subprocess.Popen(
                [
                    # Should the tests be killed, the engine stops as well.
                    *("setpriv", "--pdeathsig", "TERM"),
                    "dockerd",
                    f"--data-root={root / 'data'}",
                    f"--exec-root={root / 'exec'}",
                    f"--pidfile={root / 'pid'}",
                    f"--host=unix://{root / 'socket'}",
                    f"--storage-driver={driver}",
                    f"--mtu={_default_route_mtu()}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        while daemon.poll() is None and time.monotonic() - started < 60:
            if succeeds([docker, "info"], environment=environment):
                seconds = time.monotonic() - started
                print(f"==> started an engine on {driver} in {seconds:.1f} s", flush=True)
                return daemon, engine
            time.sleep(0.2)
        _stop(daemon)
        problem = "\n".join(log_path.read_text(errors="replace").splitlines()[-15:])
        if "graphdriver" not in problem and "storage driver" not in problem:
            break
        print(f"==> the engine refuses {driver}:\n{problem}", flush=True)
    raise EngineError(f"dockerd does not start:\n{problem}")


def _default_route_mtu() -> int:
    """Packets larger than this are lost on the way out of a container."""
    for line in Path("/proc/net/route").read_text().splitlines()[1:]:
        interface, destination = line.split()[:2]
        if destination == "00000000":
            return int(Path("/sys/class/net", interface, "mtu").read_text())
    return 1500


def _stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _unmount_below(root: Path) -> None:
    """Unmount what was left mounted in a directory, innermost first."""
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
    for mount in reversed([mount for mount in mounts if mount.startswith(f"{root}/")]):
        run(["umount", "--lazy", mount])


def _provide_base_image(engine: Engine) -> None:
    try:
        engine.run("pull", "--quiet", BASE_IMAGE, timeout_seconds=120)
    except CommandError as error:
        print(f"==> {BASE_IMAGE} cannot be pulled: {str(error).splitlines()[-1]}", flush=True)
    else:
        print(f"==> pulled {BASE_IMAGE}", flush=True)
        return
    # Debian 12 has the same Python; `debootstrap` needs no registry.
    with tempfile.TemporaryDirectory(prefix="distill-base-") as directory:
        try:
            run(
                [
                    "debootstrap",
                    "--variant=minbase",
                    "--include=python3,python3-venv,python3-pip,ca-certificates",
                    "bookworm",
                    f"{directory}/root",
                ],
                what=f"making {BASE_IMAGE} from Debian's packages",
                timeout_seconds=900,
            )
        finally:
            # An interrupted one leaves its /proc and /sys mounted.
            _unmount_below(Path(directory))
        archive = f"{directory}/root.tar"
        run(["tar", "--create", "--directory", f"{directory}/root", "--file", archive, "."])
        engine.run("import", archive, BASE_IMAGE, timeout_seconds=300)
