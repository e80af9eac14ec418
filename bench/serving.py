"""Requests per second of `imprompt serve` and of a plain server, with several users, interleaved in one run.

    python bench/serving.py [--users 8] [--seconds 30] [--rounds 3] [--dtype bfloat16] [--json]

Every user sends the next request when the answer to the last one is there: a picture, a text, and mixed steps
and scales, the same ones for each server. The servers, one process each, are under load one after another:

    ours            `imprompt serve` with the embedded model
    one at a time   the same, but a picture at a time
    plain           FastAPI around diffusers' pipeline with its own IP-Adapter, a picture at a time, float32

With --dtype the first two compute in another number format.
"""

import argparse
import base64
import contextlib
import io
import itertools
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

EXAMPLES = Path(__file__).parent.parent / "docs" / "examples"
STEPS, SCALES, GUIDANCE = (10, 15, 20, 25, 30), (0.4, 0.6, 0.8, 1.0), 5.0
PROMPTS = ("on a red background", "sunglasses", "pixel style", "a beard", "")
START_SECONDS = 300


class Server(NamedTuple):
    """A server under test.

    Args:
        address: where it listens
        send: sends one request and returns the bytes of a picture
    """

    address: str
    send: Callable[[str, dict[str, Any]], bytes]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=30.0, help="time of load on each server in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--pictures", type=int, default=8, help="pictures that ours computes at once")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--plain-server", type=int, metavar="PORT", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.plain_server is not None:
        run_plain_server(options.plain_server)
        return 0
    with contextlib.ExitStack() as stack:
        servers = start_servers(stack, pictures=options.pictures, dtype=options.dtype)
        latencies = measure(servers, options.users, options.seconds, options.rounds)
    result = {
        "users": options.users,
        "seconds": options.seconds,
        "rounds": options.rounds,
        "dtype": options.dtype,
        "cores": os.cpu_count(),
        "servers": {name: summarize(values, options.seconds) for name, values in latencies.items()},
    }
    print(json.dumps(result, indent=1)) if options.json else print_table(result)
    return 0


# Load


def make_requests() -> Iterator[dict[str, Any]]:
    """Yield requests without end; the n-th one is the same for every server."""
    pictures = [base64.b64encode(path.read_bytes()).decode() for path in sorted(EXAMPLES.glob("*.png"))]
    for number in itertools.count():
        yield {
            "prompt": PROMPTS[number % len(PROMPTS)],
            "image": f"data:image/png;base64,{pictures[number % len(pictures)]}",
            "steps": STEPS[number * 7 % len(STEPS)],
            "scale": SCALES[number * 3 % len(SCALES)],
            "seed": number,
        }


def measure(
    servers: dict[str, Server], users: int, seconds: float, rounds: int
) -> dict[str, list[list[float]]]:
    """Return, for each server and round, the seconds of every request that was answered in time."""
    latencies: dict[str, list[list[float]]] = {name: [] for name in servers}
    names = list(servers)
    for name in names:  # the first request of a process is slower, and is not counted
        servers[name].send(servers[name].address, next(make_requests()))
    for number in range(rounds):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            latencies[name].append(put_under_load(servers[name], users, seconds))
    return latencies


def put_under_load(server: Server, users: int, seconds: float) -> list[float]:
    """Let users send one request after another for some seconds; return the time of each answer."""
    requests, lock = make_requests(), threading.Lock()
    end, answers = time.perf_counter() + seconds, list[float]()

    def use() -> None:
        while (start := time.perf_counter()) < end:
            with lock:
                values = next(requests)
            picture = server.send(server.address, values)
            assert picture.startswith(b"\x89PNG")
            if (now := time.perf_counter()) < end:
                answers.append(now - start)

    threads = [threading.Thread(target=use) for _ in range(users)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def summarize(rounds: list[list[float]], seconds: float) -> dict[str, float]:
    """Return requests per second and the percentiles of their time."""
    values = sorted(value for one in rounds for value in one)
    rates = [len(one) / seconds for one in rounds]
    hundredths = statistics.quantiles(values, n=100, method="inclusive") if values[1:] else values * 99
    return {
        "requests/s": round(statistics.median(rates), 3),
        "slowest round": round(min(rates), 3),
        "fastest round": round(max(rates), 3),
        "P50": round(hundredths[49], 3),
        "P99": round(hundredths[98], 3),
        "requests": len(values),
    }


def print_table(result: dict[str, Any]) -> None:
    """The result for people."""
    run = f"{result['rounds']} rounds of {result['seconds']:g} s, {result['users']} users"
    columns = ("requests/s", "slowest round", "fastest round", "P50", "P99", "requests")
    table = Table(
        "server",
        *columns,
        "against plain",
        title=f"{run}, {result['cores']} cores, {result['dtype']}",
        title_justify="left",
    )
    plain = result["servers"]["plain"]["requests/s"]
    for name, values in result["servers"].items():
        ratio = f"{values['requests/s'] / plain:.2f}" if plain else "-"
        table.add_row(name, *(str(values[column]) for column in columns), ratio)
    Console(width=110).print(table)


# Servers


def start_servers(stack: contextlib.ExitStack, *, pictures: int, dtype: str) -> dict[str, Server]:
    """Start the three servers, and stop them with the stack."""
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    model = f'[[models]]\nname = "mini"\nbase = "mini"\nadapters = ["mini"]\ndtype = "{dtype}"\n'
    servers: dict[str, Server] = {}
    for name, count in (("ours", pictures), ("one at a time", 1)):
        config = folder / f"{count}-{name.replace(' ', '-')}.toml"
        config.write_text(f"{model}[batching]\npictures = {count}\n")
        port = find_port()
        start(stack, [sys.executable, "-m", "imprompt", "serve", str(config), "--port", str(port)])
        servers[name] = Server(wait_for(port, "/readyz"), ask_ours)
    port = find_port()
    start(stack, [sys.executable, __file__, "--plain-server", str(port)])
    return servers | {"plain": Server(wait_for(port, "/healthz"), ask_plain)}


def start(stack: contextlib.ExitStack, command: list[str]) -> None:
    """Start a process, and end it with the stack."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stop() -> None:
        process.terminate()
        process.wait()

    stack.callback(stop)


def find_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as trial:
        trial.bind(("127.0.0.1", 0))
        return trial.getsockname()[1]


def wait_for(port: int, path: str) -> str:
    """Wait until a server answers; return its address."""
    address, end = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        with contextlib.suppress(OSError), urllib.request.urlopen(address + path):
            return address
        time.sleep(0.1)
    raise TimeoutError(f"no server at {address}")


def ask_ours(address: str, values: dict[str, Any]) -> bytes:
    """Send a request to the OpenAI Images API."""
    body = {
        "prompt": values["prompt"],
        "image": values["image"],
        "references": [{"image": 0, "scale": values["scale"]}],
        "num_inference_steps": values["steps"],
        "guidance_scale": GUIDANCE,
        "seed": values["seed"],
    }
    return base64.b64decode(post(address + "/v1/images/edits", body)["data"][0]["b64_json"])


def ask_plain(address: str, values: dict[str, Any]) -> bytes:
    """Send a request to the plain server."""
    return base64.b64decode(post(address + "/generate", values)["image"])


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    """Send JSON, and return the JSON of the answer."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=600) as answer:
        return json.load(answer)


def run_plain_server(port: int) -> None:
    """Serve diffusers' pipeline with diffusers' own adapter, as most examples do it: a picture at a time."""
    import torch
    import uvicorn
    from fastapi import Body, FastAPI
    from PIL import Image

    pipe, lock, app = load_plain_pipeline(), threading.Lock(), FastAPI()

    @app.get("/healthz")
    def answer() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/generate")
    def generate(values: dict[str, Any] = Body()) -> dict[str, str]:  # noqa: B008 - FastAPI's own style
        data = base64.b64decode(values["image"].partition(",")[2])
        with lock:
            pipe.set_ip_adapter_scale(values["scale"])
            picture = pipe(
                values["prompt"],
                ip_adapter_image=Image.open(io.BytesIO(data)).convert("RGB"),
                num_inference_steps=values["steps"],
                guidance_scale=GUIDANCE,
                generator=torch.Generator().manual_seed(values["seed"]),
            ).images[0]
        file = io.BytesIO()
        picture.save(file, "PNG")
        return {"image": base64.b64encode(file.getvalue()).decode()}

    uvicorn.run(app, port=port, log_level="error")


def load_plain_pipeline() -> Any:
    """Load the embedded model as diffusers' pipeline with diffusers' adapter, image encoder and processor."""
    from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
    from transformers import CLIPImageProcessorPil

    from imprompt import mini

    sys.path.append(str(Path(__file__).parent))
    from attention_overhead import official  # pyright: ignore[reportMissingImports]

    adapter = mini.adapter()
    encoder = adapter.image_encoder
    assert encoder is not None
    size = {"height": encoder.image_size, "width": encoder.image_size}
    processor = CLIPImageProcessorPil(size={"shortest_edge": encoder.image_size}, crop_size=size)
    processor.image_mean, processor.image_std = list(encoder.mean), list(encoder.std)
    parts: dict[str, Any] = {"image_encoder": encoder.model, "feature_extractor": processor}
    pipe: Any = StableDiffusionPipeline(**mini.pipeline().components | parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.load_ip_adapter(official(adapter), subfolder="", weight_name="", image_encoder_folder=None)
    return pipe


if __name__ == "__main__":
    sys.exit(main())
