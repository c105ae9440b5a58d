"""What each kind of model reference leads to, or why it is refused."""

import importlib.util
import sys
from pathlib import Path

import pytest

from distill.errors import ModelError
from distill.models.loading import load_model
from tests.support.tiny_models import write_tiny_model


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("no-such-model", "'no-such-model': not a directory"),
        ("../a/b/c", "'c': not a directory"),
        ("/nowhere/model.gguf", r"no GGUF file 'model\.gguf'"),
    ],
)
def test_unknown_reference_is_refused(reference: str, named: str) -> None:
    with pytest.raises(ModelError, match=named):
        load_model(reference)


def test_hub_id_without_the_hub_package_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ModelError, match=r"topk-distill\[hub\]"):
        load_model("organisation/name")


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("LocalEntryNotFoundError", r"cannot be downloaded \(no connection to the hub\?\)"),
        ("RepositoryNotFoundError", r"is not on the hub, or needs an account"),
        ("HfHubHTTPError", r"cannot be downloaded \(HfHubHTTPError\)"),
    ],
)
def test_hub_id_that_cannot_be_downloaded_says_why(
    name: str, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    kind = getattr(pytest.importorskip("huggingface_hub.errors"), name)
    # Its versions differ in the answer that such an error is made of.
    error = kind.__new__(kind)

    def fail(_hub_id: str, **_options: object) -> str:
        raise error

    monkeypatch.setattr(hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=f"'organisation/name' {problem}"):
        load_model("organisation/name")


def test_hub_id_loads_from_what_was_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = pytest.importorskip("huggingface_hub")
    directory = write_tiny_model(tmp_path / "snapshots" / "0123abcd")
    asked = []

    def downloaded(hub_id: str, *, allow_patterns: list[str]) -> str:
        asked.append((hub_id, allow_patterns))
        return str(directory)

    monkeypatch.setattr(hub, "snapshot_download", downloaded)
    assert load_model("organisation/name").name == "organisation/name"
    assert asked == [("organisation/name", ["*.json", "*.safetensors", "*.jinja"])]


def test_missing_embedded_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match="pip install"):
        load_model("smollm2-135m")
