"""Files that a run reads back carry the SHA-256 of their content, so that damage is found before it acts.

    JSON            one more key, "sha256": of the file's name and all other keys
    safetensors     one more entry of the metadata, "sha256": of the file's name, its header and its tensors

A file of an earlier version of imprompt has no such entry and is read unchecked.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imprompt.runtime.output import write_if_changed

DIGEST_KEY = "sha256"
"""Under which a file holds its own digest."""

MAX_JSON_BYTES = 64 * 1024 * 1024
"""The largest JSON file of a run that is read back; a receipt with 100,000 skipped samples has 10 MB."""

_METADATA = "__metadata__"


def hash_json(name: str, values: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a file's name and values, independent of spacing and order."""
    return hashlib.sha256(json.dumps([name, values], sort_keys=True).encode()).hexdigest()


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write values with their digest, atomically; a file that holds them already is left untouched.

    Raises:
        OutputError: it cannot be written
    """
    whole = {**values, DIGEST_KEY: hash_json(path.name, values)}
    try:
        text = json.dumps(whole, indent=1, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a file name whose bytes are no UTF-8
        text = json.dumps(whole, indent=1).encode()
    write_if_changed(path, text + b"\n")


def read_json(path: Path) -> dict[str, Any] | None:
    """Read what `write_json` wrote, without the digest.

    Returns:
        None if there is no such file, or it is no JSON object, or not what was written
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
            return None
        values = json.loads(path.read_bytes())
        if not isinstance(values, dict):
            return None
        digest = values.pop(DIGEST_KEY, None)
        return values if digest in (None, hash_json(path.name, values)) else None
    except (OSError, ValueError, RecursionError):  # ValueError: no JSON, no UTF-8, 5,000 digits
        return None


def add_digest(data: bytes, name: str) -> bytes:
    """Add the digest to a serialized safetensors file.

    Args:
        data: the file
        name: what it will be called, without folder and suffix
    """
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), memoryview(data)[8 + length :]
    header.setdefault(_METADATA, {})[DIGEST_KEY] = hash_tensors(name, header, body)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8 bytes
    return b"".join([len(text).to_bytes(8, "little"), text, body])


def hash_tensors(name: str, header: Mapping[str, Any], body: memoryview) -> str:
    """Return the SHA-256 of a safetensors file without the digest in its header.

    Args:
        name: of the file, without folder and suffix: one that took another's place is found too
        header: as the file holds it
        body: everything after the header
    """
    about = {key: value for key, value in header.get(_METADATA, {}).items() if key != DIGEST_KEY}
    words = json.dumps([name, {**header, _METADATA: about}], sort_keys=True)
    digest = hashlib.sha256(words.encode())
    digest.update(body)
    return digest.hexdigest()
