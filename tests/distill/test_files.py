"""A file or a directory appears whole or not at all."""

import os
import socket
import threading
from pathlib import Path

import pytest

from distill import files
from distill.errors import AlreadyExistsError, ModelError
from distill.files import (
    NotAFileError,
    new_directory,
    open_file,
    parse_json_object,
    read_json_object,
    write_durably,
)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is synced and renamed, in order."""
    taken: list[str] = []
    fsync, rename, replace = os.fsync, Path.rename, Path.replace

    def synced(descriptor: int) -> None:
        taken.append(f"sync {Path(f'/proc/self/fd/{descriptor}').readlink().name}")
        fsync(descriptor)

    def renamed(path: Path, target: Path) -> Path:
        taken.append(f"rename {path.name} to {target.name}")
        return rename(path, target)

    def replaced(path: Path, target: Path) -> Path:
        taken.append(f"rename {path.name} to {target.name}")
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
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


def test_every_directory_that_is_made_is_synced_into_its_parent(
    tmp_path: Path, steps: list[str]
) -> None:
    files.make_directory(tmp_path / "a" / "b" / "c")
    assert steps == [f"sync {tmp_path.name}", "sync a", "sync b"]
    files.make_directory(tmp_path / "a" / "b" / "c")
    assert len(steps) == 3


def test_a_directory_whose_sync_failed_is_made_and_synced_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_path: Path) -> None:
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(files, "sync", fail)
        with pytest.raises(OSError, match="disk"):
            files.make_directory(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    files.make_directory(tmp_path / "new")
    assert (tmp_path / "new").is_dir()


def test_a_directory_is_synced_with_its_files_before_it_is_renamed_and_its_parent_after(
    tmp_path: Path, steps: list[str]
) -> None:
    with new_directory(tmp_path / "parent" / "new") as aside:
        (aside / "file").write_text("content")
    assert steps == [
        f"sync {tmp_path.name}",
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


@pytest.mark.parametrize(("owner", "step"), [(Path, "open"), (os, "fsync"), (Path, "replace")])
def test_a_file_that_cannot_be_written_leaves_the_old_one_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: object, step: str
) -> None:
    write_durably(tmp_path / "file", "old")

    def fail(*_arguments: object, **_options: object) -> None:
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(owner, step, fail)
        with pytest.raises(OSError, match="no space"):
            write_durably(tmp_path / "file", "new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() == "old"


def test_a_link_in_the_place_of_what_is_written_is_replaced_and_not_followed(
    tmp_path: Path,
) -> None:
    (tmp_path / "outside").write_text("precious")
    for name in ("file", "file.tmp"):
        (tmp_path / name).symlink_to(tmp_path / "outside")
    write_durably(tmp_path / "file", "new")
    assert (tmp_path / "outside").read_text() == "precious"
    assert not (tmp_path / "file").is_symlink()
    assert (tmp_path / "file").read_text() == "new"


@pytest.mark.timeout(20)
def test_what_is_no_file_is_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    (tmp_path / "directory").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
    for name in ("link", "directory", "pipe", "socket"):
        with pytest.raises(NotAFileError, match="not a regular file"):
            open_file(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        open_file(tmp_path / "nothing")
    with open_file(tmp_path / "file") as file:
        assert file.read() == b"content"


@pytest.mark.parametrize("text", ["{", "[]", "null", '"text"', b"\xff", "[" * 10**5])
def test_what_is_no_json_object_is_refused(tmp_path: Path, text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"JSON|decode|Expecting|nested"):
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
