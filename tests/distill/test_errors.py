"""The reasons of all errors are those of the contract."""

import importlib
import pkgutil

import pytest

import distill
import student_service
import teacher_service
from distill.errors import DistillError
from distill.v1.errors_pb2 import ErrorReason

PREFIX = "ERROR_REASON_"


def all_errors() -> set[type[DistillError]]:
    """Every error of the services, wherever it is defined."""
    for package in (distill, teacher_service, student_service):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found: set[type[DistillError]] = set()
    waiting = [DistillError]
    while waiting:
        error = waiting.pop()
        found.add(error)
        waiting += error.__subclasses__()
    return {error for error in found if not error.__module__.startswith("tests.")}


@pytest.fixture(scope="module")
def reasons() -> set[str]:
    return {error.reason for error in all_errors()}


def test_every_reason_of_an_error_is_in_the_contract(reasons: set[str]) -> None:
    assert {f"{PREFIX}{reason}" for reason in reasons} <= set(ErrorReason.keys())


def test_every_reason_of_the_contract_is_that_of_an_error(reasons: set[str]) -> None:
    contract = {name.removeprefix(PREFIX) for name in ErrorReason.keys()}  # noqa: SIM118 # no dict
    assert contract - {"UNSPECIFIED"} == reasons
