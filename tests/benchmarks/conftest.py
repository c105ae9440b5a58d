"""Two tiny models: grouped heads and a tied head, and one whose queries are normed."""

from pathlib import Path

import pytest

from distill.models.loading import LoadedModel, load_model
from tests.support.tiny_models import write_tiny_model


@pytest.fixture(scope="session", params=["llama", pytest.param("qwen3", marks=pytest.mark.slow)])
def tiny_model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    directory: Path = tmp_path_factory.mktemp("bench") / request.param
    model: LoadedModel = load_model(str(write_tiny_model(directory, request.param)))
    return model
