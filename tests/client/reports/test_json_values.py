"""Messages as JSON: every field by its name, numbers as they were written, absence as null."""

import json

from client.recipes.sdft import SdftSettings
from client.reports.json_values import json_value
from client.results import ModelInfo
from client.settings import AdamW, LoraConfig


def test_numbers_are_those_that_were_written_and_absent_fields_are_null() -> None:
    value = json_value(AdamW(learning_rate=0.001, weight_decay=0.0))
    assert value == {
        "learning_rate": 0.001,
        "beta1": None,
        "beta2": None,
        "epsilon": None,
        "weight_decay": 0.0,
        "max_gradient_norm": None,
    }


def test_long_integers_stay_integers_and_lists_become_lists() -> None:
    assert json_value(ModelInfo(parameter_count=1 << 40))["parameter_count"] == 1 << 40
    assert json_value(LoraConfig(rank=2, target_modules=["q_proj"]))["target_modules"] == ["q_proj"]


def test_a_dataclass_is_taken_with_the_messages_in_it() -> None:
    value = json_value(SdftSettings(seed=3))
    assert (value["seed"], value["adamw"]["learning_rate"]) == (3, 0.001)
    assert json.loads(json.dumps(value)) == value
