"""The known faults: which test is about which, how many are passed, and what they need beside `tiny`."""

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import pytest
import safetensors.torch
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

import tiny

COUNTS = {"test_faults": 26, "test_transformer_faults": 26}
"""File → how many faults it is about; those of the second have letters, too."""

FAULTS: dict[str, int | str] = {}
"""Test → the fault that it is about."""

Test = TypeVar("Test", bound=Callable[..., None])


def fault(number: int | str) -> Callable[[Test], Test]:
    """Say which fault a test is about."""

    def register(test: Test) -> Test:
        FAULTS[test.__name__] = number
        return test

    return register


class Tally:
    """Counts, while pytest runs, the faults whose tests have all passed; and prints it at the end.

    A test says with its report which fault it is about: it may have run in another process.
    """

    def __init__(self) -> None:
        self.passed: dict[str, dict[str, bool]] = {file: {} for file in COUNTS}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        number = dict(report.user_properties).get("fault")
        if number is not None and (report.when == "call" or not report.passed):
            passed = self.passed[Path(report.nodeid.partition("::")[0]).stem]
            passed[str(number)] = passed.get(str(number), True) and report.passed

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        whose = {"test_faults": "the reference implementations", "test_transformer_faults": "transformers"}
        for file, passed in self.passed.items():
            if not passed:
                continue
            failed = sorted(number for number, one in passed.items() if not one)
            terminalreporter.write_line(
                f"faults of {whose[file]} that imprompt is without: {len(passed) - len(failed)} of "
                f"{COUNTS[file]}" + (f" (not {', '.join(failed)})" if failed else "")
            )


def number_of(item: pytest.Item) -> int | str | None:
    """The fault that a test is about."""
    return FAULTS.get(item.name.partition("[")[0]) if item.path.stem in COUNTS else None


def assert_close(one: Tensor, other: Tensor, within: float = 1e-5) -> None:
    assert (one - other).abs().max() <= within * max(1.0, float(other.abs().max()))


def assert_differ(one: Tensor, other: Tensor) -> None:
    assert (one - other).abs().max() > 0.01


# Models


def of_diffusers(name: str) -> Any:
    return getattr(diffusers, name)


def pipeline_of(name: str, transformer: nn.Module) -> Any:
    kind = of_diffusers(name)
    parts = dict.fromkeys(kind._get_signature_keys(kind)[0])
    scheduler = of_diffusers("FlowMatchEulerDiscreteScheduler")()
    return kind(**parts | {"transformer": transformer, "scheduler": scheduler})


@tiny.seeded
def other_vision_model(*, seed: int = 4) -> CLIPVisionModelWithProjection:
    """Another picture size, other widths."""
    sizes: dict[str, Any] = {
        "hidden_size": 12,
        "intermediate_size": 20,
        "projection_dim": 10,
        "num_hidden_layers": 2,
    }
    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(**sizes, num_attention_heads=2, image_size=16, patch_size=8)
    ).eval()


# Files


@tiny.seeded
def draw_normal(*shape: int, seed: int = 0) -> Tensor:
    return 0.5 * torch.randn(*shape)


def flat(nested: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{group}.{name}": tensor for group, inner in nested.items() for name, tensor in inner.items()}


def write_tensors(tensors: Mapping[str, Tensor], folder: Path, name: str = "file.safetensors") -> Path:
    safetensors.torch.save_file({key: value.contiguous() for key, value in tensors.items()}, folder / name)
    return folder / name


@tiny.seeded
def face_file(unet: UNet2DConditionModel, folder: Path, *, seed: int = 0) -> tuple[Path, dict[str, Tensor]]:
    """A FaceID file as published: face layers, keys and values, and a LoRA of every attention layer."""
    wide = tiny.SD_CONTEXT
    tensors = {
        "image_proj.proj.0.weight": torch.randn(12, 6),
        "image_proj.proj.0.bias": torch.randn(12),
        "image_proj.proj.2.weight": torch.randn(4 * wide, 12),
        "image_proj.proj.2.bias": torch.randn(4 * wide),
        "image_proj.norm.weight": torch.randn(wide),
        "image_proj.norm.bias": torch.randn(wide),
    }
    for number, attn in enumerate(attentions(unet)):
        for place, linear in matrices(attn).items():
            tensors[f"ip_adapter.{number}.to_{place}_lora.down.weight"] = (
                torch.randn(3, linear.in_features) / 5
            )
            tensors[f"ip_adapter.{number}.to_{place}_lora.up.weight"] = (
                torch.randn(linear.out_features, 3) / 5
            )
        if number % 2:
            for place in "kv":
                inner = matrices(attn)[place].out_features
                tensors[f"ip_adapter.{number}.to_{place}_ip.weight"] = torch.randn(inner, wide) / 5
    return write_tensors(tensors, folder, f"face-{seed}.safetensors"), tensors


def attentions(unet: Any) -> list[Any]:
    return [unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors]


def matrices(attn: Any) -> dict[str, Any]:
    return {"q": attn.to_q, "k": attn.to_k, "v": attn.to_v, "out": attn.to_out[0]}


def merge_loras(pipe: Any, *files: Mapping[str, Tensor]) -> Any:
    """A pipeline whose attention has the files' LoRA in its very weights: W + up down."""
    parts = {name: part for name, part in pipe.components.items() if name != "unet"}
    made = type(pipe)(**parts, unet=copy.deepcopy(pipe.unet), requires_safety_checker=False)
    made.set_progress_bar_config(disable=True)
    for tensors in files:
        for number, attn in enumerate(attentions(made.unet)):
            for place, linear in matrices(attn).items():
                lora = f"ip_adapter.{number}.to_{place}_lora"
                change = tensors[f"{lora}.up.weight"] @ tensors[f"{lora}.down.weight"]
                getattr(linear, "base_layer", linear).weight.data += change
    return made


def resample_features(tensors: Mapping[str, Tensor], features: Tensor, heads: int) -> Tensor:
    """The perceiver of Plus by hand, as many layers as there are."""

    def of(name: str) -> Tensor:
        return tensors[f"image_proj.{name}"]

    def normed(x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], of(f"{name}.weight"), of(f"{name}.bias"))

    x, z = features @ of("proj_in.weight").T + of("proj_in.bias"), of("latents").expand(len(features), -1, -1)
    depth = 0
    while f"image_proj.layers.{depth}.0.to_q.weight" in tensors:
        layer = f"layers.{depth}"
        both = torch.cat([normed(x, f"{layer}.0.norm1"), normed(z, f"{layer}.0.norm2")], 1)
        query = normed(z, f"{layer}.0.norm2") @ of(f"{layer}.0.to_q.weight").T
        key, value = (both @ of(f"{layer}.0.to_kv.weight").T).chunk(2, -1)
        q, k, v = (part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (query, key, value))
        read = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        z = z + read.transpose(1, 2).flatten(2) @ of(f"{layer}.0.to_out.weight").T
        inside = F.gelu(normed(z, f"{layer}.1.0") @ of(f"{layer}.1.1.weight").T)
        z = z + inside @ of(f"{layer}.1.3.weight").T
        depth += 1
    return normed(z @ of("proj_out.weight").T + of("proj_out.bias"), "norm_out")
