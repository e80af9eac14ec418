"""Files of the hub: fetched within a time limit, resumed after a lost connection, and checked by their hash.

The hub states the size and the hash of a file before it sends the file. Received bytes stay in the cache of
the hub's client, and a later attempt resumes from them. No attempt waits longer than PATIENCE for the next
byte. ATTEMPTS in a row without progress end with an error of one sentence, so a silent hub costs a minute.
"""

import hashlib
import http.client
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from imprompt.errors import UnknownModel
from imprompt.runtime.files import shorten
from imprompt.runtime.foreign_models import first_line
from imprompt.runtime.progress import show_progress

PATIENCE = 10.0
"""Number of seconds without a byte after which a connection counts as lost."""

ATTEMPTS = 3
"""Number of successive attempts without progress after which a download fails."""

PAUSE = 1.0
"""Number of seconds between two attempts."""

SLOWEST = 1024
"""Bytes per second, over three times PATIENCE; a slower connection counts as lost."""

_CHUNK = 1 << 16
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REASONS = {
    "HFValidationError": "there is no such folder, and repositories of the hub are named owner/name",
    "RepositoryNotFoundError": "the hub has no such repository, or it is private: log in to the hub",
    "GatedRepoError": "its owner must grant you access: request it on its page, then log in to the hub",
    "EntryNotFoundError": "the repository has no such file",
    "RemoteEntryNotFoundError": "the repository has no such file",
    "TimeoutException": f"the hub does not answer within {PATIENCE:.0f} seconds",
    "Timeout": f"the hub does not answer within {PATIENCE:.0f} seconds",
    "LocalEntryNotFoundError": "",  # a subclass of EntryNotFoundError whose own message says more
}


class FetchFault(Exception):
    """A file cannot be fetched; the message is a phrase. It never leaves this module."""


def fetch_file(repository: str, file: str, revision: str | None = None) -> Path:
    """Return a file of the hub, from the cache or fetched, after comparing its hash.

    Args:
        repository: "owner/name"
        file: its path in the repository
        revision: branch, tag or commit; by default the main branch

    Raises:
        UnknownModel: the file is not in the cache and cannot be fetched, or has another hash than the hub
            states
    """
    try:
        return _fetch(repository, file, revision)
    except Exception as error:  # the network and the client may fail in any way
        raise UnknownModel(
            f"{repository}:{file} is not here and cannot be fetched: {_explain(error)}"
        ) from error


def fetch_existing_files(repository: str, files: Sequence[str]) -> list[Path]:
    """Fetch those of several files that exist in the repository, as `fetch_file` does.

    Raises:
        UnknownModel: an existing file cannot be fetched
    """
    from huggingface_hub.errors import EntryNotFoundError

    paths: list[Path] = []
    for file in files:
        try:
            paths.append(fetch_file(repository, file))
        except UnknownModel as error:
            if not isinstance(error.__cause__, EntryNotFoundError):
                raise
    return paths


def _fetch(repository: str, file: str, revision: str | None) -> Path:
    import huggingface_hub

    try:
        metadata = huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(repository, file, revision=revision), timeout=PATIENCE
        )
    except Exception as error:  # the cache may still have the file
        return _check_hash(_find_in_cache(repository, file, revision, error))
    if (
        metadata.commit_hash
        and metadata.etag
        and metadata.size is not None
        and _DIGEST.fullmatch(metadata.etag)
    ):
        cached = huggingface_hub.try_to_load_from_cache(repository, file, revision=metadata.commit_hash)
        if not isinstance(cached, str):
            _fetch_blob(repository, metadata.etag, metadata.size, metadata.location)
    return _check_hash(Path(huggingface_hub.hf_hub_download(repository, file, revision=revision)))


def _find_in_cache(repository: str, file: str, revision: str | None, reason: Exception) -> Path:
    import huggingface_hub

    # In offline mode the client itself looks in its cache.
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return Path(huggingface_hub.hf_hub_download(repository, file, revision=revision))
    try:
        return Path(
            huggingface_hub.hf_hub_download(repository, file, revision=revision, local_files_only=True)
        )
    except Exception as error:  # the client may fail in any way
        raise reason from error


def _check_hash(path: Path) -> Path:
    """Return the file, if its content has the hash that is its name in the cache."""
    blob = path.resolve()
    if _DIGEST.fullmatch(blob.name) and not _has_digest(blob, blob.name):
        raise FetchFault(
            f"the copy in the cache is damaged (its hash differs from the hub's); delete {blob} and run again"
        )
    return path


def _has_digest(path: Path, digest: str) -> bool:
    """Whether a file has this SHA-256, or this SHA-1, either plain or as a git blob."""
    if len(digest) == 64:
        return _compute_digest(path, hashlib.sha256()) == digest
    git = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    plain = hashlib.sha1(usedforsecurity=False)
    return digest in (_compute_digest(path, git), _compute_digest(path, plain))


def _compute_digest(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# The download


def _fetch_blob(repository: str, digest: str, size: int, url: str) -> None:
    """Download a file into the hub client's cache, under its hash, where the client looks for it."""
    from huggingface_hub import constants

    blob = Path(constants.HF_HUB_CACHE, f"models--{repository.replace('/', '--')}", "blobs", digest)
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{digest}.imprompt-part")
    with show_progress(f"fetching {repository}", size) as advance:
        _download(url, part, size, advance)
    if not _has_digest(part, digest):
        part.unlink()
        raise FetchFault("the received file is damaged (its hash differs from the hub's); try again")
    part.replace(blob)


def _download(url: str, part: Path, size: int, advance: Callable[[int], None]) -> None:
    received, failures = _size(part), 0
    advance(received)
    while _size(part) != size:
        reason = _receive(url, part, size, advance)
        if _size(part) == size:
            return
        failures = 0 if _size(part) > received else failures + 1
        received = max(received, _size(part))
        if failures >= ATTEMPTS:
            later = "run again to resume" if received else "try again later"
            raise FetchFault(
                f"{reason}, after {received:,} of {size:,} bytes and {ATTEMPTS} attempts; {later}"
            )
        time.sleep(PAUSE)


def _receive(url: str, part: Path, size: int, advance: Callable[[int], None]) -> str:
    """Append the bytes of one connection; return why the connection ended."""
    begin = _size(part)
    if begin > size:
        part.unlink()
        begin = 0
    try:
        with urllib.request.urlopen(_request(url, begin), timeout=PATIENCE) as response:
            resumes = begin > 0 and response.status == 206
            with part.open("ab" if resumes else "wb") as file:
                _copy(response, file, advance)
    except urllib.error.HTTPError as error:
        error.close()
        reason = f"the hub answers {error.code} {error.reason}"
        if error.code in (401, 403, 404, 410):  # further attempts would get the same answer
            raise FetchFault(reason) from error
        return reason
    except TimeoutError:
        return f"the hub has sent nothing, or next to nothing, for {PATIENCE:.0f} seconds"
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
        return f"the connection failed ({shorten(first_line(error))})"
    return "the connection was cut"


def _copy(response: Any, file: Any, advance: Callable[[int], None]) -> None:
    start, count = time.monotonic(), 0
    while chunk := response.read1(_CHUNK):
        file.write(chunk)
        advance(len(chunk))
        count += len(chunk)
        seconds = time.monotonic() - start
        if seconds > 3 * PATIENCE:
            if count < SLOWEST * seconds:
                raise TimeoutError
            start, count = time.monotonic(), 0


def _request(url: str, begin: int) -> urllib.request.Request:
    import huggingface_hub

    headers = huggingface_hub.utils.build_hf_headers()
    secret = headers.pop("authorization", None)
    request = urllib.request.Request(url, headers={**headers, "Accept-Encoding": "identity"})
    if begin:
        request.add_header("Range", f"bytes={begin}-")
    # The hub redirects large files to other hosts, which must not receive the token.
    if secret and urlsplit(url).netloc == urlsplit(huggingface_hub.constants.ENDPOINT).netloc:
        request.add_unredirected_header("Authorization", secret)
    return request


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _explain(error: Exception) -> str:
    if isinstance(error, FetchFault):
        return str(error)
    names = (kind.__name__ for kind in type(error).__mro__)
    return next((_REASONS[name] for name in names if name in _REASONS), "") or shorten(first_line(error))
