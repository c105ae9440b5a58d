"""Saved states of runs: safetensors beside a JSON manifest, whole or not at all.

Layout: `<root>/<run>/checkpoints/<name>.json` names its state file,
`<name>-<epoch>-<sequence>.safetensors`, and that file's digest. The manifest is renamed into place
after its state file is on disk, so a checkpoint that is overwritten is at every moment either the
old one or the new one. Epoch and sequence number are those of the mutation that saves: when it
fails and is repeated, it finds its own files, and finishes them.
"""

import errno
import logging
import os
import shutil
import stat
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import AlreadyExistsError, CorruptDataError, DistillError, NotFoundError
from distill.files import (
    NotAFileError,
    make_directory,
    open_file,
    parse_json_object,
    rename_aside,
    sync,
    write_aside,
    write_durably,
)
from student_service.runs.manifests import (
    MAX_MANIFEST_BYTES,
    CheckpointInfo,
    checkpoint_info,
    format_manifest,
    parse_manifest,
)
from student_service.runs.names import is_name, parse_name
from student_service.runs.state_files import (
    is_state_of,
    read_state,
    state_is_whole,
    state_name,
    write_state,
)
from student_service.runs.storage import storage_errors

_LOGGER = logging.getLogger(__name__)

_DELETED = ".deleted-"
"""Begins the name of a run's directory that is being removed. No run's name starts with a dot."""


class CheckpointStore:
    """The checkpoints of all runs below one directory.

    The names of runs and checkpoints become parts of a path. The edge has checked them, and the
    store checks them again, because a mistake there would reach other files. What lies below the
    directory is not trusted to be files: a link is not followed, a pipe is not waited for.

    Whatever the file system refuses is a StorageError, or a StorageFullError.
    """

    def __init__(self, root: Path, *, environment: Mapping[str, str] | None = None) -> None:
        """
        Args:
            root: the directory of runs. This process alone writes there.
            environment: on what runs are trained, kept in the manifests.
        """
        self._root = root
        self._environment = dict(environment or {})

    def save(
        self,
        run_id: str,
        info: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        *,
        overwrite: bool,
    ) -> CheckpointInfo:
        """Write a checkpoint. One that fails leaves what was there before, or can be repeated.

        Args:
            run_id: the run.
            info: JSON values, among them the fields of CheckpointInfo but size and time, and
                `writer_epoch`, which with the sequence number names the mutation that saves.
            arrays: the state by name.
            overwrite: replace a checkpoint of the same name that another mutation has made.

        Raises:
            AlreadyExistsError: the name is taken and `overwrite` is false.
        """
        manifest_path = self._manifest_path(run_id, info["name"])
        directory = manifest_path.parent
        with storage_errors(f"save checkpoint {info['name']!r}"):
            self._check_directories(run_id)
            previous = _read_manifest(manifest_path)
            mine = self._made_by(run_id, info, previous)
            if mine is not None and previous is not None and state_is_whole(directory, mine):
                # This mutation has failed after its manifest was in place, and is repeated.
                write_durably(manifest_path, previous)
                manifest = mine
            elif mine is None and not overwrite and os.path.lexists(manifest_path):
                raise AlreadyExistsError(
                    f"the run has a checkpoint {info['name']!r} already; set overwrite to "
                    "replace it"
                )
            else:
                manifest = self._write(run_id, info, arrays, manifest_path, previous)
        self._remove_states(directory, info["name"], kept=manifest["state_file"])
        return checkpoint_info(manifest)

    @staticmethod
    def _made_by(
        run_id: str, info: Mapping[str, Any], encoded: bytes | None
    ) -> Mapping[str, Any] | None:
        """A manifest, if the mutation that `info` names has made it."""
        if encoded is None:
            return None
        try:
            manifest = parse_manifest(encoded, run_id, info["name"])
        except CorruptDataError:
            return None  # and so one that can be replaced
        # Epoch and number alone are not enough: where the count of processes was lost with its
        # file, they come again, and a save would be answered with another run's checkpoint.
        return manifest if all(manifest.get(key) == info[key] for key in info) else None

    def _write(
        self,
        run_id: str,
        info: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        manifest_path: Path,
        previous: bytes | None,
    ) -> Mapping[str, Any]:
        directory = manifest_path.parent
        state_path = directory / state_name(info, taken=_named_state(previous))
        may_be_named = False
        try:
            make_directory(directory)
            size_bytes, digest = write_state(state_path, arrays)
            manifest = {
                **info,
                "run_id": run_id,
                "created_unix_seconds": time.time(),
                "size_bytes": size_bytes,
                "state_file": state_path.name,
                "state_sha256": digest,
                "trained_on": self._environment,
            }
            rename_aside(write_aside(manifest_path, format_manifest(manifest)), manifest_path)
            may_be_named = True
            sync(directory)
        except BaseException as error:
            if may_be_named and not _put_back(manifest_path, previous):
                # No refusal: that would promise that nothing has changed.
                raise DistillError(
                    f"checkpoint {info['name']!r} may have been saved: the disk did not confirm "
                    "it, and the one before could not be put back; send the request again"
                ) from error
            _remove_failed(state_path)
            raise
        return manifest

    @staticmethod
    def _remove_states(directory: Path, name: str, *, kept: str) -> None:
        """Remove the states that other saves of the checkpoint wrote."""
        # The new checkpoint is saved already: its save must not fail now.
        try:
            for path in directory.iterdir():
                if path.name != kept and is_state_of(name, path.name):
                    path.unlink(missing_ok=True)
        except OSError as error:
            _LOGGER.warning("cannot remove the old states of %s: %s", name, error.strerror)

    def load(self, run_id: str, name: str) -> tuple[Mapping[str, Any], dict[str, np.ndarray]]:
        """The manifest and the arrays of a checkpoint.

        Raises:
            NotFoundError: the run has no such checkpoint.
            CorruptDataError: its state file is missing or does not match its digest, or the
                manifest does not match its own.
        """
        directory = self._directory(run_id)
        with storage_errors(f"load checkpoint {name!r}"):
            manifest = self.manifest(run_id, name)
            while (arrays := read_state(directory, manifest)) is None:
                previous, manifest = manifest, self.manifest(run_id, name)
                # A save that overwrites the checkpoint between the two reads removes the old state.
                # That is no damage: the new manifest names another state, which is read next.
                if manifest["state_file"] == previous["state_file"]:
                    raise CorruptDataError(
                        f"the state of checkpoint {name!r} does not match its digest"
                    )
        self._note_the_move(run_id, manifest)
        return manifest, arrays

    def _note_the_move(self, run_id: str, manifest: Mapping[str, Any]) -> None:
        there, here = manifest["trained_on"], self._environment
        moved = [key for key in here if there.get(key) != here[key]]
        if moved:
            changes = (f"{key} {there.get(key)} there, {here[key]} here" for key in moved)
            _LOGGER.info(
                "run %s loads checkpoint %s from elsewhere: %s",
                run_id,
                manifest["name"],
                "; ".join(changes),
            )

    def manifest(self, run_id: str, name: str) -> Mapping[str, Any]:
        """The manifest of a checkpoint. Raises what `load` raises."""
        path = self._manifest_path(run_id, name)
        with storage_errors(f"read checkpoint {name!r}"):
            self._check_directories(run_id)
            encoded = _read_manifest(path)
        if encoded is None:
            raise NotFoundError(f"run {run_id!r} has no checkpoint {name!r}")
        return parse_manifest(encoded, run_id, name)

    def list(self, run_id: str) -> list[CheckpointInfo]:
        """The checkpoints of a run, oldest first; without those whose manifest is damaged."""
        directory = self._directory(run_id)
        found = []
        with storage_errors(f"list the checkpoints of run {run_id!r}"):
            self._check_directories(run_id)
            for path in sorted(directory.iterdir()) if directory.exists() else ():
                if path.suffix != ".json" or not is_name(path.stem):
                    continue  # no save made this file
                try:
                    found.append(checkpoint_info(self.manifest(run_id, path.stem)))
                except CorruptDataError as error:
                    # A load of that checkpoint raises the same error. The list shows the others.
                    _LOGGER.warning("run %s: %s", run_id, error)
                except NotFoundError:
                    continue  # a link, or removed since the directory was read
        return sorted(found, key=lambda info: info.created_unix_seconds)

    def delete_all(self, run_id: str) -> None:
        """Remove everything of a run. One that fails can be repeated, and goes on.

        Raises:
            StorageError: nothing was removed, or the checkpoints are no longer listed and some of
                their files remain.
        """
        directory = self._directory(run_id).parent
        aside = self._root / f"{_DELETED}{run_id}"
        with storage_errors(f"delete the checkpoints of run {run_id!r}"):
            if os.path.lexists(aside):  # a deletion before this one removed a part
                sync(self._root)
                _remove_tree(aside)
            if os.path.lexists(directory):
                self._put_aside(directory, aside)
                _remove_tree(aside)

    def _put_aside(self, directory: Path, aside: Path) -> None:
        """Rename a run's directory. Afterwards a power cut leaves nothing that could be loaded."""
        directory.rename(aside)
        try:
            sync(self._root)
        except BaseException:
            with suppress(OSError):
                aside.rename(directory)
            raise

    def remove_deleted(self) -> None:
        """Remove what deletions that were killed have left. For the start of a service."""
        for path in self._root.glob(f"{_DELETED}*"):
            try:
                _remove_tree(path)
            except OSError as error:
                # It is in nobody's way: a deletion of that run tries again.
                _LOGGER.warning("cannot remove what is left of a deleted run: %s", error.strerror)

    def _check_directories(self, run_id: str) -> None:
        """Raises NotADirectoryError where something else, such as a link, has the place of one."""
        directory = self._directory(run_id)
        for path in (directory.parent, directory):
            with suppress(FileNotFoundError):
                if not stat.S_ISDIR(path.lstat().st_mode):
                    raise NotADirectoryError(errno.ENOTDIR, "not a directory")

    def _directory(self, run_id: str) -> Path:
        return self._root / parse_name(run_id, "run_id") / "checkpoints"

    def _manifest_path(self, run_id: str, name: str) -> Path:
        return self._directory(run_id) / f"{parse_name(name, 'name')}.json"


def _read_manifest(path: Path) -> bytes | None:
    """What a manifest's file holds; None where there is no file."""
    try:
        with open_file(path) as file:
            return file.read(MAX_MANIFEST_BYTES)
    except (FileNotFoundError, NotAFileError):
        return None


def _named_state(encoded: bytes | None) -> str | None:
    """The state file that a manifest names, whatever else is wrong with it."""
    try:
        named = None if encoded is None else parse_json_object(encoded).get("state_file")
    except ValueError:
        return None
    return named if isinstance(named, str) else None


def _put_back(manifest_path: Path, previous: bytes | None) -> bool:
    """Put a manifest back as it was. Returns whether that is on the disk for certain."""
    try:
        if previous is None:
            manifest_path.unlink(missing_ok=True)
            sync(manifest_path.parent)
        else:
            write_durably(manifest_path, previous)
    except OSError as error:
        # The new state stays, which the manifest may name. A repetition finishes the save.
        _LOGGER.warning("cannot put back the manifest of a failed save: %s", error.strerror)
        return False
    return True


def _remove_failed(state_path: Path) -> None:
    """Remove the state of a failed save, and the directories if they are empty."""
    # The error of the save matters more than one of these.
    with suppress(OSError):
        state_path.unlink(missing_ok=True)
    for directory in (state_path.parent, state_path.parent.parent):
        with suppress(OSError):
            directory.rmdir()


def _remove_tree(path: Path) -> None:
    """Remove a directory with all that it holds; whatever else is there is removed by itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
