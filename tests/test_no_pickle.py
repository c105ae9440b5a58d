"""No code path unpickles: a pickle from elsewhere runs whatever it likes."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(
    path
    for folder in (
        "distill",
        "teacher_service",
        "student_service",
        "client",
        "benchmarks",
        "examples",
        "tests",
        "scripts",
    )
    for path in (ROOT / folder).rglob("*.py")
)
FORBIDDEN_MODULES = (
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "shelve",
    "marshal",
)
# numpy.load and torch.load unpickle unless told not to.
LOADERS = {"np.load": "allow_pickle", "numpy.load": "allow_pickle", "torch.load": "weights_only"}
SAFE_VALUE = {"allow_pickle": False, "weights_only": True}


def pickling(source: str) -> list[str]:
    """What in a source file pickles or may unpickle, with line numbers."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        elif isinstance(node, ast.Call):
            callee = ast.unparse(node.func)
            if callee in ("__import__", "importlib.import_module") and node.args:
                argument = node.args[0]
                names = [argument.value] if isinstance(argument, ast.Constant) else []
            keywords = {
                keyword.arg: keyword.value.value
                for keyword in node.keywords
                if isinstance(keyword.value, ast.Constant)
            }
            if keywords.get("allow_pickle"):
                found.append(f"line {node.lineno}: {callee}(allow_pickle=True)")
            flag = LOADERS.get(callee)
            if flag is not None and keywords.get(flag, "absent") is not SAFE_VALUE[flag]:
                found.append(f"line {node.lineno}: {callee} without {flag}={SAFE_VALUE[flag]}")
        found += [
            f"line {node.lineno}: imports {name}"
            for name in names
            if str(name).split(".")[0] in FORBIDDEN_MODULES
        ]
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_source_neither_pickles_nor_unpickles(path: Path) -> None:
    assert pickling(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "def f():\n    from pickle import loads",
        "import importlib; importlib.import_module('dill')",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "np.savez(path, allow_pickle=True)",
        "torch.load(path, weights_only=False)",
    ],
)
def test_pickling_is_noticed(source: str) -> None:
    assert len(pickling(source)) >= 1


@pytest.mark.parametrize(
    "source", ["np.load(path, allow_pickle=False)", "torch.load(path, weights_only=True)"]
)
def test_safe_loading_is_allowed(source: str) -> None:
    assert pickling(source) == []
