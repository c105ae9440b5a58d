"""The command line of the student, without a model."""

import pytest

from student_service.__main__ import main


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", "main"], "must be NAME=HOST:PORT, got 'main'"),
        (["--teacher", "main=h"], "the address of 'main' must be HOST:PORT"),
        (["--teacher", "a=h:1", "--teacher", "a=h:2"], "the name 'a' is given twice"),
        (["--micro-batch-tokens", "0"], "must be at least 1, got 0"),
        (["--max-runs", "0"], "must be at least 1, got 0"),
        (["--listen", "0.0.0.0:1"], "give --insecure-bind"),
    ],
)
def test_bad_arguments_end_in_one_line_and_code_2(capsys, arguments, message):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_help_names_every_argument_with_its_default(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for argument in (
        "--teacher",
        "--runs-dir",
        "--micro-batch-tokens",
        "--max-runs",
        "--remat",
        "--model",
    ):
        assert argument in text
    assert text.count("(default") >= 15
