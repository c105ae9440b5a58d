"""config.json as this version of Transformers writes it."""

import json
from pathlib import Path

import pytest
from transformers import AutoConfig

from distill.families.registry import FAMILIES, hf_config, parse_hf_config
from tests.support.parity_cases import TINY_CASES
from tests.support.tiny_models import tiny_config

pytestmark = pytest.mark.parity


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("write", ["all keys", "as saved"])
def test_config_of_transformers_is_read(tmp_path: Path, family: str, write: str) -> None:
    config = AutoConfig.for_model(family)
    if write == "as saved":
        config.save_pretrained(tmp_path)
        raw = json.loads((tmp_path / "config.json").read_text())
    else:
        raw = json.loads(json.dumps(config.to_dict()))
    own = parse_hf_config(raw)
    assert own.layer_count == config.num_hidden_layers
    assert own.head_dim * own.head_count > 0


@pytest.mark.parametrize("name", TINY_CASES)
def test_config_that_transformers_saves_again_is_the_same(tmp_path: Path, name: str) -> None:
    case = TINY_CASES[name]
    own = tiny_config(case.family, **case.overrides)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(own)))
    AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    raw = json.loads((tmp_path / "again" / "config.json").read_text())
    assert parse_hf_config(raw) == own
