"""The manifest of a checkpoint: JSON with its own digest, so that no damage loads silently."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from distill.errors import CorruptDataError

FORMAT_VERSION = 2
"""Raised when the files change in a way that older code would misread. 2: with a digest."""

_DIGEST = "manifest_sha256"

_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "name": str,
    "step": int,
    "sequence_number": int,
    "weights_version": str,
    "created_unix_seconds": (float, int),
    "size_bytes": int,
    "state_file": str,
    "state_sha256": str,
}
"""What every manifest has; a run adds values of its own."""


def encode_manifest(manifest: Mapping[str, Any]) -> str:
    """The text of a manifest, with its format and its digest."""
    content = {**manifest, "format_version": FORMAT_VERSION}
    return json.dumps({**content, _DIGEST: _digest(content)}, indent=2)


def decode_manifest(encoded: bytes, name: str) -> Mapping[str, Any]:
    """The manifest of the checkpoint of that name.

    Raises:
        CorruptDataError: it is not what `encode_manifest` wrote.
    """
    try:
        content = json.loads(encoded)
    except ValueError as error:
        raise CorruptDataError(f"the manifest of checkpoint {name!r} is no JSON") from error
    if not isinstance(content, dict):
        raise CorruptDataError(f"the manifest of checkpoint {name!r} is no JSON object")
    if content.get("format_version") != FORMAT_VERSION:
        raise CorruptDataError(
            f"checkpoint {name!r} has format {content.get('format_version')}, "
            f"this service reads {FORMAT_VERSION}"
        )
    digest = content.pop(_DIGEST, None)
    if digest != _digest(content):
        raise CorruptDataError(f"the manifest of checkpoint {name!r} does not match its digest")
    for field, kinds in _TYPES.items():
        if not isinstance(content.get(field), kinds):
            raise CorruptDataError(
                f"the manifest of checkpoint {name!r}: {field} is {content.get(field)!r}"
            )
    if content["name"] != name:
        raise CorruptDataError(
            f"the manifest of checkpoint {name!r} is that of {content['name']!r}"
        )
    return content


def _digest(content: Mapping[str, Any]) -> str:
    # Canonical: it depends on the values alone, not on how they are laid out.
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()
