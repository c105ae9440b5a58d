"""Whatever the file system refuses, and whenever: the checkpoints are the old ones, or the
repetition of the same mutation succeeds."""

import errno
import os
import shutil
import stat
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from distill.errors import AlreadyExistsError, DistillError, StorageError, StorageFullError
from student_service.runs.checkpoints import CheckpointStore
from student_service.runs.state_files import state_name

INFO = {
    "name": "first",
    "step": 3,
    "sequence_number": 7,
    "writer_epoch": 1,
    "weights_version": "run:6",
}
LATER = INFO | {"sequence_number": 8}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path)


def save(store, value, info, *, overwrite=True):
    arrays = {"parameters/a": np.full((2, 3), value, np.float32)}
    return store.save("run", info, arrays, overwrite=overwrite)


def value_of(store):
    return store.load("run", "first")[1]["parameters/a"][0, 0]


class FailingDisk:
    """Fails the operations on the disk from the `first` on, `count` of them."""

    def __init__(self, monkeypatch, first, count=1, code=errno.EIO):
        self.steps = []
        self._range = range(first, first + count)
        self._code = code
        self._wrap(monkeypatch, os, "fsync", self._kind_of)
        self._wrap(monkeypatch, Path, "open", lambda path, *_: f"open {path.name}")
        self._wrap(monkeypatch, Path, "mkdir", lambda path, *_: f"mkdir {path.name}")
        self._wrap(monkeypatch, Path, "rename", lambda path, *_: f"rename {path.name}")
        self._wrap(monkeypatch, Path, "replace", lambda path, *_: f"rename {path.name}")
        self._wrap(monkeypatch, Path, "unlink", lambda path: f"remove {path.name}")
        self._wrap(monkeypatch, shutil, "rmtree", lambda path: f"remove {path.name}")

    @staticmethod
    def _kind_of(descriptor):
        kind = "directory" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "file"
        return f"sync {kind}"

    def _wrap(self, monkeypatch, owner, name, describe):
        genuine = getattr(owner, name)

        def step(*arguments, **options):
            self.steps.append(describe(*arguments))
            if len(self.steps) - 1 in self._range:
                raise OSError(self._code, os.strerror(self._code), "/secret/path")
            return genuine(*arguments, **options)

        monkeypatch.setattr(owner, name, step)


def steps_of(operation):
    with pytest.MonkeyPatch.context() as patch:
        disk = FailingDisk(patch, first=1 << 30)
        operation()
    return disk.steps


def files_of(tmp_path):
    return sorted(path.name for path in tmp_path.rglob("*") if path.is_file())


SAVE_STEPS = 9
"""Operations on the disk of a save that overwrites: asserted below."""


def test_the_steps_of_a_save_are_those_that_fail_below(store):
    save(store, 1.0, INFO)
    assert steps_of(lambda: save(store, 2.0, LATER)) == [
        f"remove {state_name(LATER, taken=None)}",
        f"open {state_name(LATER, taken=None)}",
        "sync file",
        "remove first.json.tmp",
        "open first.json.tmp",
        "sync file",
        "rename first.json.tmp",
        "sync directory",
        f"remove {state_name(INFO, taken=None)}",
    ]


@pytest.mark.parametrize("count", [1, 1000], ids=["one failure", "all that follows fails"])
@pytest.mark.parametrize("first", range(SAVE_STEPS))
def test_a_save_that_fails_leaves_the_old_checkpoint_or_its_repetition_succeeds(
    store, tmp_path, first, count
):
    old = save(store, 1.0, INFO)
    failure = None
    with pytest.MonkeyPatch.context() as patch:
        FailingDisk(patch, first, count)
        try:
            save(store, 2.0, LATER)
        except DistillError as error:
            failure = error
    is_removal = first == SAVE_STEPS - 1
    assert (failure is None) == is_removal
    (listed,) = store.list("run")
    is_put_back = count == 1 or first < SAVE_STEPS - 2
    # A refusal promises that nothing has changed.
    assert is_removal or isinstance(failure, StorageError) == is_put_back
    if is_removal or not is_put_back:
        assert (listed.sequence_number, value_of(store)) == (8, 2.0)
    else:
        assert (listed, value_of(store)) == (old, 1.0)
        # Where all fails, so does the removal of what was written; the next save removes it.
        assert count > 1 or files_of(tmp_path) == [state_name(INFO, taken=None), "first.json"]
    # Without `overwrite` where that finds the checkpoint of this same mutation in place.
    again = save(store, 2.0, LATER, overwrite=is_put_back and not is_removal)
    assert store.list("run") == [again]
    if listed != old:
        assert again == listed
    assert value_of(store) == 2.0
    assert files_of(tmp_path) == [state_name(LATER, taken=None), "first.json"]


def test_the_steps_of_a_first_save_are_those_that_fail_below(store):
    assert steps_of(lambda: save(store, 1.0, INFO))[:4] == [
        *("mkdir run", "sync directory"),
        *("mkdir checkpoints", "sync directory"),
    ]


@pytest.mark.parametrize("count", [1, 1000], ids=["one failure", "all that follows fails"])
@pytest.mark.parametrize("first", range(4 + SAVE_STEPS - 1))
def test_a_first_save_that_fails_leaves_nothing_or_its_repetition_succeeds(
    store, tmp_path, first, count
):
    with pytest.MonkeyPatch.context() as patch:
        FailingDisk(patch, first, count)
        with pytest.raises(DistillError) as failure:
            save(store, 1.0, INFO, overwrite=False)
    listed = store.list("run")
    assert isinstance(failure.value, StorageError) == (listed == [])
    if count == 1:
        assert list(tmp_path.rglob("*")) == []
    again = save(store, 1.0, INFO, overwrite=False)
    assert store.list("run") == [again]
    assert listed in ([], [again])
    assert value_of(store) == 1.0
    assert files_of(tmp_path) == [state_name(INFO, taken=None), "first.json"]


def test_a_save_whose_directory_was_never_synced_is_made_durable_by_the_repetition(store):
    with pytest.MonkeyPatch.context() as patch:
        FailingDisk(patch, first=4 + SAVE_STEPS - 2, count=1000)
        with pytest.raises(DistillError, match="may have been saved"):
            save(store, 1.0, INFO, overwrite=False)
    (listed,) = store.list("run")
    answers = []
    steps = steps_of(lambda: answers.append(save(store, 1.0, INFO, overwrite=False)))
    assert answers == [listed]
    assert steps[-2:] == ["rename first.json.tmp", "sync directory"]


DELETE_STEPS = 3


def test_the_steps_of_a_deletion_are_those_that_fail_below(store):
    save(store, 1.0, INFO)
    assert steps_of(lambda: store.delete_all("run")) == [
        *("rename run", "sync directory", "remove .deleted-run")
    ]


@pytest.mark.parametrize("first", range(DELETE_STEPS))
def test_a_deletion_that_fails_says_so_and_its_repetition_goes_on(store, tmp_path, first):
    save(store, 1.0, INFO)
    with pytest.MonkeyPatch.context() as patch:
        FailingDisk(patch, first)
        with pytest.raises(StorageError, match="cannot delete the checkpoints of run 'run'"):
            store.delete_all("run")
    assert len(store.list("run")) == (0 if first == DELETE_STEPS - 1 else 1)
    # What was set aside is not taken for gone: its name is synced before it is removed.
    assert steps_of(lambda: store.delete_all("run"))[-2:] == [
        *("sync directory", "remove .deleted-run")
    ]
    assert list(tmp_path.iterdir()) == []


OPERATIONS = {
    "save": lambda store: save(store, 2.0, LATER),
    "load": lambda store: store.load("run", "first"),
    "read": lambda store: store.manifest("run", "first"),
    "list": lambda store: store.list("run"),
    "delete": lambda store: store.delete_all("run"),
}


@pytest.mark.parametrize("operation", sorted(OPERATIONS))
@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (errno.ENOSPC, StorageFullError),
        (errno.EDQUOT, StorageFullError),
        (errno.EROFS, StorageError),
        (errno.EACCES, StorageError),
        (errno.EIO, StorageError),
    ],
)
def test_what_the_disk_refuses_is_told_with_its_reason_and_without_a_path(
    store, tmp_path, monkeypatch, operation, code, kind
):
    save(store, 1.0, INFO)

    def fail(*_arguments, **_options):
        raise OSError(code, os.strerror(code), str(tmp_path / "secret"))

    with monkeypatch.context() as patch:
        for owner, name in ((os, "open"), (os, "fsync"), (Path, "rename"), (Path, "unlink")):
            patch.setattr(owner, name, fail)
        with pytest.raises(StorageError, match="and send the request again") as caught:
            OPERATIONS[operation](store)
    assert type(caught.value) is kind
    assert os.strerror(code) in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert (value_of(store), files_of(tmp_path)) == (
        1.0,
        [state_name(INFO, taken=None), "first.json"],
    )


LOADS = ("load", "read")


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_a_manifest_that_is_no_file_is_no_checkpoint_and_is_not_written_through(
    store, tmp_path, kind
):
    directory = tmp_path / "run" / "checkpoints"
    save(store, 1.0, INFO | {"name": "other"})
    outside = put(directory / "first.json", kind, tmp_path)
    for operation in LOADS:
        with pytest.raises(Exception, match="has no checkpoint 'first'"):
            OPERATIONS[operation](store)
    assert [info.name for info in store.list("run")] == ["other"]
    if kind == "directory":
        with pytest.raises(StorageError):
            save(store, 2.0, LATER)
    else:
        save(store, 2.0, LATER)
        assert value_of(store) == 2.0
    assert outside.read_text() == "precious"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["first.json.tmp", state_name(LATER, taken=None)])
@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_what_stands_where_a_save_writes_is_replaced_and_not_followed(store, tmp_path, name, kind):
    directory = tmp_path / "run" / "checkpoints"
    save(store, 1.0, INFO)
    outside = put(directory / name, kind, tmp_path)
    save(store, 2.0, LATER)
    assert value_of(store) == 2.0
    assert outside.read_text() == "precious"
    assert files_of(tmp_path / "run") == [state_name(LATER, taken=None), "first.json"]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_a_state_that_is_no_file_is_data_loss(store, tmp_path, kind):
    save(store, 1.0, INFO)
    state = tmp_path / "run" / "checkpoints" / state_name(INFO, taken=None)
    content = state.read_bytes()
    state.unlink()
    put(state, kind, tmp_path).write_bytes(content)
    with pytest.raises(Exception, match="does not match its digest") as caught:
        store.load("run", "first")
    assert type(caught.value).__name__ == "CorruptDataError"


@pytest.mark.parametrize("level", ["run", "run/checkpoints"])
@pytest.mark.parametrize("operation", ["save", "load", "read", "list"])
def test_a_link_in_the_place_of_a_directory_is_not_followed(store, tmp_path, level, operation):
    save(store, 1.0, INFO)
    moved = tmp_path / "elsewhere"
    (tmp_path / level).rename(moved)
    (tmp_path / level).symlink_to(moved)
    before = files_of(moved)
    with pytest.raises(StorageError, match="Not a directory"):
        OPERATIONS[operation](store)
    assert files_of(moved) == before


@pytest.mark.parametrize("level", ["run", "run/checkpoints"])
def test_a_deletion_removes_a_link_and_not_what_it_points_to(store, tmp_path, level):
    save(store, 1.0, INFO)
    moved = tmp_path / "elsewhere"
    (tmp_path / level).rename(moved)
    (tmp_path / level).symlink_to(moved)
    store.delete_all("run")
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert files_of(moved) == [state_name(INFO, taken=None), "first.json"]


def put(path, kind, tmp_path):
    """Something other than a file; returns the file that a link points to."""
    outside = tmp_path / "outside"
    outside.write_text("precious")
    if kind == "link":
        path.symlink_to(outside)
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    return outside


OF_ANOTHER_RUN = INFO | {"weights_version": "run:another:0"}
"""The same epoch and number come again where the count of processes was lost with its file."""


def test_a_save_is_never_answered_with_the_checkpoint_of_another_run(store):
    save(store, 1.0, INFO)
    with pytest.raises(AlreadyExistsError):
        save(store, 2.0, OF_ANOTHER_RUN, overwrite=False)
    assert save(store, 2.0, OF_ANOTHER_RUN).weights_version == "run:another:0"
    assert value_of(store) == 2.0


def test_a_state_is_never_written_over_before_its_manifest_is_replaced(store, monkeypatch):
    save(store, 1.0, INFO)
    with monkeypatch.context() as patch:
        disk = FailingDisk(patch, first=1000)
        save(store, 2.0, OF_ANOTHER_RUN)
        steps = len(disk.steps)
    for first in range(steps):
        save(store, 1.0, INFO)
        with monkeypatch.context() as patch:
            FailingDisk(patch, first)
            with suppress(StorageError):
                save(store, 2.0, OF_ANOTHER_RUN)
        assert value_of(store) in (1.0, 2.0)
