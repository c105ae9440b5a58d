"""A checkpoint is there whole or not at all, and never loads damaged."""

import errno
import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest

from distill.errors import (
    AlreadyExistsError,
    CorruptDataError,
    InvalidFieldError,
    NotFoundError,
)
from student_service.runs import state_files
from student_service.runs.checkpoints import CheckpointStore
from student_service.runs.manifests import format_manifest, parse_manifest
from student_service.runs.state_files import state_name

INFO = {
    "name": "first",
    "step": 3,
    "sequence_number": 7,
    "writer_epoch": 1,
    "weights_version": "run:6",
}
LATER = INFO | {"sequence_number": 8}
ENVIRONMENT = {"compute_dtype": "float32", "device_kind": "cpu"}


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(tmp_path, environment=ENVIRONMENT)


def arrays(value=1.0):
    return {
        "parameters/q_proj/a": np.full((2, 3), value, np.float32),
        "adam_step_count": np.int32(4),
    }


def save(store, value=1.0, info=INFO, **options):
    return store.save("run", info, arrays(value), **({"overwrite": False} | options))


def value_of(store, name="first"):
    return store.load("run", name)[1]["parameters/q_proj/a"][0, 0]


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
        save(store, 2.0, LATER)
    assert value_of(store) == 1.0
    save(store, 2.0, LATER, overwrite=True)
    assert value_of(store) == 2.0
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 2  # no state left behind


def test_a_state_that_cannot_be_removed_does_not_fail_the_checkpoint_that_replaced_it(
    store, monkeypatch, caplog
):
    save(store)
    genuine = Path.unlink
    with monkeypatch.context() as patch:

        def busy(path, **options):
            if path.name == state_name(INFO, taken=None):
                raise PermissionError(errno.EACCES, "busy", path)
            genuine(path, **options)

        patch.setattr(Path, "unlink", busy)
        save(store, 2.0, LATER, overwrite=True)
    assert value_of(store) == 2.0
    assert "cannot remove the old states of first: busy" in caplog.text


@pytest.mark.parametrize("moment", ["before the digest", "before the arrays"])
def test_overwriting_while_a_reader_is_between_manifest_and_state_is_no_data_loss(
    store, monkeypatch, moment
):
    save(store)
    stage = "open_file" if moment == "before the digest" else "read_safetensors"
    genuine, overwritten = getattr(state_files, stage), []

    def read(argument):
        if not overwritten:
            overwritten.append(True)
            save(store, 2.0, LATER, overwrite=True)
        return genuine(argument)

    monkeypatch.setattr(state_files, stage, read)
    manifest, loaded = store.load("run", "first")
    # Once open, a state that is removed can still be read, and belongs to the earlier manifest.
    expected = (2.0, 8) if moment == "before the digest" else (1.0, 7)
    assert (loaded["parameters/q_proj/a"][0, 0], manifest["sequence_number"]) == expected


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
                if parse_manifest(bytes(content), "run", "first") != expected:
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
    "fields",
    [
        {"step": "3"},
        {"state_sha256": None},
        {"state_file": 5},
        {"writer_epoch": None},
        {"trained_on": "a CPU"},
        {"name": "second"},
        {"run_id": "other"},
    ],
)
def test_a_manifest_of_wrong_types_or_of_another_checkpoint_is_data_loss(store, tmp_path, fields):
    save(store)
    content = dict(store.manifest("run", "first")) | fields
    manifest_of(tmp_path).write_text(format_manifest(content))
    with pytest.raises(CorruptDataError, match=f"{next(iter(fields))} is "):
        store.load("run", "first")


def test_a_damaged_manifest_takes_no_other_checkpoint_out_of_the_list(store, tmp_path, caplog):
    for name in ("first", "second", "third"):
        store.save("run", INFO | {"name": name}, arrays(), overwrite=False)
    manifest_of(tmp_path, "second").write_text("{")
    assert [info.name for info in store.list("run")] == ["first", "third"]
    assert "'second'" in caplog.text


def test_a_damaged_checkpoint_can_be_overwritten_and_only_so(store, tmp_path):
    save(store)
    store.save("run", INFO | {"name": "first-7"}, arrays(), overwrite=False)
    manifest_of(tmp_path).write_text("{")
    with pytest.raises(AlreadyExistsError):
        save(store, info=LATER)
    save(store, 2.0, LATER, overwrite=True)
    assert value_of(store) == 2.0
    # The state of the damaged one is gone, that of its neighbour is not.
    assert len(list((tmp_path / "run" / "checkpoints").iterdir())) == 4
    assert store.load("run", "first-7")


def test_broken_or_foreign_manifest_is_data_loss(store, tmp_path):
    save(store)
    manifest = tmp_path / "run" / "checkpoints" / "first.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"format_version": 99}))
    with pytest.raises(CorruptDataError, match="format 99, this service reads 3: load it with"):
        store.manifest("run", "first")
    manifest.write_text(json.dumps(content | {"format_version": 2}))
    with pytest.raises(CorruptDataError, match=r"format 2, .* or save over it with overwrite"):
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


def test_a_state_of_format_2_goes_when_its_checkpoint_is_overwritten(store, tmp_path):
    directory = tmp_path / "run" / "checkpoints"
    directory.mkdir(parents=True)
    (directory / f"first-{'0a' * 16}.safetensors").write_bytes(b"old")
    (directory / "first.json").write_text('{"format_version": 2}')
    save(store, overwrite=True)
    assert sorted(path.name for path in directory.iterdir()) == [
        state_name(INFO, taken=None),
        "first.json",
    ]


def test_a_manifest_says_which_mutation_made_it_and_on_what_it_was_trained(store):
    save(store)
    manifest = store.manifest("run", "first")
    assert (manifest["writer_epoch"], manifest["sequence_number"]) == (1, 7)
    assert manifest["state_file"] == "first-1-7.safetensors"
    assert manifest["trained_on"] == ENVIRONMENT


def test_a_load_on_another_device_is_legal_and_logged(store, tmp_path, caplog):
    save(store)
    elsewhere = CheckpointStore(tmp_path, environment=ENVIRONMENT | {"device_kind": "H200"})
    with caplog.at_level(logging.INFO):
        store.load("run", "first")
        assert caplog.records == []
        elsewhere.load("run", "first")
    assert "device_kind cpu there, H200 here" in caplog.text
    assert "compute_dtype" not in caplog.text


def test_a_repeated_save_changes_nothing_and_gets_the_same_info(store, tmp_path):
    saved = save(store)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert save(store) == saved
    assert save(store, overwrite=True) == saved
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("other", [{"sequence_number": 8}, {"writer_epoch": 2}])
def test_another_mutation_finds_the_name_taken(store, other):
    save(store)
    with pytest.raises(AlreadyExistsError):
        save(store, info=INFO | other)


def test_a_repeated_save_mends_its_own_damaged_state(store, tmp_path):
    save(store)
    (tmp_path / "run" / "checkpoints" / state_name(INFO, taken=None)).write_bytes(b"damaged")
    save(store)
    assert value_of(store) == 1.0


def test_nothing_of_a_deleted_run_is_left_and_other_runs_stay(store, tmp_path):
    save(store)
    store.save("other", INFO, arrays(), overwrite=False)
    store.delete_all("run")
    assert store.list("run") == []
    assert [path.name for path in tmp_path.iterdir()] == ["other"]
    store.delete_all("run")  # there is nothing, and that is no failure


def test_what_a_killed_deletion_left_is_removed_at_the_start_and_nothing_else(store, tmp_path):
    save(store)
    shutil.copytree(tmp_path / "run", tmp_path / ".deleted-other")
    store.remove_deleted()
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert value_of(store) == 1.0


def test_a_run_made_again_after_a_deletion_that_failed_is_deleted_with_what_was_left(
    store, tmp_path
):
    save(store)
    (tmp_path / "run").rename(tmp_path / ".deleted-run")
    save(store)
    store.delete_all("run")
    assert list(tmp_path.iterdir()) == []
