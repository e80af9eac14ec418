"""Files of a hub that cuts, stalls or changes them: one sentence within seconds; what has arrived stays.

The hub is a server on this machine, which sends what a test tells it to.
"""

import contextlib
import hashlib
import http.server
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants, file_download

import tiny
from imprompt import load_adapter
from imprompt.checkpoint import save_adapter
from imprompt.errors import UnknownModel
from imprompt.runtime import hub
from imprompt.runtime.hub import fetch_existing_files, fetch_file

COMMIT = "a" * 40
FILE = "models/a.bin"


class Hub:
    """A hub with one file, and how it sends it.

    Attributes:
        content: of the file
        cut: after how many bytes of a file a connection ends, None for never
        stall: after how many bytes it goes silent
        drip: seconds between bytes
        ranges: whether it goes on in the middle
        sent: what it sends in place of the content
        status: of the answer to a request for the file
        asked: (method, range) of every request for the file
    """

    def __init__(self, content: bytes) -> None:
        self.content, self.sent = content, content
        self.cut: int | None = None
        self.stall: int | None = None
        self.drip, self.status, self.ranges, self.lfs = 0.0, 200, True, True
        self.head_status = 200
        self.silent = False
        self.asked: list[tuple[str, str | None]] = []
        self.ended = threading.Event()

    @property
    def etag(self) -> str:
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(f"blob {len(self.content)}\0".encode() + self.content).hexdigest()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        if FILE not in request.path:
            request.send_response(404)
            request.send_header("X-Error-Code", "EntryNotFound")
            request.send_header("X-Repo-Commit", COMMIT)
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        wanted = request.headers.get("Range")
        self.asked.append((request.command, wanted))
        if self.silent:
            self.ended.wait(20)
            return
        status = self.head_status if request.command == "HEAD" else self.status
        begin = int(wanted[6:].rstrip("-")) if wanted and self.ranges and request.command == "GET" else 0
        request.send_response(206 if begin and status == 200 else status)
        request.send_header("Content-Length", str(len(self.content) - begin))
        request.send_header("ETag", f'"{self.etag}"')
        request.send_header("X-Repo-Commit", COMMIT)
        request.end_headers()
        if request.command == "GET" and status == 200:
            self.send(request, self.sent[begin:])

    def send(self, request: http.server.BaseHTTPRequestHandler, data: bytes) -> None:
        if self.drip:
            for place in range(len(data)):
                request.wfile.write(data[place : place + 1])
                if self.ended.wait(self.drip):
                    return
        stop = self.cut if self.cut is not None else self.stall
        request.wfile.write(data if stop is None else data[:stop])
        if self.stall is not None:
            self.ended.wait(20)
        if stop is not None:
            request.connection.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client asks, an empty cache, and little patience."""
    one = Hub(bytes(range(256)) * 40)

    class Handler(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None: ...

        def do_GET(self) -> None:
            with contextlib.suppress(ConnectionError, OSError):
                one.answer(self)

        do_HEAD = do_GET

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(file_download.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    monkeypatch.setattr(hub, "PAUSE", 0.01)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield one
    one.ended.set()
    server.shutdown()
    server.server_close()


def parts(folder: Path) -> list[Path]:
    return list(folder.rglob("*.imprompt-part"))


def refusal(seconds: float = 4) -> str:
    begun = time.monotonic()
    with pytest.raises(UnknownModel) as raised:
        fetch_file("owner/name", FILE)
    assert time.monotonic() - begun < seconds
    message = str(raised.value)
    assert "\n" not in message
    assert len(message) < 500
    assert message.startswith(f"owner/name:{FILE} is not here and cannot be fetched: ")
    return message.split(": ", 1)[1]


@pytest.mark.parametrize("lfs", [True, False])
def test_a_file_is_fetched_once_and_then_found(served: Hub, lfs: bool) -> None:
    served.lfs = lfs
    for _ in range(2):
        path = fetch_file("owner/name", FILE)
        assert path.read_bytes() == served.content
        assert path.name == "a.bin"
    assert [method for method, _ in served.asked].count("GET") == 1


def test_a_fetched_file_is_found_when_the_hub_is_gone(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch_file("owner/name", FILE)
    served.head_status = 503
    assert fetch_file("owner/name", FILE) == path
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert fetch_file("owner/name", FILE) == path


@pytest.mark.parametrize("cut", [1, 100, 3000, 5119, 10_000])
def test_where_connections_are_cut_the_file_goes_on(served: Hub, cut: int, tmp_path: Path) -> None:
    if cut == 1:
        served.content = served.sent = b"twelve bytes"
    served.cut = cut
    assert fetch_file("owner/name", FILE).read_bytes() == served.content
    begins = [wanted for method, wanted in served.asked if method == "GET"]
    assert begins[:2] == [None, f"bytes={cut}-"]
    assert not parts(tmp_path)


@pytest.mark.parametrize("arrived", [1, 5000, 10_239])
def test_a_later_attempt_goes_on_from_what_an_earlier_one_got(
    served: Hub, arrived: int, tmp_path: Path
) -> None:
    served.stall = arrived
    served.ranges = False
    assert "run again to resume" in refusal()
    assert [path.stat().st_size for path in parts(tmp_path)] == [arrived]
    served.stall, served.ranges = None, True
    served.asked.clear()
    assert fetch_file("owner/name", FILE).read_bytes() == served.content
    assert ("GET", f"bytes={arrived}-") in served.asked


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "cut at the same place": (
        {"cut": 100, "ranges": False},
        "the connection was cut, after 100 of 10,240 bytes",
    ),
    "cut at once": (
        {"cut": 0},
        "the connection was cut, after 0 of 10,240 bytes and 3 attempts; try again later",
    ),
    "silent after some bytes": (
        {"stall": 100, "ranges": False},
        "the hub has sent nothing, or next to nothing, for 0 seconds, after 100 of 10,240 bytes",
    ),
    "a byte now and then": ({"drip": 0.05, "ranges": False}, "the hub has sent nothing, or next to nothing"),
    "silent": ({"silent": True}, "the hub does not answer within 10 seconds"),
    "error 500": ({"status": 500}, "the hub answers 500 Internal Server Error, after 0 of 10,240 bytes"),
    "error 403": ({"status": 403}, "the hub answers 403 Forbidden"),
    "error 404": ({"status": 404}, "the hub answers 404 Not Found"),
    "error 503 at once": ({"head_status": 503}, "503"),
    "error 404 at once": ({"head_status": 404}, ""),
    "changed on the way": ({"sent": bytes(10_240)}, "the received file is damaged"),
    "one bit changed": ({"sent": b"\x01" + (bytes(range(256)) * 40)[1:]}, "its hash differs"),
    "too long": (
        {"sent": bytes(10_300)},
        "the received file is damaged|run again to resume",
    ),
}


@pytest.mark.parametrize("case", FAULTS)
def test_a_hub_that_fails_is_one_sentence_within_seconds(
    served: Hub, case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    state, message = FAULTS[case]
    for name, value in state.items():
        setattr(served, name, value)
    said = refusal()
    assert message.split("|")[0] in said or message.split("|")[-1] in said
    assert "Traceback" not in capfd.readouterr().err
    assert not list((tmp_path / "cache").rglob("a.bin"))


def test_what_was_changed_on_the_way_is_fetched_anew(served: Hub) -> None:
    served.sent = bytes(len(served.content))
    refusal()
    served.sent = served.content
    assert fetch_file("owner/name", FILE).read_bytes() == served.content


def test_nobody_who_listens_is_one_sentence(served: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    template = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    assert "refused" in refusal().lower()


@pytest.mark.parametrize("flip", [0, 5000, 10_239])
def test_a_copy_in_the_cache_that_changed_is_named(served: Hub, flip: int) -> None:
    blob = fetch_file("owner/name", FILE).resolve()
    data = bytearray(blob.read_bytes())
    data[flip] ^= 1
    blob.write_bytes(data)
    assert f"the copy in the cache is damaged (its hash differs from the hub's); delete {blob}" in refusal()
    blob.unlink()
    assert fetch_file("owner/name", FILE).read_bytes() == served.content


def test_of_several_files_those_that_are_there_are_fetched(served: Hub) -> None:
    served.status = 500
    with pytest.raises(UnknownModel, match="the hub answers 500"):
        fetch_existing_files("owner/name", ["none.json", FILE])
    served.status = 200
    found = fetch_existing_files("owner/name", ["none.json", FILE, "other.bin"])
    assert [path.read_bytes() for path in found] == [served.content]


def test_a_file_that_the_repository_has_not_is_said_to_be_missing(served: Hub) -> None:
    with pytest.raises(UnknownModel, match=r"none.bin is not here .*: the repository has no such file"):
        fetch_file("owner/name", "none.bin")


def test_who_is_logged_in_is_told_to_the_hub_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        huggingface_hub.utils, "build_hf_headers", lambda: {"authorization": "Bearer x", "user-agent": "y"}
    )
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    ours, theirs = (hub._request(f"https://{host}/a", 0) for host in ("hub.example", "files.example"))
    assert ours.unredirected_hdrs == {"Authorization": "Bearer x"}
    assert "Authorization" not in {**theirs.headers, **theirs.unredirected_hdrs}


def test_an_adapter_is_loaded_from_a_hub_that_cuts(served: Hub, tmp_path: Path) -> None:
    save_adapter(tiny.adapter(tiny.sd_unet()), tmp_path / "a.safetensors")
    served.content = served.sent = (tmp_path / "a.safetensors").read_bytes()
    served.cut = len(served.content) // 3
    assert (
        load_adapter(f"owner/name:{FILE}", image_encoder=None).shapes == tiny.adapter(tiny.sd_unet()).shapes
    )
