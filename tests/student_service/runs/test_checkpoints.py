"""A checkpoint is there whole or not at all, and never loads damaged."""

import json
from pathlib import Path

import numpy as np
import pytest

from distill.errors import (
    AlreadyExistsError,
    CorruptDataError,
    InvalidFieldError,
    NotFoundError,
)
from student_service.runs import checkpoints
from student_service.runs.checkpoints import CheckpointStore, format_manifest, parse_manifest

INFO = {"name": "first", "step": 3, "sequence_number": 7, "weights_version": "run:6"}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path)


def arrays(value=1.0):
    return {"trainable/q_proj/a": np.full((2, 3), value, np.float32), "count": np.int32([4])}


def save(store, value=1.0, **options):
    return store.save("run", INFO, arrays(value), **({"overwrite": False} | options))


def test_saved_arrays_and_numbers_come_back(store):
    saved = save(store)
    manifest, loaded = store.load("run", "first")
    assert (saved.step, saved.sequence_number) == (3, 7)
    assert manifest["weights_version"] == "run:6"
    for name, array in arrays().items():
        np.testing.assert_array_equal(loaded[name], array)
        assert loaded[name].dtype == array.dtype


def test_taken_name_is_refused_unless_overwritten(store, tmp_path):
    save(store)
    with pytest.raises(AlreadyExistsError, match="overwrite"):
        save(store, value=2.0)
    assert store.load("run", "first")[1]["trainable/q_proj/a"][0, 0] == 1.0
    save(store, value=2.0, overwrite=True)
    assert store.load("run", "first")[1]["trainable/q_proj/a"][0, 0] == 2.0
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2  # no state left behind


def test_a_state_that_cannot_be_removed_does_not_fail_the_checkpoint_that_replaced_it(
    store, monkeypatch, caplog
):
    save(store)
    with monkeypatch.context() as patch:

        def busy(path, **_options):
            raise PermissionError(path)

        patch.setattr(Path, "unlink", busy)
        save(store, value=2.0, overwrite=True)
    assert store.load("run", "first")[1]["trainable/q_proj/a"][0, 0] == 2.0
    assert "cannot remove the old state first-" in caplog.text


@pytest.mark.parametrize("stage", ["save_file", "sync", "_file_digest", "write_aside"])
def test_interrupted_save_leaves_the_checkpoint_before_it(store, tmp_path, monkeypatch, stage):
    save(store)
    genuine = checkpoints.save_file

    def fail(*arguments):
        if stage == "save_file":
            genuine(*arguments)  # a part of it is there
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, stage, fail)
        with pytest.raises(OSError, match="disk"):
            save(store, value=2.0, overwrite=True)
    assert [info.name for info in store.list("run")] == ["first"]
    assert store.load("run", "first")[1]["trainable/q_proj/a"][0, 0] == 1.0
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2  # nothing of the failed one


def test_a_save_that_fails_after_the_rename_leaves_the_new_checkpoint_whole(store, monkeypatch):
    save(store)

    def fail(aside, path):
        aside.replace(path)
        raise OSError("the disk is gone")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "put_in_place", fail)
        with pytest.raises(OSError, match="disk"):
            save(store, value=2.0, overwrite=True)
    assert store.load("run", "first")[1]["trainable/q_proj/a"][0, 0] == 2.0


@pytest.mark.parametrize("moment", ["before the digest", "before the arrays"])
def test_overwriting_while_a_reader_is_between_manifest_and_state_is_no_data_loss(
    store, monkeypatch, moment
):
    save(store)
    stage = "_file_digest" if moment == "before the digest" else "load_file"
    genuine, overwritten = getattr(checkpoints, stage), []

    def read(path):
        if not overwritten:
            overwritten.append(True)
            save(store, value=2.0, overwrite=True)
        return genuine(path)

    monkeypatch.setattr(checkpoints, stage, read)
    manifest, loaded = store.load("run", "first")
    assert loaded["trainable/q_proj/a"][0, 0] == 2.0
    assert manifest == store.manifest("run", "first")


@pytest.mark.parametrize("position", [0, 9, -1])
def test_flipped_byte_is_data_loss(store, tmp_path, position):
    save(store)
    (state,) = (tmp_path / "run" / "checkpoints").glob("*.safetensors")
    content = bytearray(state.read_bytes())
    content[position] ^= 1
    state.write_bytes(content)
    with pytest.raises(CorruptDataError, match="digest"):
        store.load("run", "first")


def test_missing_state_is_data_loss_and_missing_manifest_is_not_found(store, tmp_path):
    save(store)
    (state,) = (tmp_path / "run" / "checkpoints").glob("*.safetensors")
    state.unlink()
    with pytest.raises(CorruptDataError):
        store.load("run", "first")
    with pytest.raises(NotFoundError, match="'second'"):
        store.load("run", "second")


def manifest_of(tmp_path, name="first"):
    return tmp_path / "run" / "checkpoints" / f"{name}.json"


def test_a_flipped_bit_anywhere_in_a_manifest_is_data_loss(store, tmp_path):
    save(store)
    genuine, expected = manifest_of(tmp_path).read_bytes(), store.manifest("run", "first")
    unnoticed = []
    for position in range(len(genuine)):
        for bit in range(8):
            content = bytearray(genuine)
            content[position] ^= 1 << bit
            try:
                # JSON may say the same in other letters: 1e9 and 1E9.
                if parse_manifest(bytes(content), "first") != expected:
                    unnoticed.append((position, bit))
            except CorruptDataError:
                pass
    assert unnoticed == []


def test_a_changed_number_or_a_missing_key_of_a_manifest_is_data_loss(store, tmp_path):
    save(store)
    path = manifest_of(tmp_path)
    content = json.loads(path.read_text())
    for key in content:
        path.write_text(json.dumps({other: content[other] for other in content if other != key}))
        with pytest.raises(CorruptDataError):
            store.load("run", "first")
    path.write_text(json.dumps(content | {"step": content["step"] + 1}))
    with pytest.raises(CorruptDataError, match="digest"):
        store.load("run", "first")


@pytest.mark.parametrize(
    "fields", [{"step": "3"}, {"state_sha256": None}, {"state_file": 5}, {"name": "second"}]
)
def test_a_manifest_of_wrong_types_or_of_another_checkpoint_is_data_loss(store, tmp_path, fields):
    save(store)
    content = dict(store.manifest("run", "first")) | fields
    manifest_of(tmp_path).write_text(format_manifest(content))
    with pytest.raises(
        CorruptDataError, match=next(iter(fields)) if "name" not in fields else "of 's"
    ):
        store.load("run", "first")


def test_a_damaged_manifest_takes_no_other_checkpoint_out_of_the_list(store, tmp_path, caplog):
    for name in ("first", "second", "third"):
        store.save("run", INFO | {"name": name}, arrays(), overwrite=False)
    manifest_of(tmp_path, "second").write_text("{")
    assert [info.name for info in store.list("run")] == ["first", "third"]
    assert "'second'" in caplog.text


def test_a_damaged_checkpoint_can_be_overwritten_and_only_so(store, tmp_path):
    save(store)
    store.save("run", INFO | {"name": f"first-{'0' * 32}"}, arrays(), overwrite=False)
    manifest_of(tmp_path).write_text("{")
    with pytest.raises(AlreadyExistsError):
        save(store)
    save(store, value=2.0, overwrite=True)
    assert store.load("run", "first")[1]["trainable/q_proj/a"][0, 0] == 2.0
    # The state of the damaged one is gone, that of its neighbour is not.
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 4
    assert store.load("run", f"first-{'0' * 32}")


def test_broken_or_foreign_manifest_is_data_loss(store, tmp_path):
    save(store)
    manifest = tmp_path / "run" / "checkpoints" / "first.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(CorruptDataError, match="format 99"):
        store.manifest("run", "first")
    manifest.write_text("{")
    with pytest.raises(CorruptDataError, match="JSON"):
        store.manifest("run", "first")


def test_checkpoints_are_listed_oldest_first(store):
    for name in ("zeta", "alpha", "middle"):
        store.save("run", INFO | {"name": name}, arrays(), overwrite=False)
    assert [info.name for info in store.list("run")] == ["zeta", "alpha", "middle"]
    assert store.list("other") == []


@pytest.mark.parametrize("name", ["../../other/checkpoints/first", "/etc/x", "", ".x", "a\0b"])
def test_what_is_no_name_reaches_no_file(store, tmp_path, name):
    store.save("other", INFO, arrays(), overwrite=False)
    before = sorted(tmp_path.rglob("*"))
    for call in (
        lambda: store.manifest("run", name),
        lambda: store.load("run", name),
        lambda: store.load(name, "first"),
        lambda: store.list(name),
        lambda: store.delete_all(name),
        lambda: store.save("run", INFO | {"name": name}, arrays(), overwrite=True),
        lambda: store.save(name, INFO, arrays(), overwrite=True),
    ):
        with pytest.raises(InvalidFieldError):
            call()
    assert [path for path in sorted(tmp_path.rglob("*")) if path.is_file()] == [
        path for path in before if path.is_file()
    ]


def test_a_link_in_place_of_a_manifest_is_not_followed(store, tmp_path):
    save(store)
    directory = tmp_path / "run" / "checkpoints"
    (directory / "linked.json").symlink_to(directory / "first.json")
    with pytest.raises(NotFoundError):
        store.manifest("run", "linked")
