"""The description of a checkpoint: JSON with a digest of its own, so that no damage loads silently.

A manifest says which mutation made the checkpoint (`writer_epoch`, `sequence_number`), which file
holds its state, and on what it was trained.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from distill.errors import CorruptDataError
from distill.files import parse_json_object

FORMAT_VERSION = 3
"""It grows when the files change in a way that other code would misread. 2: with a digest.
3: the arrays have names of this project's own, and the manifest says which mutation made it."""

MAX_MANIFEST_BYTES = 1 << 20
"""No manifest is longer."""

_DIGEST = "manifest_sha256"


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


_TYPES: Mapping[str, Any] = {
    **{each.name: each.type for each in fields(CheckpointInfo)},
    "run_id": str,
    "writer_epoch": int,
    "state_file": str,
    "state_sha256": str,
    "trained_on": dict,
}
"""What every manifest has; a run adds values of its own."""


def checkpoint_info(manifest: Mapping[str, Any]) -> CheckpointInfo:
    """What callers see of a manifest."""
    return CheckpointInfo(**{each.name: manifest[each.name] for each in fields(CheckpointInfo)})


def format_manifest(manifest: Mapping[str, Any]) -> str:
    """The text of a manifest, with its format and its digest."""
    content = {**manifest, "format_version": FORMAT_VERSION}
    return json.dumps({**content, _DIGEST: _content_digest(content)}, indent=2)


def parse_manifest(encoded: bytes, run_id: str, name: str) -> Mapping[str, Any]:
    """The manifest of the checkpoint of that name of that run.

    Raises:
        CorruptDataError: it is not what `format_manifest` wrote, or that of another checkpoint.
    """
    try:
        content = parse_json_object(encoded)
    except ValueError as error:
        raise CorruptDataError(f"the manifest of checkpoint {name!r} is no JSON object") from error
    version = content.get("format_version")
    if version != FORMAT_VERSION:
        raise CorruptDataError(f"checkpoint {name!r} has {_described(version)}")
    digest = content.pop(_DIGEST, None)
    if digest != _content_digest(content):
        raise CorruptDataError(f"the manifest of checkpoint {name!r} does not match its digest")
    for field, kind in _TYPES.items():
        if not isinstance(content.get(field), kind):
            raise CorruptDataError(
                f"the manifest of checkpoint {name!r}: {field} is {content.get(field)!r}"
            )
    for field, expected in (("name", name), ("run_id", run_id)):
        if content[field] != expected:
            raise CorruptDataError(
                f"the manifest of checkpoint {name!r} of run {run_id!r} is of another one: its "
                f"{field} is {content[field]!r}"
            )
    return content


def _described(version: Any) -> str:
    """Another format, and what to do about it."""
    reads = f"this service reads {FORMAT_VERSION}"
    if type(version) is int and version in range(1, FORMAT_VERSION):
        return (
            f"format {version}, {reads}: load it with the version of the service that saved it and "
            "export its weights there, or save over it with overwrite"
        )
    return f"format {version!r}, {reads}: load it with the version of the service that saved it"


def _content_digest(content: Mapping[str, Any]) -> str:
    # Sorted and without spaces: the digest depends on the values alone, not on their layout.
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
