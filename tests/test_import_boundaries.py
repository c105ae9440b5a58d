"""Dependencies point one way: client → distill, services → distill, and nothing sideways or up.

Inside a package the rooms are floors: a module imports from its own floor and from those below.
Imports are read from the source, those inside functions and under TYPE_CHECKING included, and
followed through the project's own modules; one subprocess per rule about JAX then shows the same at
run time.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("distill", "teacher_service", "student_service", "client")
COMPUTE = ("jax", "jaxlib", "flax", "optax")
WIRE = ("grpc", "grpc_health", "grpc_status", "google", "distill.v1", "distill.rpc", "distill.wire")


FLOORS = (
    (
        "distill.kernels",
        "distill.ops",
        "distill.network",
        "distill.formats",
        "distill.families",
        "distill.models",
        "distill.engine",
        "distill.rpc",
    ),
    (
        "student_service.training",
        "student_service.runs",
        "student_service.edge",
        "student_service.servicer",
        "student_service.__main__",
    ),
    (
        "client.data",
        "client.recipes",
        "client.reports",
        "client.services",
        "client.demos",
        "client.commands",
        "client.cli",
    ),
)
"""Rooms of a package from the lowest floor to the highest."""

NO_WIRE = (
    "distill.rows",
    "distill.arrays",
    "distill.kernels",
    "distill.ops",
    "distill.network",
    "distill.formats",
    "distill.families",
    "distill.models",
    "distill.engine",
    "student_service.training",
)
"""Rooms that reach neither protobuf nor gRPC, not even through others."""

MOST_LINES = 350
"""A file tells one story."""


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {
    module_name(path): path
    for package in PACKAGES
    for path in sorted((ROOT / package).rglob("*.py"))
}
HAND_WRITTEN = sorted(name for name in MODULES if not name.startswith("distill.v1"))


def imported_names(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[str]:
    """Every module that the source may import, with the names taken from it as candidates."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                ancestor = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*ancestor, base] if base else ancestor)
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


@cache
def named_imports(module: str) -> frozenset[str]:
    """What the source of a module names."""
    path = MODULES[module]
    tree = ast.parse(path.read_text(encoding="utf-8"))
    is_package = path.name == "__init__.py"
    return frozenset(imported_names(tree, module, is_package=is_package)) - {module}


@cache
def direct_imports(module: str) -> frozenset[str]:
    """Everything that importing a module runs at once: importing a.b.c runs a and a.b as well."""
    parents = {
        ".".join(name.split(".")[:depth])
        for name in [*named_imports(module), module]
        for depth in range(1, name.count(".") + 1)
    }
    return (named_imports(module) | parents) - {module}


@cache
def reachable(module: str) -> dict[str, str]:
    """Everything that importing `module` may import → the module of ours that does it."""
    found: dict[str, str] = {}
    waiting = [module]
    visited = set()
    while waiting:
        importer = waiting.pop()
        if importer in visited:
            continue
        visited.add(importer)
        for name in direct_imports(importer):
            found.setdefault(name, importer)
            if name in MODULES:
                waiting.append(name)
    return found


def violations(module: str, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{importer} imports {name}"
        for name, importer in reachable(module).items()
        if is_within(name, forbidden)
    ]


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def in_package(*packages: str) -> list[str]:
    return [name for name in HAND_WRITTEN if is_within(name, packages)]


def test_every_package_is_looked_at() -> None:
    for package in PACKAGES:
        assert in_package(package), f"{package} has no modules: the rules below check nothing"


def test_relative_and_nested_imports_are_seen() -> None:
    source = "def f():\n    from ..rpc import server\n    import jax.numpy as jnp\n"
    names = set(imported_names(ast.parse(source), "distill.engine.scorer", is_package=False))
    assert {"distill.rpc", "distill.rpc.server", "jax.numpy"} <= names


@pytest.mark.parametrize("module", in_package("distill"))
def test_distill_imports_no_service_and_no_client(module: str) -> None:
    assert violations(module, ("teacher_service", "student_service", "client")) == []


@pytest.mark.parametrize("module", in_package("teacher_service"))
def test_teacher_imports_neither_student_nor_client(module: str) -> None:
    assert violations(module, ("student_service", "client")) == []


@pytest.mark.parametrize("module", in_package("student_service"))
def test_student_imports_neither_teacher_nor_client(module: str) -> None:
    assert violations(module, ("teacher_service", "client")) == []


@pytest.mark.parametrize("module", in_package("client"))
def test_client_imports_no_service_and_no_compute(module: str) -> None:
    assert violations(module, ("teacher_service", "student_service", *COMPUTE)) == []


@pytest.mark.parametrize("module", in_package(*NO_WIRE))
def test_compute_reaches_no_protobuf_and_no_grpc(module: str) -> None:
    assert violations(module, WIRE) == []


@pytest.mark.parametrize("module", in_package("distill.ops"))
def test_the_maths_asks_no_device(module: str) -> None:
    assert "distill.kernels.profile" not in direct_imports(module)


def test_every_room_of_the_plan_is_there() -> None:
    for room in {room for floors in FLOORS for room in floors} | set(NO_WIRE):
        assert in_package(room), f"{room} has no modules: its rules check nothing"


@pytest.mark.parametrize("floors", FLOORS, ids=lambda floors: floors[0])
def test_no_import_goes_up(floors: tuple[str, ...]) -> None:
    upward = [
        f"{module} imports {name}"
        for height, room in enumerate(floors)
        for module in in_package(room)
        for name in direct_imports(module)
        if is_within(name, floors[height + 1 :])
    ]
    assert upward == []


def test_what_the_clients_rooms_stand_on_imports_none_of_them() -> None:
    (rooms,) = (floors for floors in FLOORS if floors[0].startswith("client."))
    core = [name for name in in_package("client") if not is_within(name, rooms)]
    assert "client.teacher" in core
    upward = [
        f"{module} imports {name}"
        for module in core
        for name in direct_imports(module)
        if is_within(name, rooms)
    ]
    assert upward == []


def circles(graph: dict[str, frozenset[str]]) -> list[set[str]]:
    """Sets of modules that import each other, directly or through others."""
    reached = {name: closure(graph, name) for name in graph}
    found: list[set[str]] = []
    for name in graph:
        circle = {other for other in reached[name] if name in reached.get(other, ())}
        if circle and circle not in found:
            found.append(circle)
    return found


def closure(graph: dict[str, frozenset[str]], name: str) -> set[str]:
    """Everything that can be reached from a node in one step or more."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        for other in graph.get(waiting.pop(), frozenset()) - found:
            found.add(other)
            waiting.append(other)
    return found


def test_a_circle_would_be_noticed() -> None:
    graph = {"a": frozenset("b"), "b": frozenset("c"), "c": frozenset("b"), "d": frozenset("a")}
    assert circles(graph) == [{"b", "c"}]


def test_no_modules_import_each_other() -> None:
    graph = {name: named_imports(name) & frozenset(HAND_WRITTEN) for name in HAND_WRITTEN}
    assert circles(graph) == []


@pytest.mark.parametrize("module", HAND_WRITTEN)
def test_no_file_is_longer_than_a_story(module: str) -> None:
    line_count = len(MODULES[module].read_text(encoding="utf-8").splitlines())
    assert line_count <= MOST_LINES


@pytest.mark.parametrize("module", [name for name in HAND_WRITTEN if name.endswith(".servicer")])
def test_servicer_has_no_array_maths_of_its_own(module: str) -> None:
    forbidden = [name for name in direct_imports(module) if is_within(name, (*COMPUTE, "numpy"))]
    assert forbidden == []


def test_package_distill_imports_nothing() -> None:
    tree = ast.parse(MODULES["distill"].read_text(encoding="utf-8"))
    assert list(imported_names(tree, "distill", is_package=True)) == []


def loaded_compute_modules(modules: list[str]) -> str:
    """Top-level names of `COMPUTE` in `sys.modules` after importing `modules`, in a new process."""
    script = (
        "import importlib, sys\n"
        f"for name in {modules!r}: importlib.import_module(name)\n"
        f"print(*sorted(set({COMPUTE!r}) & set(sys.modules)))\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_importing_the_whole_client_loads_no_jax() -> None:
    modules = [name for name in in_package("client") if not name.endswith("__main__")]
    assert loaded_compute_modules(modules) == ""


def test_a_loaded_jax_would_be_noticed() -> None:
    assert "jax" in loaded_compute_modules(["distill.ops.head"]).split()
