"""The numbers that comments of the contract name are those of the code."""

import ast
import re
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from distill.network.adapters import ALL_TARGETS
from distill.rpc.checks import MIN_TEMPERATURE

ROOT = Path(__file__).parents[1]
PACKAGES = ("distill", "student_service", "teacher_service")


@cache
def comments() -> str:
    """The comments of all protos, each as one line."""
    text = "\n".join(
        path.read_text(encoding="utf-8") for path in sorted((ROOT / "protos").rglob("*.proto"))
    )
    return re.sub(r"\n\s*// ", " ", text)


def constant(name: str) -> float:
    """The value of a constant, in whichever module it is defined."""
    found = [
        ast.literal_eval(node.value)
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and any(isinstance(target, ast.Name) and target.id == name for target in node.targets)
    ]
    assert len(found) == 1, f"{name} is defined {len(found)} times"
    return float(found[0])


@pytest.mark.parametrize(
    ("pattern", "count", "value"),
    [
        (r"at least (1e-\d+)\.", 3, lambda: float(f"{MIN_TEMPERATURE:g}")),
        (r"log-probs are finite and at most (\S+),", 1, lambda: constant("MAX_LOG_PROB")),
        (r"add up to 1 within (\S+) ", 1, lambda: constant("MASS_TOLERANCE")),
        (r"message counts (\d+) bytes more", 1, lambda: constant("MESSAGE_OVERHEAD_BYTES")),
        (
            r"`Limits\.max_in_flight_mutations` \((\d+)\)",
            1,
            lambda: constant("IN_FLIGHT_LIMIT"),
        ),
        (r"The last (\d+) of a run are remembered", 1, lambda: constant("KEPT_ATTACHMENTS")),
        (r"The last (\d+) deletions", 1, lambda: constant("KEPT_DELETIONS")),
        (r"Rank of the update, in \[1, (\d+)\]", 1, lambda: constant("MAX_LORA_RANK")),
        (r"(?:no part|sent none) for (\d+) s", 2, lambda: constant("MAX_SILENT_SECONDS")),
    ],
    ids=[
        *("temperature", "log_prob", "mass", "overhead", "in_flight", "attachments"),
        *("deletions", "rank", "silence"),
    ],
)
def test_a_number_of_the_contract_is_that_of_the_code(pattern, count, value) -> None:
    named = re.findall(pattern, comments())
    assert [float(number) for number in named] == [value()] * count


def test_the_smallest_temperature_of_the_contract_passes_as_a_float32() -> None:
    assert float(np.float32(1e-6)) >= MIN_TEMPERATURE


def test_every_target_of_an_adapter_is_named() -> None:
    (described,) = re.findall(r"Projections that get an adapter\.(.*?)Empty: all", comments())
    assert set(re.findall(r"\w+_\w+", described)) - {"qwen3_5"} == set(ALL_TARGETS)
