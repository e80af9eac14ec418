"""Who may use the server, and from where: keys, hosts and origins, checked before anything is read."""

import hashlib
import hmac
from base64 import b64decode
from binascii import Error as Base64Error
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from imprompt.errors import ConfigError
from imprompt.serving.api_error import ApiError

OPEN_PATHS = ("/healthz", "/readyz")
"""What needs no key: a load balancer has none."""

SIGNED_PATHS = "/v1/files/"
"""Links to pictures, which are signed and need no key either."""

LOOPBACK = ("127.0.0.1", "localhost", "::1")

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_LEAST_CHARACTERS = 16


@dataclass(frozen=True)
class Access:
    """The rules of access.

    Args:
        keys: key → name of its owner; without any, everybody may come
        hosts: allowed names in the Host header; empty: any
        origins: other web pages that may call, such as "https://example.org"
    """

    keys: Mapping[str, str] = field(default_factory=dict)
    hosts: Collection[str] = ()
    origins: Collection[str] = ()

    def check(self, method: str, path: str, headers: Mapping[str, str], address: str) -> str:
        """Let a request in, and return the name of its client.

        Raises:
            ApiError: 401 without a key, 403 from a wrong page, 421 under a wrong name
        """
        self._check_host(headers.get("host", ""))
        if method not in _SAFE_METHODS:
            self._check_origin(headers)
        if not self.keys or path in OPEN_PATHS or (method == "GET" and path.startswith(SIGNED_PATHS)):
            return address
        owner = self._find_owner(_read_key(headers))
        if owner is None:
            raise ApiError(
                401,
                "this server needs a key: send it as Bearer token, as x-api-key, or as the password of Basic",
                kind="authentication_error",
                code="invalid_api_key",
                # Chromium ignores a header with two challenges, and then asks for no key.
                headers={"WWW-Authenticate": 'Basic realm="imprompt"'},
            )
        return owner

    def _find_owner(self, key: str) -> str | None:
        """Compare with every key, each in constant time."""
        digest = _digest(key)
        owners = [owner for known, owner in self.keys.items() if hmac.compare_digest(_digest(known), digest)]
        return owners[0] if owners else None

    def _check_host(self, host: str) -> None:
        # A page may point its own name to this machine (DNS rebinding); the name stays in the Host header.
        if self.hosts and _name_of(host) not in self.hosts:
            raise ApiError(421, "this server does not answer under that name", code="unknown_host")

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        """Refuse requests that another web page makes in a browser; other programs send no Origin."""
        origin, host = headers.get("origin"), headers.get("host", "")
        if origin is None:
            is_foreign = headers.get("sec-fetch-site", "none") not in ("none", "same-origin")
        else:
            is_foreign = urlsplit(origin).netloc != host and origin not in self.origins
        if is_foreign:
            raise ApiError(403, "requests of other web pages are refused", code="cross_origin")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    return host in LOOPBACK or host.startswith("127.")


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "replace")).digest()


def _name_of(host: str) -> str:
    return (urlsplit(f"//{host}").hostname or "") if host else ""


def _read_key(headers: Mapping[str, str]) -> str:
    """Return the key of a request; "" if it has none."""
    if key := headers.get("x-api-key"):
        return key
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return b64decode(value, validate=True).decode("utf-8").partition(":")[2]
        except (Base64Error, ValueError):
            return ""
    return ""


def read_keys(path: Path) -> dict[str, str]:
    """Read a file of keys, one in a line: "KEY" or "NAME KEY"; empty lines and # lines are skipped.

    Returns:
        key → name

    Raises:
        ConfigError: the file cannot be read, holds no key, or one that is too short
    """
    try:
        lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise ConfigError(f"the file of keys {path} cannot be read") from error
    keys = {
        words[-1]: words[0] if len(words) > 1 else f"key {number}"
        for number, words in enumerate(lines, 1)
        if words and not words[0].startswith("#")
    }
    if not keys:
        raise ConfigError(f"the file of keys {path} holds none; write one in a line")
    if any(len(key) < _LEAST_CHARACTERS for key in keys):
        raise ConfigError(
            f"a key in {path} is shorter than {_LEAST_CHARACTERS} characters; make a longer one"
        )
    return keys
