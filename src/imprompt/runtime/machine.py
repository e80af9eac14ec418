"""What `imprompt --version` prints: versions, the default device and the precision. It does not import torch.

Importing torch takes seconds, so the device is found by asking the driver, and the precision is read from a
record that `choose_computation` writes when it measures one.
"""

import ctypes
import importlib.metadata
import importlib.util
import json
import platform
import re
from pathlib import Path
from typing import Literal, NamedTuple

from imprompt.errors import OutputError
from imprompt.runtime.files import resolve_in_cache
from imprompt.runtime.output import make_folder, write_atomically

LIBRARIES = ("torch", "diffusers", "transformers")
"""The packages whose versions are printed besides imprompt's own."""

_DRIVERS = ("libcuda.so.1", "nvcuda.dll")
_RECORD = "precision.json"


Precision = Literal["fp32", "bf16", "fp16"]
"""A number format of matrix products."""


class ComputeChoice(NamedTuple):
    """How a machine computes fastest.

    Args:
        precision: the number format
        channels_last: whether the channels of a position lie beside each other in memory
        chunked_attention: whether self-attention computes some queries at a time
        speedup: the speed relative to float32 in PyTorch's usual layout, of the layers that were timed
    """

    precision: Precision
    channels_last: bool
    chunked_attention: bool
    speedup: float

    def describe(self) -> str:
        """Return one line, such as "bf16, channels last: 3.1 times as fast as float32"."""
        parts = [self.precision]
        parts += ["channels last"] * self.channels_last + ["chunked attention"] * self.chunked_attention
        return f"{', '.join(parts)} ({self.speedup} times as fast as plain float32)"


class Device(NamedTuple):
    """The device on which `imprompt.load_pipeline` puts a model by default."""

    kind: str
    """ "cuda", "mps" or "cpu", as torch calls it."""
    name: str
    """The model of the processor or of the first GPU."""


def describe_installation() -> dict[str, str]:
    """Return, by name, what a bug report needs: versions, the default device, the number formats."""
    device = find_device()
    pictures, fastest = ("float16", "bf16, or fp32 on older GPUs")
    if device.kind == "cpu":
        choice = read_choice()
        pictures, fastest = "float32", choice.describe() if choice else "not measured yet"
    return {
        "imprompt": importlib.metadata.version("imprompt"),
        "Python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in LIBRARIES},
        "device": f"{device.kind} ({device.name})",
        "precision": f"{pictures} for pictures; the fastest (auto): {fastest}",
    }


def find_device() -> Device:
    """Return the first GPU that torch can use, or the processor if there is none."""
    build = _read_torch_build()
    if build.get("cuda") and (name := _name_nvidia_gpu()):
        return Device("cuda", name)
    if build.get("hip") and Path("/dev/kfd").exists():
        return Device("cuda", "an AMD GPU")
    if (platform.system(), platform.machine()) == ("Darwin", "arm64"):
        return Device("mps", "an Apple GPU")
    return Device("cpu", name_processor())


def name_processor() -> str:
    """Return the model name of the processor if the system states it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]}, {len(names)} logical cores" if names else platform.processor() or platform.machine()


def read_cpu_flags() -> frozenset[str]:
    """Return the flags of the processor, such as "avx512_bf16"; none if the system does not state them."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return frozenset(line[1].split() if line else ())


def write_choice(choice: ComputeChoice) -> None:
    """Record how this machine computes fastest, for later processes and for `imprompt --version`.

    A cache that cannot be written is no reason to stop: the next process measures again.
    """
    path = resolve_in_cache(_RECORD)
    record = {**_identify_machine(), **choice._asdict()}
    try:
        make_folder(path.parent)
        with write_atomically(path) as part:
            part.write_text(json.dumps(record), encoding="utf-8")
    except OutputError:
        return


def read_choice() -> ComputeChoice | None:
    """Return the recorded choice; None without a record of this processor and this torch."""
    try:
        record = json.loads(resolve_in_cache(_RECORD).read_text(encoding="utf-8"))
        if not _identify_machine().items() <= record.items():
            return None
        return ComputeChoice(**{name: record[name] for name in ComputeChoice._fields})
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def _identify_machine() -> dict[str, str]:
    return {"processor": name_processor(), "torch": importlib.metadata.version("torch")}


def _read_torch_build() -> dict[str, str]:
    """Return the GPU platforms for which torch was built, and their versions, from its file of versions."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return {}
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return {}
    return dict(re.findall(r"^(\w+)(?:: [\w\[\]]+)? = '([^']+)'$", text, re.MULTILINE))


def _name_nvidia_gpu() -> str | None:
    """Ask NVIDIA's driver for the first device that it shows to this process (CUDA driver API)."""
    for library in _DRIVERS:
        try:
            driver = ctypes.CDLL(library)
        except OSError:
            continue
        device, name = ctypes.c_int(), ctypes.create_string_buffer(256)
        answers = (driver.cuInit, (0,)), (driver.cuDeviceGet, (ctypes.byref(device), 0))
        if any(ask(*arguments) for ask, arguments in answers):  # 0 is success
            return None
        driver.cuDeviceGetName(name, len(name), device)
        return name.value.decode(errors="replace") or "an NVIDIA GPU"
    return None
