"""A stand-in for the hub on this machine: it serves a folder `owner/name/...` as repositories.

It answers what huggingface_hub 1.x asks: a repository's information and tree, and its files, with hash, size
and ranges.
"""

import contextlib
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub
import pytest
from huggingface_hub import constants

COMMIT = "a" * 40


class Hub:
    """Repositories below a folder, and how they are served.

    Attributes:
        root: has a folder owner/name for each repository
        gated: repositories that need a granted access
        corrupt: paths of files that arrive with a changed byte
        requests: "METHOD path" of every request
        sent: bytes of content that have been sent
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.gated: set[str] = set()
        self.corrupt: set[str] = set()
        self.requests: list[str] = []
        self.sent = 0

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        """Answer one request, as the hub would."""
        parts = unquote(urlsplit(request.path).path).strip("/").split("/")
        self.requests.append(f"{request.command} {'/'.join(parts)}")
        is_api = parts[:2] == ["api", "models"]
        owner, name, *rest = (parts[2:] if is_api else parts) + ["", ""]
        folder = self.root / owner / name
        if not folder.is_dir():
            return self._reply(request, 401, error="RepoNotFound")
        if f"{owner}/{name}" in self.gated:
            return self._reply(request, 403, error="GatedRepo")
        if is_api:
            return self._reply_information(request, folder, "tree" in rest)
        file = folder.joinpath(*rest[2:])  # after "resolve" and the revision
        if not file.is_file():
            return self._reply(request, 404, error="EntryNotFound")
        return self._reply_file(request, file)

    def _reply_information(
        self, request: http.server.BaseHTTPRequestHandler, folder: Path, tree: bool
    ) -> None:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        if tree:
            entries: Any = [
                {"type": "file", "path": name, "size": path.stat().st_size, "oid": "b" * 40}
                for name, path in zip(names, files, strict=True)
            ]
        else:
            entries = {
                "id": folder.relative_to(self.root).as_posix(),
                "sha": COMMIT,
                "private": False,
                "gated": False,
                "tags": [],
                "downloads": 0,
                "likes": 0,
                "siblings": [
                    {"rfilename": name, "size": path.stat().st_size}
                    for name, path in zip(names, files, strict=True)
                ],
            }
        self._reply(request, 200, json.dumps(entries).encode(), kind="application/json")

    def _reply_file(self, request: http.server.BaseHTTPRequestHandler, file: Path) -> None:
        content = file.read_bytes()
        headers = {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        if file.relative_to(self.root).as_posix() in self.corrupt:
            content = bytes([content[0] ^ 1]) + content[1:]
        begin, status = 0, 200
        if (wanted := request.headers.get("Range")) and wanted.endswith("-"):
            begin, status = int(wanted.removeprefix("bytes=").rstrip("-")), 206
            headers["Content-Range"] = f"bytes {begin}-{len(content) - 1}/{len(content)}"
        self._reply(request, status, content[begin:], headers=headers)

    def _reply(
        self,
        request: http.server.BaseHTTPRequestHandler,
        status: int,
        body: bytes = b"",
        *,
        kind: str = "application/octet-stream",
        headers: dict[str, str] | None = None,
        error: str = "",
    ) -> None:
        request.send_response(status)
        for name, value in {"Content-Type": kind, "X-Repo-Commit": COMMIT, **(headers or {})}.items():
            request.send_header(name, value)
        if error:
            request.send_header("X-Error-Code", error)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
            self.sent += len(body) if kind == "application/octet-stream" else 0


@contextlib.contextmanager
def serve_hub(root: Path, cache: Path) -> Iterator[Hub]:
    """Serve `root` as the hub, with an empty cache, to everything in this process that asks the hub."""
    served = Hub(root)

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None: ...

        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError):
                served.answer(self)

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "ENDPOINT", endpoint)
        template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        patch.setattr(huggingface_hub.hf_api.api, "endpoint", endpoint)
        try:
            yield served
        finally:
            server.shutdown()
            server.server_close()
