"""Files of the hub: fetched within a stated time, going on where a connection was cut, and checked.

The hub says how large a file is and what its hash is before it sends it. What has arrived stays in the hub
client's own cache, beside its finished files, and a later attempt goes on from there. No attempt waits longer
than PATIENCE for the next byte, and after ATTEMPTS in a row that got no further the answer is one sentence: a
hub that is silent is given up after a minute.
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
from imprompt.runtime.progress import show_progress

PATIENCE = 10.0
"""Seconds without a byte after which a connection counts as lost."""

ATTEMPTS = 3
"""How many attempts, one after another, may get no further than those before."""

PAUSE = 1.0
"""Seconds between two attempts."""

SLOWEST = 1024
"""Bytes a second, over three times PATIENCE; a connection that is slower counts as lost."""

_CHUNK = 1 << 16
_DIGEST = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REASONS = {
    "RepositoryNotFoundError": "the hub has no such repository, or it is private: log in to the hub",
    "GatedRepoError": "its owner must let you in: ask on its page, then log in to the hub",
    "EntryNotFoundError": "the repository has no such file",
    "RemoteEntryNotFoundError": "the repository has no such file",
    "TimeoutException": f"the hub does not answer within {PATIENCE:.0f} seconds",
    "Timeout": f"the hub does not answer within {PATIENCE:.0f} seconds",
    "LocalEntryNotFoundError": "",  # a kind of EntryNotFoundError; its own words say more
}


class FetchFault(Exception):
    """Why a file cannot be had, a phrase. It never leaves this module."""


def fetch_file(repository: str, file: str) -> Path:
    """Return a file of the hub, from the cache if it is there, else fetched; its hash is compared.

    Args:
        repository: "owner/name"
        file: its path in the repository

    Raises:
        UnknownModel: it is not here and cannot be fetched, or what is here is not what the hub holds
    """
    try:
        return _fetch(repository, file)
    except Exception as error:  # another library and a network: this may fail in any way
        raise UnknownModel(
            f"{repository}:{file} is not here and cannot be fetched: {_reason(error)}"
        ) from error


def fetch_existing_files(repository: str, files: Sequence[str]) -> list[Path]:
    """Fetch those of several files that the repository has, as `fetch_file` does.

    Raises:
        UnknownModel: one that is there cannot be fetched
    """
    from huggingface_hub.errors import EntryNotFoundError

    found: list[Path] = []
    for file in files:
        try:
            found.append(fetch_file(repository, file))
        except UnknownModel as error:
            if not isinstance(error.__cause__, EntryNotFoundError):
                raise
    return found


def _fetch(repository: str, file: str) -> Path:
    import huggingface_hub

    try:
        known = huggingface_hub.get_hf_file_metadata(
            huggingface_hub.hf_hub_url(repository, file), timeout=PATIENCE
        )
    except Exception as error:  # as above; the cache may have the file all the same
        return _checked(_from_cache(repository, file, error))
    if known.commit_hash and known.etag and known.size is not None and _DIGEST.fullmatch(known.etag):
        here = huggingface_hub.try_to_load_from_cache(repository, file, revision=known.commit_hash)
        if not isinstance(here, str):
            _fetch_blob(repository, known.etag, known.size, known.location)
    return _checked(Path(huggingface_hub.hf_hub_download(repository, file)))


def _from_cache(repository: str, file: str, why: Exception) -> Path:
    import huggingface_hub

    # In offline mode the client looks in its cache by itself.
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return Path(huggingface_hub.hf_hub_download(repository, file))
    try:
        return Path(huggingface_hub.hf_hub_download(repository, file, local_files_only=True))
    except Exception as error:  # as above
        raise why from error


def _checked(path: Path) -> Path:
    """The file, if its content has the hash that the hub's cache names it after."""
    blob = path.resolve()
    if _DIGEST.fullmatch(blob.name) and not _has_digest(blob, blob.name):
        raise FetchFault(f"the copy in the cache is not what the hub holds; delete {blob} and run again")
    return path


def _has_digest(path: Path, digest: str) -> bool:
    """Whether a file has this SHA-256; or this SHA-1, of itself or as git counts it."""
    if len(digest) == 64:
        return _digest_of(path, hashlib.sha256()) == digest
    git = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    plain = hashlib.sha1(usedforsecurity=False)
    return digest in (_digest_of(path, git), _digest_of(path, plain))


def _digest_of(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


# The download


def _fetch_blob(repository: str, digest: str, size: int, url: str) -> None:
    """Put a file's content into the hub's cache, under its hash, where the hub's client looks for it."""
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
        raise FetchFault("what arrived is not what the hub says it holds (its hash is another); try again")
    part.replace(blob)


def _download(url: str, part: Path, size: int, advance: Callable[[int], None]) -> None:
    furthest, failures = _size(part), 0
    advance(furthest)
    while _size(part) != size:
        why = _receive(url, part, size, advance)
        if _size(part) == size:
            return
        failures = 0 if _size(part) > furthest else failures + 1
        furthest = max(furthest, _size(part))
        if failures >= ATTEMPTS:
            later = "run again, and it goes on from there" if furthest else "try again later"
            raise FetchFault(f"{why}, after {furthest:,} of {size:,} bytes and {ATTEMPTS} attempts; {later}")
        time.sleep(PAUSE)


def _receive(url: str, part: Path, size: int, advance: Callable[[int], None]) -> str:
    """Append what one connection gives; say why it ended."""
    begin = _size(part)
    if begin > size:
        part.unlink()
        begin = 0
    try:
        with urllib.request.urlopen(_request(url, begin), timeout=PATIENCE) as response:
            goes_on = begin > 0 and response.status == 206
            with part.open("ab" if goes_on else "wb") as file:
                _copy(response, file, advance)
    except urllib.error.HTTPError as error:
        error.close()
        why = f"the hub answers {error.code} {error.reason}"
        if error.code in (401, 403, 404, 410):  # and will answer so again
            raise FetchFault(why) from error
        return why
    except TimeoutError:
        return f"the hub has sent nothing, or next to nothing, for {PATIENCE:.0f} seconds"
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError) as error:
        return f"the connection failed ({_first_line(error)})"
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
    # The hub sends large files from elsewhere: who is logged in is nobody's business there.
    if secret and urlsplit(url).netloc == urlsplit(huggingface_hub.constants.ENDPOINT).netloc:
        request.add_unredirected_header("Authorization", secret)
    return request


def _size(path: Path) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


def _reason(error: Exception) -> str:
    if isinstance(error, FetchFault):
        return str(error)
    names = (kind.__name__ for kind in type(error).__mro__)
    return next((_REASONS[name] for name in names if name in _REASONS), "") or _first_line(error)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return shorten(lines[0]) if lines else type(error).__name__
