"""Seconds per picture of Stable Diffusion 1.5 with an image prompt, for every speed and way of computing.

    python bench/speeds_sd15.py [--size PIXELS] [--speeds NAME ...] [--ways WAY ...] [--threads N]
                                 [--folder FOLDER] [--output FILE]

The weights are random in the true shapes, so this measures time alone: the pictures are noise. A picture
counts from the embedding of the reference to the decoded pixels, after a short one that compiles and warms
up; loading is not included, but its seconds are printed. The ways:

    diffusers           its own IP-Adapter, float32 and 25 steps: what `exact` is compared with
    float32             imprompt's default
    auto                `--dtype auto`
    openvino            `--backend openvino`, float32
    openvino bfloat16   `--backend openvino --dtype bfloat16`

A speed for bases distilled for few steps (`lcm`) takes as long on any base of these shapes. It needs 4 GB of
disk for the files, 3.4 GB for OpenVINO's graph, and about 10 GB of memory.
"""

import argparse
import gc
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from imprompt import accelerate, generate, load_adapter, load_pipeline
from imprompt.generation.job.limits import DEFAULT_STEPS
from imprompt.generation.job.speeds import SPEEDS
from imprompt.runtime.environment import describe_environment

sys.path.append(str(Path(__file__).parent))

from true_sizes import VIT_H, write_models  # pyright: ignore[reportMissingImports]

DIFFUSERS = "diffusers"
WAYS = (DIFFUSERS, "float32", "auto", "openvino", "openvino bfloat16")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, print and write."""
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    results: dict[str, Any] = {"environment": describe_environment(), "size": options.size, "seconds": {}}
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        files = write_models(Path(folder))
        for way in options.ways:
            results["seconds"][way] = measure_way(files, way, options.speeds, options.size)
            gc.collect()
            if options.output:
                options.output.write_text(json.dumps(results, indent=1) + "\n")
    print_table(results["seconds"])
    return 0


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="width and height in pixels")
    parser.add_argument("--speeds", nargs="+", choices=SPEEDS, default=["exact", "balanced", "fast", "lcm"])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, help="where the models are written; temporary by default")
    parser.add_argument("--output", type=Path, help="JSON file, written after every way")
    return parser.parse_args(arguments)


def measure_way(files: SimpleNamespace, way: str, speeds: Sequence[str], size: int) -> dict[str, float]:
    """Return the seconds of a picture for each speed in one way of computing."""
    start = time.perf_counter()
    pipe: Any = load_pipeline(str(files.base), device="cpu", dtype="auto" if way == "auto" else torch.float32)
    pipe.set_progress_bar_config(disable=True)
    if way.startswith("openvino"):
        accelerate(pipe, dtype=way.partition(" ")[2] or "float32")
    embedding = torch.randn(1, VIT_H["projection_dim"], generator=torch.Generator().manual_seed(1))
    print(f"{way}: loaded in {time.perf_counter() - start:.1f} s")
    if way == DIFFUSERS:
        return {"exact": measure_diffusers(pipe, files.adapter, embedding, size)}
    adapter = load_adapter(files.adapter, image_encoder=None).to(pipe.unet.dtype)
    seconds = {}
    for speed in speeds:
        # Speeds without guidance call with other shapes, so each one warms up.
        generate(pipe, adapter, embedding, speed=speed, size=size, steps=2)
        start = time.perf_counter()
        generate(pipe, adapter, embedding, speed=speed, size=size)
        seconds[speed] = round(time.perf_counter() - start, 2)
        print(f"{way}, {speed}: {seconds[speed]:.1f} s")
    return seconds


def measure_diffusers(pipe: Any, file: Path, embedding: torch.Tensor, size: int) -> float:
    """Return the seconds of a picture with diffusers' own adapter and imprompt's default settings."""
    pipe.load_ip_adapter(str(file.parent), subfolder="", weight_name=file.name, image_encoder_folder=None)
    embeddings = [torch.cat([torch.zeros_like(embedding), embedding])[:, None]]
    settings = {"width": size, "height": size, "guidance_scale": 7.5, "ip_adapter_image_embeds": embeddings}
    pipe("", num_inference_steps=2, **settings)
    start = time.perf_counter()
    pipe("", num_inference_steps=DEFAULT_STEPS, **settings)
    seconds = round(time.perf_counter() - start, 2)
    print(f"{DIFFUSERS}: {seconds:.1f} s")
    return seconds


def print_table(seconds: dict[str, dict[str, float]]) -> None:
    """Print seconds, and how many times as fast as diffusers they are."""
    speeds = list(dict.fromkeys(speed for way in seconds.values() for speed in way))
    first = seconds.get(DIFFUSERS, {}).get("exact")
    table = Table("way", *speeds, title="seconds per picture (times as fast as diffusers)")
    for way, row in seconds.items():
        cells = [f"{row[speed]:.1f}" if speed in row else "" for speed in speeds]
        if first is not None:
            cells = [
                f"{cell} ({first / row[speed]:.1f})" if cell else ""
                for cell, speed in zip(cells, speeds, strict=True)
            ]
        table.add_row(way, *cells)
    Console().print(table)


if __name__ == "__main__":
    raise SystemExit(main())
