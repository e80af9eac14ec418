"""What `imprompt serve` promises under load and when things fail, measured and judged.

    python bench/serving_load.py [CHECK ...] [--seconds 300] [--json]

Each check starts the server of the embedded model, and asks it over HTTP:

    overload    four times as many requests as it can answer: no failure, quick refusals, even memory
    hang-ups    200 clients that leave before the answer: every row is free again
    stop        SIGTERM under load: whole answers, and the exit code 0
    kill        SIGKILL of the process that computes, under load: errors at once, and it starts again
    same-bytes  64 jobs of one seed at once, among others: the same bytes with --deterministic, and one gray
                level at most without it

The exit code is 1 if a promise was not kept.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import http.client
import io
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table
from serving import find_port, wait_for

STEPS, USERS, PICTURES = 10, 8, 8
OVERLOAD, REFUSAL_SECONDS, DRIFT = 4, 0.05, 0.02
QUEUE_SECONDS = 5
LONG = 100
DRAIN_SECONDS = 300


class Finding(NamedTuple):
    """One promise.

    Args:
        check: the check that found it
        promise: in words
        figure: what was measured
        is_kept: whether it is as promised
    """

    check: str
    promise: str
    figure: str
    is_kept: bool


class Answer(NamedTuple):
    """The end of one request.

    Args:
        status: the status code; 0 without an answer
        seconds: how long it took
        body: the JSON
        headers: the headers
    """

    status: int
    seconds: float
    body: Any = None
    headers: Any = None


class Server:
    """A running `imprompt serve`.

    Args:
        process: its supervisor
        address: host and port
    """

    def __init__(self, process: subprocess.Popen[bytes], address: str) -> None:
        self.process, self.address = process, address

    def ask(self, **changes: Any) -> Answer:
        """Send one request to the OpenAI API, and wait for the answer."""
        return self.send("POST", "/v1/images/generations", make_request(**changes))

    def send(self, method: str, path: str, body: Any = None) -> Answer:
        """Send any request."""
        start = time.perf_counter()
        try:
            with contextlib.closing(http.client.HTTPConnection(self.address, timeout=600)) as connection:
                data = None if body is None else json.dumps(body)
                connection.request(method, path, data, {"Content-Type": "application/json"})
                response = connection.getresponse()
                text = response.read()
        except (OSError, http.client.HTTPException):
            return Answer(0, time.perf_counter() - start)
        is_json = "json" in response.headers.get("content-type", "")
        return Answer(
            response.status,
            time.perf_counter() - start,
            json.loads(text) if is_json else text.decode(),
            response.headers,
        )

    def leave(self, seconds: float) -> None:
        """Send one long request, and hang up after some seconds."""
        connection = http.client.HTTPConnection(self.address)
        body = json.dumps(make_request(steps=LONG))
        connection.request("POST", "/v1/images/generations", body, {"Content-Type": "application/json"})
        time.sleep(seconds)
        connection.close()

    def read_metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        text = self.send("GET", "/metrics").body
        values = re.findall(rf"^imprompt_{name}(?:{{[^}}]*}})? ([\d.e+-]+)$", text, re.MULTILINE)
        return sum(map(float, values))

    @property
    def worker(self) -> int:
        """The process that computes."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/children").read_text().split()[0])


def make_request(*, seed: int = 0, steps: int = STEPS) -> dict[str, Any]:
    """A request without a picture, so that the load is the server's and not the client's."""
    return {"prompt": "on a red background", "num_inference_steps": steps, "seed": seed}


@contextlib.contextmanager
def run_server(*options: str, queue_seconds: float = 1e6) -> Iterator[Server]:
    """Start a server, wait until it is ready and has run every batch size, and stop it at the end."""
    with tempfile.TemporaryDirectory() as folder:
        config, port = Path(folder, "models.toml"), find_port()
        config.write_text(f"[batching]\npictures = {PICTURES}\n[limits]\nqueue_seconds = {queue_seconds}\n")
        command = [sys.executable, "-m", "imprompt", "serve", str(config), "--port", str(port), *options]
        with Path(folder, "log").open("w") as log:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
            try:
                server = Server(process, wait_for(port, "/readyz").removeprefix("http://"))
                ask_together(server, PICTURES)
                yield server
            finally:
                process.terminate()
                process.wait()


def ask_together(server: Server, count: int, **changes: Any) -> list[Answer]:
    """Send requests at once; return their answers."""
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: server.ask(**changes), range(count)))


# The checks


def check_overload(seconds: float) -> Iterator[Finding]:
    """Send four times as many requests as the server can answer."""
    with run_server(queue_seconds=QUEUE_SECONDS) as server:
        rate = measure_capacity(server, max(5.0, seconds / 20))
        memory: list[float] = []
        answers = send_steadily(server, OVERLOAD * rate, seconds, lambda: memory.append(read_memory(server)))
    statuses = Counter(answer.status for answer in answers)
    refusals = sorted(answer.seconds for answer in answers if answer.status == 429)
    described = ", ".join(f"{number} × {status}" for status, number in sorted(statuses.items()))
    load = f"{OVERLOAD} × {rate:.1f} requests/s for {seconds:g} s"
    yield Finding("overload", f"{load}: 200 and 429 only", described, {*statuses} == {200, 429})
    waits = [answer.headers["retry-after"] for answer in answers if answer.status == 429]
    yield Finding(
        "overload", "refusals name a time (Retry-After)", f"{len(waits)} of {len(refusals)}", all(waits)
    )
    if refusals:
        p50, p99 = (refusals[int(len(refusals) * share)] * 1000 for share in (0.5, 0.99))
        figure = f"P50 {p50:.1f} ms, P99 {p99:.1f} ms, longest {refusals[-1] * 1000:.1f} ms"
        yield Finding("overload", "P99 of refusals under 50 ms", figure, p99 < REFUSAL_SECONDS * 1000)
    part = len(memory) // 6
    before, after = (statistics.median(values) for values in (memory[2 * part : 3 * part], memory[-part:]))
    drift = after / before - 1
    figure = f"{drift:+.2%} ({before / 1e6:.0f} → {after / 1e6:.0f} MB)"
    yield Finding("overload", "memory grows 2 % at most from the middle on", figure, drift <= DRIFT)


def measure_capacity(server: Server, seconds: float) -> float:
    """Return how many requests per second the server answers to users who wait for each answer."""
    end, answers = time.perf_counter() + seconds, list[Answer]()

    def use() -> None:
        while time.perf_counter() < end:
            answers.append(server.ask())

    threads = [threading.Thread(target=use) for _ in range(USERS)]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(answers) / (time.perf_counter() - start)


def send_steadily(server: Server, rate: float, seconds: float, on_second: Callable[[], None]) -> list[Answer]:
    """Send requests at a rate, whether they are answered or not; return all answers."""
    with concurrent.futures.ThreadPoolExecutor(1000) as pool:
        start, next_second, futures = time.perf_counter(), 0.0, list[Any]()
        while (now := time.perf_counter() - start) < seconds:
            if now >= next_second:
                next_second += 1.0
                pool.submit(on_second)
            futures.append(pool.submit(server.ask, seed=len(futures)))
            time.sleep(max(0.0, start + len(futures) / rate - time.perf_counter()))
        return [future.result() for future in futures]


def read_memory(server: Server) -> float:
    """Return the resident bytes of the process that computes."""
    pages = int(Path(f"/proc/{server.worker}/statm").read_text().split()[1])
    return float(pages * os.sysconf("SC_PAGE_SIZE"))


def check_hang_ups(clients: int = 200) -> Iterator[Finding]:
    """Let clients leave while they wait, and while their pictures are computed."""
    chance = random.Random(0)
    with run_server() as server:
        with concurrent.futures.ThreadPoolExecutor(40) as pool:
            list(pool.map(server.leave, [chance.uniform(0, 2) for _ in range(clients)]))
        start = time.perf_counter()
        while (left := describe_queue(server)) != (0, 0) and time.perf_counter() < start + 60:
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        canceled = server.read_metric("canceled_total")
        after = server.ask().status
    yield Finding("hang-ups", f"{clients} jobs are canceled", f"{canceled:.0f} canceled", canceled == clients)
    figure = f"{left[0]} wait and {left[1]} run {seconds:.2f} s after the last one left"
    yield Finding("hang-ups", "all rows are free", figure, left == (0, 0))
    yield Finding("hang-ups", "the next request is answered", str(after), after == 200)


def describe_queue(server: Server) -> tuple[int, int]:
    """Return how many pictures wait and run."""
    queue = server.send("GET", "/api/capabilities").body["queue"]
    return queue["waiting"], queue["running"]


def wait_until_full(server: Server, pictures: int, seconds: float | int = 120) -> None:
    """Wait until so many pictures wait or are computed.

    Twice in a row, because the server runs pictures of its own for a moment at its start, to warm up.

    Raises:
        TimeoutError: some were finished before the last one had come
    """
    in_a_row, end = 0, time.perf_counter() + seconds
    while in_a_row < 2:
        if time.perf_counter() > end:
            raise TimeoutError(f"the server never had {pictures} pictures to make at once")
        time.sleep(0.5)
        in_a_row = in_a_row + 1 if describe_queue(server) == (pictures - PICTURES, PICTURES) else 0


def check_stop(clients: int = 24) -> Iterator[Finding]:
    """Stop a server that has work to do."""
    with (
        run_server("--drain-timeout", str(DRAIN_SECONDS)) as server,
        concurrent.futures.ThreadPoolExecutor(clients) as pool,
    ):
        futures = [pool.submit(server.ask, seed=number, steps=LONG) for number in range(clients)]
        wait_until_full(server, clients)
        start = time.perf_counter()
        server.process.send_signal(signal.SIGTERM)
        code = server.process.wait(2 * DRAIN_SECONDS)
        seconds = time.perf_counter() - start
        statuses = Counter(future.result().status for future in futures)
    described = ", ".join(f"{number} × {status}" for status, number in sorted(statuses.items()))
    yield Finding("stop", f"{clients} whole answers, of 200 and 503", described, {*statuses} <= {200, 503})
    is_good = code == 0 and statuses[200] >= PICTURES
    yield Finding("stop", "what runs is finished, exit code 0", f"{code} after {seconds:.1f} s", is_good)


def check_kill(clients: int = 16) -> Iterator[Finding]:
    """Kill the process that computes while it has work to do."""
    with run_server() as server, concurrent.futures.ThreadPoolExecutor(clients) as pool:
        before = server.ask(seed=7).body["data"]
        job = server.send("POST", "/api/jobs", {"steps": LONG}).body["id"]
        futures = [pool.submit(server.ask, seed=number, steps=LONG) for number in range(clients)]
        wait_until_full(server, 1 + clients)
        killed, start = server.worker, time.perf_counter()
        os.kill(killed, signal.SIGKILL)
        statuses = Counter(future.result().status for future in futures)
        errors = time.perf_counter() - start
        gap = server.send("GET", "/readyz").status
        wait_for(int(server.address.rpartition(":")[2]), "/readyz")
        seconds = time.perf_counter() - start
        lost, after = server.send("GET", f"/api/jobs/{job}"), server.ask(seed=7).body["data"]
    described = f"{errors:.2f} s, statuses {dict(statuses)} (0: the connection was cut)"
    yield Finding(
        "kill", f"{clients} requests end within 2 s", described, errors < 2 and {*statuses} <= {0, 503}
    )
    yield Finding("kill", "it is not ready meanwhile", f"/readyz {gap}", gap == 503)
    yield Finding("kill", "it is ready again", f"after {seconds:.1f} s", True)
    message = lost.body["error"]["message"]
    yield Finding("kill", "the job is known to be lost", message, "restarted" in message)
    yield Finding("kill", "the same picture as before", "", before == after)


def check_same_bytes(jobs: int = 64) -> Iterator[Finding]:
    """Compare the pictures of one seed among different neighbors."""
    for options in (("--deterministic",), ()):
        with run_server(*options) as server:
            alone = read_picture(server.ask(seed=1))
            with concurrent.futures.ThreadPoolExecutor(2 * jobs) as pool:
                others = [
                    pool.submit(server.ask, seed=number, steps=3 + number % 9) for number in range(jobs)
                ]
                same = [pool.submit(server.ask, seed=1) for _ in range(jobs)]
                pictures = [read_picture(future.result()) for future in same]
                statuses = Counter(future.result().status for future in others)
        different = sum(not np.array_equal(alone, picture) for picture in pictures)
        most = max(int(np.abs(alone.astype(int) - picture).max()) for picture in pictures)
        figure = (
            f"{different} of {jobs} differ from it alone, by {most} levels at most; others {dict(statuses)}"
        )
        promise = "the same bytes (--deterministic)" if options else "one gray level at most"
        yield Finding("same-bytes", promise, figure, most <= (0 if options else 1))


def read_picture(answer: Answer) -> np.ndarray:
    """Return the pixels of an answer."""
    data = base64.b64decode(answer.body["data"][0]["b64_json"])
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Check and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "checks", nargs="*", metavar="CHECK", help="overload, hang-ups, stop, kill, same-bytes"
    )
    parser.add_argument("--seconds", type=float, default=300.0, help="time of the overload")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    checks: dict[str, Callable[[], Iterator[Finding]]] = {
        "overload": lambda: check_overload(options.seconds),
        "hang-ups": check_hang_ups,
        "stop": check_stop,
        "kill": check_kill,
        "same-bytes": check_same_bytes,
    }
    if unknown := {*options.checks} - {*checks}:
        parser.error(f"there is no check {', '.join(unknown)}; there are {', '.join(checks)}")
    findings = [finding for name in options.checks or checks for finding in checks[name]()]
    if options.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        print_table(findings)
    return 0 if all(finding.is_kept for finding in findings) else 1


def print_table(findings: Sequence[Finding]) -> None:
    """The result for people."""
    table = Table(
        "check", "promise", "measured", "kept", title=f"{os.cpu_count()} cores", title_justify="left"
    )
    for finding in findings:
        table.add_row(finding.check, finding.promise, finding.figure, "yes" if finding.is_kept else "NO")
    Console(width=150).print(table)


if __name__ == "__main__":
    sys.exit(main())
