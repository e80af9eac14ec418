"""From a single file of true sizes to a picture: seconds, memory, and the distance from diffusers' adapter.

    python bench/true_sizes.py [--steps N] [--size PIXELS] [--dtype TYPE] [--compare TYPE] [--folder FOLDER]

Writes a Stable Diffusion 1.5 checkpoint (float16, 2.1 GB), an image encoder ViT-H/14 (1.3 GB) and an adapter
of the true shapes with random weights into a temporary folder. Then it runs

1. `imprompt generate` on them in a process of its own, whose peak memory and seconds it prints,
2. imprompt's adapter and diffusers' own on the same base and the same image embedding, without a picture: the
   largest difference of the latents over their largest value, which should be at most 1e-4 in float32,
3. SDXL on the meta device: the names and shapes of a whole file, which must be recognized,
4. one call of SDXL's U-Net, alone and with an adapter.

It needs 4 GB of disk and about 8 GB of memory. The pictures are noise.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import transformers
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPVisionConfig, CLIPVisionModelWithProjection

from imprompt import load_adapter, load_pipeline
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import save_adapter
from imprompt.checkpoint.files import TensorFile
from imprompt.generation.single_file.bases import BaseVariant
from imprompt.generation.single_file.configuration import compose_configuration
from imprompt.generation.single_file.recognition import recognize_tensors
from imprompt.projection import LinearProjection

sys.path.append(str(Path(__file__).parent.parent / "tests"))

from ldm_layout import convert_pipeline  # pyright: ignore[reportMissingImports]

SD15, SDXL = BaseVariant(family="SD1.5"), BaseVariant(family="SDXL")
VIT_H: dict[str, Any] = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 16,
    "projection_dim": 1024,
    "image_size": 224,
    "patch_size": 14,
    "hidden_act": "gelu",
}
"""The image encoder of the SD 1.5 adapters, OpenCLIP ViT-H/14; 632,076,800 parameters."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--size", type=int, default=512, help="width and height in pixels")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16", help="number format of the command")
    parser.add_argument(
        "--compare", choices=DTYPES, default="float32", help="number format of the comparison"
    )
    parser.add_argument("--folder", type=Path, help="where the models are written; temporary by default")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        files = write_models(Path(folder))
        run_command(files, options.steps, options.size, options.dtype)
        compare(files, options.steps, options.size, options.compare)
    check_sdxl()
    call_sdxl()
    return 0


def write_models(folder: Path) -> SimpleNamespace:
    """Write base, image encoder, adapter and a picture; return their paths."""
    files = SimpleNamespace(
        base=folder / "model.safetensors",
        encoder=folder / "encoder",
        adapter=folder / "adapter.safetensors",
        picture=folder / "picture.png",
        output=folder / "out.png",
    )
    parts = build_parts(SD15)
    save_file(fill(convert_pipeline(parts)), files.base)
    with torch.device("meta"):
        encoder = CLIPVisionModelWithProjection(CLIPVisionConfig(**VIT_H))
        adapter = ImagePromptAdapter.for_unet(parts.unet, LinearProjection(1024, 768, 4))
    materialize(encoder).half().save_pretrained(files.encoder)
    save_adapter(materialize(adapter).half(), files.adapter)
    Image.effect_noise((512, 512), 64).convert("RGB").save(files.picture)
    for name, path in (("base", files.base), ("adapter", files.adapter)):
        print(f"{name}: {path.stat().st_size / 1e9:.2f} GB")
    return files


def build_parts(base: BaseVariant) -> SimpleNamespace:
    """Build the models of a base on the meta device."""
    parts = compose_configuration(base)
    with torch.device("meta"):
        models: dict[str, Any] = {
            "unet": UNet2DConditionModel.from_config(parts["unet"]),
            "vae": AutoencoderKL.from_config(parts["vae"]),
        }
        for name in parts.keys() - {"unet", "vae", "scheduler"}:
            kind = getattr(transformers, parts[name]["architectures"][0])
            models[name] = kind(CLIPTextConfig(**parts[name]))
    return SimpleNamespace(**models)


def fill(tensors: Mapping[str, Tensor], dtype: torch.dtype = torch.float16) -> dict[str, Tensor]:
    """Return random weights of these shapes that keep the size of what passes through them."""
    generator = torch.Generator().manual_seed(0)
    return {name: random_weight(name, tensor, generator).to(dtype) for name, tensor in tensors.items()}


def random_weight(name: str, tensor: Tensor, generator: torch.Generator) -> Tensor:
    if tensor.ndim < 2:
        return torch.ones(tensor.shape) if name.endswith("weight") else torch.zeros(tensor.shape)
    fan_in = tensor[0].numel()
    return torch.randn(tensor.shape, generator=generator) * fan_in**-0.5


def materialize(model: Any, dtype: torch.dtype = torch.float32) -> Any:
    """Give a model on the meta device random weights, and the buffers of a new one."""
    model.load_state_dict(fill(model.state_dict(), dtype), assign=True)
    for module in model.modules():
        positions = module._buffers.get("position_ids") if isinstance(module, nn.Module) else None
        if positions is not None:
            module.position_ids = torch.arange(positions.shape[-1])[None]
    return model


def run_command(files: SimpleNamespace, steps: int, size: int, dtype: str) -> None:
    """Run `imprompt generate` in a process of its own, and print what it took."""
    words = ["generate", files.picture, "--base", files.base, "--adapter", files.adapter]
    words += ["--image-encoder", files.encoder, "--steps", steps, "--size", size, "--output", files.output]
    words += ["--dtype", dtype]
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "imprompt", *map(str, words)], check=True)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # Linux counts in KiB
    print(
        f"imprompt generate, {steps} steps at {size} px in {dtype}: {seconds:.1f} s, at most {peak:.2f} GiB"
    )


def compare(files: SimpleNamespace, steps: int, size: int, dtype: str) -> None:
    """Print the difference of imprompt's latents from those of diffusers' own adapter."""
    pipe: Any = load_pipeline(str(files.base), device="cpu", dtype=DTYPES[dtype])
    pipe.set_progress_bar_config(disable=True)
    embedding = torch.randn(1, VIT_H["projection_dim"], generator=torch.Generator().manual_seed(1))
    settings = {"num_inference_steps": steps, "width": size, "height": size, "output_type": "latent"}

    def latents(**arguments: Any) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe("a cat", generator=generator, **settings, **arguments).images.float()

    adapter = load_adapter(files.adapter, image_encoder=None).float()
    with adapter.attach(pipe), adapter.use(embedding):
        ours = latents()
    guided = torch.cat([torch.zeros_like(embedding), embedding])[:, None].to(DTYPES[dtype])
    folder, name = files.adapter.parent, files.adapter.name
    pipe.load_ip_adapter(str(folder), subfolder="", weight_name=name, image_encoder_folder=None)
    theirs = latents(ip_adapter_image_embeds=[guided])
    difference = ((ours - theirs).abs().max() / theirs.abs().max()).item()
    print(f"largest difference from diffusers' adapter in {dtype}: {difference:.1e} of the largest latent")


def check_sdxl() -> None:
    """Print the size of a whole SDXL file, which is recognized by names and shapes alone."""
    tensors = convert_pipeline(build_parts(SDXL))
    found = recognize_tensors(TensorFile(tensors, {}, "safetensors"))
    assert found.base == SDXL, found.name
    print(f"{found.name}: {len(tensors):,} tensors, {found.parameters:,} parameters")


@torch.no_grad()
def call_sdxl() -> None:
    """Print the seconds of one call of SDXL's U-Net in bfloat16, without and with an adapter."""
    unet = build_parts(SDXL).unet
    with torch.device("meta"):
        adapter = ImagePromptAdapter.for_unet(unet, LinearProjection(1280, 2048, 4))
    dtype = torch.bfloat16
    unet, adapter = materialize(unet, dtype), materialize(adapter, dtype)
    added = {"text_embeds": torch.randn(1, 1280, dtype=dtype), "time_ids": torch.full((1, 6), 512.0)}
    inputs: dict[str, Any] = {
        "sample": torch.randn(1, 4, 64, 64, dtype=dtype),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": torch.randn(1, 77, 2048, dtype=dtype),
        "added_cond_kwargs": added,
    }

    def call() -> tuple[Tensor, float]:
        start = time.perf_counter()
        return unet(**inputs).sample, time.perf_counter() - start

    call()
    alone, without = call()
    with adapter.attach(unet), adapter.use(torch.randn(1, 1280)):
        prompted, seconds = call()
    assert prompted.isfinite().all()
    assert not torch.equal(prompted, alone)
    print(f"SDXL's U-Net at 512 px in bfloat16: {without:.1f} s, with an adapter {seconds:.1f} s")


if __name__ == "__main__":
    sys.exit(main())
