"""A file or a directory appears whole or not at all."""

import os
import threading
from pathlib import Path

import pytest

from distill import files
from distill.errors import AlreadyExistsError, ModelError
from distill.files import new_directory, parse_json_object, read_json_object, write_durably


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in order."""
    taken: list[str] = []
    sync, rename, replace = files.sync, Path.rename, Path.replace

    def synced(path: Path) -> None:
        taken.append(f"sync {path.name}")
        sync(path)

    def renamed(path: Path, target: Path) -> Path:
        taken.append(f"rename {path.name} to {target.name}")
        return rename(path, target)

    def replaced(path: Path, target: Path) -> Path:
        taken.append(f"rename {path.name} to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(files, "sync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    monkeypatch.setattr(Path, "replace", replaced)
    return taken


def test_a_file_is_synced_before_it_is_renamed_and_its_directory_after(
    tmp_path: Path, steps: list[str]
) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    write_durably(directory / "file", "old")
    write_durably(directory / "file", "new")
    assert (directory / "file").read_text() == "new"
    assert steps == 2 * ["sync file.tmp", "rename file.tmp to file", "sync directory"]


def test_a_directory_is_synced_with_its_files_before_it_is_renamed_and_its_parent_after(
    tmp_path: Path, steps: list[str]
) -> None:
    with new_directory(tmp_path / "parent" / "new") as aside:
        (aside / "file").write_text("content")
    assert steps == [
        "sync file",
        "sync .new.partial",
        "rename .new.partial to new",
        "sync parent",
    ]


def test_a_sync_reaches_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced = []
    fsync = os.fsync

    def recorded(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", recorded)
    (tmp_path / "file").write_text("content")
    files.sync(tmp_path / "file")
    files.sync(tmp_path)
    assert synced == [path.stat().st_ino for path in (tmp_path / "file", tmp_path)]


@pytest.mark.parametrize("stage", ["write_text", "sync"])
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    write_durably(tmp_path / "file", "old")

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path if stage == "write_text" else files, stage, fail)
    with pytest.raises(OSError, match="no space"):
        write_durably(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


@pytest.mark.parametrize("text", ["{", "[]", "null", '"text"', b"\xff"])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|decode|Expecting"):
        parse_json_object(text)
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        read_json_object(path)


def test_a_missing_file_is_named_without_its_path(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^the model directory has no config\.json$"):
        read_json_object(tmp_path / "config.json")


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
