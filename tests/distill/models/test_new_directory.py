"""A directory appears whole or not at all."""

import threading
from pathlib import Path

import pytest

from distill.errors import AlreadyExistsError
from distill.models.new_directory import new_directory


def test_what_was_written_appears_at_the_end_of_the_block(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "new"
    with new_directory(target) as aside:
        (aside / "file").write_text("content")
        assert not target.exists()
    assert (target / "file").read_text() == "content"


def test_a_block_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with new_directory(tmp_path / "new") as aside:
            (aside / "file").write_text("content")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert [path.name for path in tmp_path.iterdir()] == [".new.lock"]


def test_what_a_killed_process_left_does_not_appear(tmp_path: Path) -> None:
    (tmp_path / ".new.partial").mkdir()
    (tmp_path / ".new.partial" / "old").write_text("")
    with new_directory(tmp_path / "new"):
        pass
    assert list((tmp_path / "new").iterdir()) == []


def test_the_second_of_two_at_once_finds_the_place_taken(tmp_path: Path) -> None:
    errors: list[Exception] = []

    def also_write() -> None:
        try:
            with new_directory(tmp_path / "new"):
                pass
        except AlreadyExistsError as error:
            errors.append(error)

    with new_directory(tmp_path / "new") as aside:
        (aside / "file").write_text("first")
        other = threading.Thread(target=also_write)
        other.start()
    other.join(timeout=20)
    assert [str(error) for error in errors] == ["'new' exists and is not an empty directory"]
    assert (tmp_path / "new" / "file").read_text() == "first"
