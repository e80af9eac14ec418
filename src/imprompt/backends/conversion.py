"""The graph of a U-Net as files in the user's cache, and what is known of it on this machine.

A graph is found by the hash of the U-Net's weights and settings, so it is converted once for every base, and
again after a LoRA was fused into it.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import shutil
import signal
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor

from imprompt.backends.graph import CallSize, GraphUNet, list_shapes
from imprompt.errors import MissingExtra, OutputError
from imprompt.runtime.files import resolve_in_cache
from imprompt.runtime.machine import name_processor
from imprompt.runtime.output import make_folder, write_atomically

_LAYOUT = 1
"""Counts up when `GraphUNet` changes, so that graphs of an earlier imprompt are not used."""

_VERSIONS = ("openvino", "torch", "diffusers")
_TRIAL = Path(__file__).with_name("trial.py")


def check_openvino() -> None:
    """Make sure that OpenVINO is installed.

    Raises:
        MissingExtra: it is not
    """
    if importlib.util.find_spec("openvino") is None:
        raise MissingExtra("openvino", "openvino")


class ConvertedGraph:
    """A graph in the cache.

    Args:
        folder: its folder
        unet: the U-Net, for the shapes of the inputs
    """

    def __init__(self, folder: Path, unet: UNet2DConditionModel) -> None:
        self.folder, self._unet = folder, unet
        self._record = folder / "trials.json"

    @property
    def model(self) -> Path:
        """The file of the graph; its weights are in the file beside it."""
        return self.folder / "unet.xml"

    def shapes(self, size: CallSize) -> dict[str, tuple[int, ...]]:
        """Return the shapes of the inputs for calls of a size."""
        return list_shapes(self._unet, size)

    def find_trial(self, size: CallSize, dtype: str) -> dict[str, Any]:
        """Return what is known of the graph for calls of a size, on this processor with these versions."""
        return self._read_record().get(_name_trial(size, dtype), {})

    def write_trial(self, size: CallSize, dtype: str, **facts: Any) -> None:
        """Add to what is known; a cache that cannot be written is no reason to stop."""
        record = self._read_record()
        record[_name_trial(size, dtype)] = self.find_trial(size, dtype) | facts
        with contextlib.suppress(OutputError), write_atomically(self._record) as part:
            part.write_text(json.dumps(_identify_machine() | {"trials": record}), encoding="utf-8")

    def try_compilation(self, size: CallSize, dtype: str, options: Mapping[str, Any]) -> str | None:
        """Compile and run the graph in another process, unless that is known to end well or badly.

        Returns:
            why this failed, a clause; None if it went well
        """
        known = self.find_trial(size, dtype)
        if "failure" not in known:
            failure = compile_elsewhere(self.model, self.shapes(size), options)
            self.write_trial(size, dtype, failure=failure)
            return failure
        return known["failure"]

    def _read_record(self) -> dict[str, Any]:
        try:
            record = json.loads(self._record.read_text(encoding="utf-8"))
            return record["trials"] if _identify_machine().items() <= record.items() else {}
        except (OSError, ValueError, KeyError, AttributeError):
            return {}


def convert_unet(unet: UNet2DConditionModel) -> ConvertedGraph:
    """Return the graph of a U-Net from the cache, or convert it: seconds to a minute, once for a base.

    Raises:
        ConfigError: see `GraphUNet`
        OutputError: the cache cannot be written
    """
    folder = resolve_in_cache("openvino") / hash_unet(unet)
    graph = ConvertedGraph(folder, unet)
    if not graph.model.is_file():
        make_folder(folder.parent)
        part = folder.with_name(f"{folder.name}.part")
        shutil.rmtree(part, ignore_errors=True)
        try:
            write_graph(unet, part)
            part.replace(folder)
        except OSError as error:
            raise OutputError(f"{folder} cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return graph


def write_graph(unet: UNet2DConditionModel, folder: Path) -> None:
    """Convert a U-Net, and write its graph into a new folder.

    `openvino.convert_model` would do the same, and send statistics of use to its makers.
    """
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    graph = GraphUNet(unet).eval()
    frontend: Any = FrontEndManager().load_by_framework("pytorch")
    with torch.no_grad(), _quiet_tracing():
        decoder = TorchScriptPythonDecoder(graph, example_input=graph.make_example())
        model = frontend.convert(frontend.load(decoder))
    for port, name in zip(model.inputs, graph.names, strict=True):
        port.get_tensor().set_names({name})
    folder.mkdir(parents=True)
    openvino.save_model(model, folder / "unet.xml", compress_to_fp16=False)


def hash_unet(unet: UNet2DConditionModel) -> str:
    """Return a SHA-256 of all weights and settings of a U-Net, and of the versions that convert it."""
    digest = hashlib.sha256()
    versions = [importlib.metadata.version(package) for package in _VERSIONS]
    # Keys with an underscore say where it was loaded from.
    settings = {name: value for name, value in unet.config.items() if not name.startswith("_")}
    digest.update(json.dumps([_LAYOUT, versions, settings], default=str, sort_keys=True).encode())
    for name, tensor in unet.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_view_bytes(tensor))
    return digest.hexdigest()[:32]


def compile_elsewhere(
    model: Path, shapes: Mapping[str, tuple[int, ...]], options: Mapping[str, Any]
) -> str | None:
    """Compile and run a graph in a process of its own, which a crash may end.

    Returns:
        why it failed, a clause; None if it went well
    """
    job = json.dumps({"model": str(model), "shapes": shapes, "options": options})
    result = subprocess.run([sys.executable, "-P", str(_TRIAL)], input=job, capture_output=True, text=True)
    if result.returncode < 0:
        return f"OpenVINO crashed on this processor ({signal.Signals(-result.returncode).name})"
    lines = result.stderr.strip().splitlines()
    return (
        f"OpenVINO cannot compile it ({lines[-1] if lines else 'no reason'})" if result.returncode else None
    )


def _identify_machine() -> dict[str, str]:
    versions = {package: importlib.metadata.version(package) for package in _VERSIONS}
    return {"processor": name_processor(), **versions}


def _name_trial(size: CallSize, dtype: str) -> str:
    return f"{'x'.join(map(str, size))} {dtype}"


def _view_bytes(tensor: Tensor) -> memoryview:
    array: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return memoryview(array)


@contextlib.contextmanager
def _quiet_tracing() -> Iterator[None]:
    """Ignore warnings about branches that depend on shapes: the graph's sizes keep to one of each."""
    logger = logging.getLogger("openvino")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
