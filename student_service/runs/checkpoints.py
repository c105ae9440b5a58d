"""Saved states of runs: safetensors beside a JSON manifest, whole or not at all.

Layout: `<root>/<run>/checkpoints/<name>.json` names its state file and that file's digest. The
manifest is renamed into place after its state file is on disk, so a checkpoint that is overwritten
is at every moment either the old one or the new one. A manifest has a digest of its own, so that no
damage loads silently.
"""

import hashlib
import json
import logging
import re
import shutil
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from distill.errors import AlreadyExistsError, CorruptDataError, NotFoundError
from distill.files import parse_json_object, put_in_place, sync, write_aside
from student_service.runs.names import is_name, parse_name

FORMAT_VERSION = 2
"""It grows when the files change in a way that older code would misread. 2: with a digest."""

_LOGGER = logging.getLogger(__name__)

_MANIFEST_DIGEST = "manifest_sha256"


@dataclass(frozen=True, kw_only=True)
class CheckpointInfo:
    """A checkpoint without its arrays."""

    name: str
    """Unique in the run."""

    step: int
    """Optimizer steps of the run when it was saved."""

    sequence_number: int
    """Of the SaveCheckpoint that made it."""

    created_unix_seconds: float
    """When it was saved."""

    weights_version: str
    """Identifies the weights."""

    size_bytes: int
    """Of the state file."""


_MANIFEST_TYPES: Mapping[str, Any] = {
    **{each.name: each.type for each in fields(CheckpointInfo)},
    "state_file": str,
    "state_sha256": str,
}
"""What every manifest has; a run adds values of its own."""


class CheckpointStore:
    """The checkpoints of all runs below one directory.

    The names of runs and checkpoints become parts of a path. The edge has checked them, and the
    store checks them again, because a mistake there would reach other files.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def save(
        self,
        run_id: str,
        info: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray],
        *,
        overwrite: bool,
    ) -> CheckpointInfo:
        """Write a checkpoint.

        Args:
            run_id: the run.
            info: JSON values, among them the fields of CheckpointInfo but size and time.
            arrays: the state by name.
            overwrite: replace a checkpoint of the same name.

        Raises:
            AlreadyExistsError: the name is taken and `overwrite` is false.
        """
        directory = self._directory(run_id)
        directory.mkdir(parents=True, exist_ok=True)
        manifest_path = self._manifest_path(run_id, info["name"])
        # The manifest is not read, so that a damaged one can be replaced too.
        if manifest_path.exists() and not overwrite:
            raise AlreadyExistsError(
                f"name: the run has a checkpoint {info['name']!r} already; set overwrite to "
                "replace it"
            )
        state_path = directory / f"{info['name']}-{uuid.uuid4().hex}.safetensors"
        try:
            save_file(dict(arrays), state_path)
            sync(state_path)
            manifest = {
                **info,
                "created_unix_seconds": time.time(),
                "size_bytes": state_path.stat().st_size,
                "state_file": state_path.name,
                "state_sha256": _file_digest(state_path),
            }
            aside = write_aside(manifest_path, format_manifest(manifest))
        except BaseException:
            # No manifest names this state file, so nothing else would ever remove it.
            state_path.unlink(missing_ok=True)
            raise
        # Outside of the `try`: when this fails, the manifest may name the new state already, and
        # that state must stay.
        put_in_place(aside, manifest_path)
        self._remove_states(directory, info["name"], kept=state_path)
        return _info(manifest)

    @staticmethod
    def _remove_states(directory: Path, name: str, *, kept: Path) -> None:
        """Remove the states that earlier saves of the checkpoint wrote."""
        state_name = re.compile(rf"{re.escape(name)}-[0-9a-f]{{32}}\.safetensors")
        for path in directory.iterdir():
            if path != kept and state_name.fullmatch(path.name):
                try:
                    path.unlink(missing_ok=True)
                except OSError as error:
                    # The new checkpoint is saved already: its save must not fail now.
                    _LOGGER.warning("cannot remove the old state %s: %s", path.name, error)

    def load(self, run_id: str, name: str) -> tuple[Mapping[str, Any], dict[str, np.ndarray]]:
        """The manifest and the arrays of a checkpoint.

        Raises:
            NotFoundError: the run has no such checkpoint.
            CorruptDataError: its state file is missing or does not match its digest, or the
                manifest does not match its own.
        """
        manifest = self.manifest(run_id, name)
        while (arrays := self._arrays(run_id, manifest)) is None:
            previous, manifest = manifest, self.manifest(run_id, name)
            # A save that overwrites the checkpoint between the two reads removes the old state.
            # That is no damage: the new manifest names another state, which is read next.
            if manifest["state_file"] == previous["state_file"]:
                raise CorruptDataError(
                    f"the state of checkpoint {name!r} does not match its digest"
                )
        return manifest, arrays

    def _arrays(self, run_id: str, manifest: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
        """The arrays of a manifest; None where they are missing or do not match it."""
        path = self._directory(run_id) / Path(manifest["state_file"]).name
        try:
            if _file_digest(path) != manifest["state_sha256"]:
                return None
            arrays: dict[str, np.ndarray] = load_file(path)
        except FileNotFoundError:
            return None
        return arrays

    def manifest(self, run_id: str, name: str) -> Mapping[str, Any]:
        """The manifest of a checkpoint. Raises what `load` raises."""
        path = self._manifest_path(run_id, name)
        if not path.is_file() or path.is_symlink():
            raise NotFoundError(f"name: run {run_id!r} has no checkpoint {name!r}")
        try:
            encoded = path.read_bytes()
        except FileNotFoundError:  # deleted since the line above
            raise NotFoundError(f"name: run {run_id!r} has no checkpoint {name!r}") from None
        return parse_manifest(encoded, name)

    def list(self, run_id: str) -> list[CheckpointInfo]:
        """The checkpoints of a run, oldest first; without those whose manifest is damaged."""
        found = []
        for path in self._directory(run_id).glob("*.json"):
            if not is_name(path.stem):
                continue  # no save made this file
            try:
                found.append(_info(self.manifest(run_id, path.stem)))
            except CorruptDataError as error:
                # A load of that checkpoint raises the same error. The list shows the others.
                _LOGGER.warning("run %s: %s", run_id, error)
            except NotFoundError:
                continue  # a link, or removed since the directory was read
        return sorted(found, key=lambda info: info.created_unix_seconds)

    def delete_all(self, run_id: str) -> None:
        """Remove everything of a run."""
        shutil.rmtree(self._directory(run_id).parent, ignore_errors=True)

    def _directory(self, run_id: str) -> Path:
        return self._root / parse_name(run_id, "run_id") / "checkpoints"

    def _manifest_path(self, run_id: str, name: str) -> Path:
        return self._directory(run_id) / f"{parse_name(name, 'name')}.json"


def format_manifest(manifest: Mapping[str, Any]) -> str:
    """The text of a manifest, with its format and its digest."""
    content = {**manifest, "format_version": FORMAT_VERSION}
    return json.dumps({**content, _MANIFEST_DIGEST: _content_digest(content)}, indent=2)


def parse_manifest(encoded: bytes, name: str) -> Mapping[str, Any]:
    """The manifest of the checkpoint of that name.

    Raises:
        CorruptDataError: it is not what `format_manifest` wrote.
    """
    try:
        content = parse_json_object(encoded)
    except ValueError as error:
        raise CorruptDataError(f"the manifest of checkpoint {name!r} is no JSON object") from error
    if content.get("format_version") != FORMAT_VERSION:
        raise CorruptDataError(
            f"checkpoint {name!r} has format {content.get('format_version')}, "
            f"this service reads {FORMAT_VERSION}"
        )
    digest = content.pop(_MANIFEST_DIGEST, None)
    if digest != _content_digest(content):
        raise CorruptDataError(f"the manifest of checkpoint {name!r} does not match its digest")
    for field, kind in _MANIFEST_TYPES.items():
        if not isinstance(content.get(field), kind):
            raise CorruptDataError(
                f"the manifest of checkpoint {name!r}: {field} is {content.get(field)!r}"
            )
    if content["name"] != name:
        raise CorruptDataError(
            f"the manifest of checkpoint {name!r} is that of {content['name']!r}"
        )
    return content


def _info(manifest: Mapping[str, Any]) -> CheckpointInfo:
    return CheckpointInfo(**{name: manifest[name] for name in CheckpointInfo.__dataclass_fields__})


def _content_digest(content: Mapping[str, Any]) -> str:
    # Sorted and without spaces: the digest depends on the values alone, not on their layout.
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
