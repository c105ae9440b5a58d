"""A name stays within its directory."""

import pytest

from distill.errors import InvalidFieldError
from student_service.runs.names import is_name, parse_name


@pytest.mark.parametrize(
    "name", ["", ".hidden", "..", "a/b", "../a", "/abs", "a\0b", "a b", "x" * 65, "a\n", "ä"]
)
def test_names_that_could_leave_their_directory_are_refused(name):
    with pytest.raises(InvalidFieldError, match="run_id"):
        parse_name(name, "run_id")
    assert not is_name(name)


@pytest.mark.parametrize("name", ["a", "x" * 64, "run-1_b.json", "-", "a..b"])
def test_names_of_letters_digits_and_signs_pass(name):
    assert parse_name(name, "run_id") == name
