"""The model card of a finished adapter: purpose, use, data, recipe and quality.

In the form that the Hugging Face hub reads: facts for machines between two lines of `---`, then Markdown.
"""

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from safetensors import safe_open

from imprompt.errors import TrainingError
from imprompt.report import format_short
from imprompt.runtime.environment import PACKAGES
from imprompt.runtime.foreign_models import is_embedded, is_hub_id, parse_source
from imprompt.runtime.output import write_atomically
from imprompt.training.mechanisms import MECHANISMS
from imprompt.training.watching.commands import is_decoupled, model_options
from imprompt.training.watching.history import History, format_duration, read_history
from imprompt.training.watching.verdict import judge_adapter

CARD_FILE = "README.md"
ADAPTER_FILE = "adapter.safetensors"

_IN_DIFFUSERS = ("base", "plus", "full-face")
_FACES = ("faceid", "faceid-plus", "faceid-plusv2")


def write_card(folder: Path) -> Path:
    """Write the model card of the run in `folder`, next to its adapter, and return its path.

    Raises:
        TrainingError: the run has no finished adapter
        OutputError: the card cannot be written
    """
    history = read_history(folder)
    if history.adapter_file is None:
        raise TrainingError(f"{folder} has no {history.file_name}; a model card is written of a finished run")
    path = folder / CARD_FILE
    with write_atomically(path) as part:
        part.write_text(build_card(history), encoding="utf-8")
    return path


def build_card(history: History) -> str:
    """Return the card as Markdown."""
    sections = _lora_sections(history) if history.distills else _adapter_sections(history)
    return "\n\n".join(sections) + "\n"


def _adapter_sections(history: History) -> list[str]:
    return [
        _header(history),
        f"# {history.name}: an image-prompt adapter\n\n{_what(history)}",
        f"## Use it with imprompt\n\n{_with_imprompt(history)}",
        f"## Use it with diffusers\n\n{_with_diffusers(history)}",
        f"## Training data\n\n{_data(history)}",
        f"## Recipe\n\n{_recipe(history)}",
        f"## Figures\n\n{_figures(history)}",
        f"## Limits\n\n{_limits(history)}",
        f"## Cost and versions\n\n{_cost(history)}",
    ]


def _lora_sections(history: History) -> list[str]:
    size, count = _size(history)
    model, start = history.setting("base.model", "mini"), history.setting("adapter.start")
    sampling = _few_step_sampling(history)
    about = (
        f"A LoRA with which `{model}` needs {sampling.steps}, by {sampling.method}; {count:,} parameters, "
        f"{size / 1e6:.1f} MB. Sample with diffusers’ `{sampling.scheduler}` at a guidance scale of 1."
        f"{f' The image prompts of `{start}` were distilled too.' if start else ''}"
    )
    options = model_options(history)
    options[options.index("--lora") + 1] = history.file_name
    command = shlex.join(["imprompt", "generate", "reference.png", *options])
    diffusers = _code(
        "python",
        f"from diffusers import {sampling.scheduler}",
        "",
        'pipe.load_lora_weights(".")',
        f"pipe.scheduler = {sampling.scheduler}.from_config(pipe.scheduler.config{sampling.options})",
        f'image = pipe("a prompt", num_inference_steps={sampling.number}, guidance_scale=1.0).images[0]',
    )
    return [
        _header(history),
        f"# {history.name}: a LoRA for few steps\n\n{about}",
        f"## Use it with imprompt\n\n{_code('text', command)}",
        f"## Use it with diffusers\n\n{diffusers}",
        f"## Training data\n\n{_data(history)}",
        f"## Recipe\n\n{_recipe(history)}",
        f"## Cost and versions\n\n{_cost(history)}",
    ]


class _FewStepSampling(NamedTuple):
    """How a LoRA for few steps was made, and how it is sampled."""

    method: str
    steps: str
    number: int
    scheduler: str
    options: str = ""


def _few_step_sampling(history: History) -> _FewStepSampling:
    if history.setting("distillation.method", "consistency") == "consistency":
        paper = "Luo et al. 2023, [arXiv:2311.05556](https://arxiv.org/abs/2311.05556)"
        method = f"consistency distillation (LCM-LoRA, {paper})"
        return _FewStepSampling(method, "four to eight steps", 4, "LCMScheduler")
    count = int(history.setting("distillation.solver_steps"))
    paper = "Salimans & Ho 2022, [arXiv:2202.00512](https://arxiv.org/abs/2202.00512)"
    options = ', timestep_spacing="trailing"'
    return _FewStepSampling(
        f"progressive distillation ({paper})", f"{count} steps", count, "DDIMScheduler", options
    )


def _header(history: History) -> str:
    """Return the facts that the hub reads; the owner chooses the license."""
    lines = ["library_name: diffusers", "pipeline_tag: text-to-image"]
    if (model := _hub_id(history.setting("base.model", ""))) is not None:
        lines.append(f"base_model: {model}")
    tags = (
        ("lora", "few-steps", "imprompt") if history.distills else ("ip-adapter", "image-prompt", "imprompt")
    )
    return "\n".join(["---", *lines, "tags:", *(f"- {tag}" for tag in tags), "---"])


def _hub_id(model: str) -> str | None:
    """Return the model if it is a name on the hub; a local folder means nothing to others."""
    return model if is_hub_id(model) and not Path(model).exists() else None


def _what(history: History) -> str:
    size, count = _size(history)
    get, encoder = history.setting, history.setting("base.image_encoder", "known")
    encoder_name = (
        "the embedded model’s own image encoder" if encoder == "known" else f"the image encoder `{encoder}`"
    )
    start = get("adapter.start")
    if not is_decoupled(history):
        return _describe_comparison(history, encoder_name)
    return (
        "An IP-Adapter (Ye et al. 2023, [arXiv:2308.06721](https://arxiv.org/abs/2308.06721)): images as "
        f"prompts for `{get('base.model', '?')}`. Variant “{get('adapter.variant', '?')}”, "
        f"{get('adapter.tokens', '?')} image tokens, by {encoder_name}; {count:,} trained parameters, "
        f"{size / 1e6:.1f} MB. The base and the encoder are unchanged."
        f"{f' Training started from `{start}`.' if start else ''}"
    )


def _describe_comparison(history: History, encoder_name: str) -> str:
    """Describe an adapter that was made for comparison with the decoupled one."""
    size, count = _size(history)
    mechanism = history.mechanism
    base = "trained too and stored in the file" if MECHANISMS[mechanism].trains_base else "unchanged"
    return (
        f"Images as prompts for `{history.setting('base.model', '?')}` by the mechanism “{mechanism}”, "
        f"made for comparison with the decoupled one, by {encoder_name}; {count:,} trained parameters, "
        f"{size / 1e6:.1f} MB. The encoder is unchanged, the U-Net is {base}."
    )


def _size(history: History) -> tuple[int, int]:
    """Return bytes and parameters of the adapter's file."""
    path = history.adapter_file
    assert path is not None
    with safe_open(path, "pt") as file:
        count = sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
    return path.stat().st_size, count


def _with_imprompt(history: History) -> str:
    if not is_decoupled(history):
        model = _quote(history.setting("base.model", "mini"))
        return "`imprompt generate` supports only decoupled adapters.\n\n" + _code(
            "python",
            "import imprompt",
            "from imprompt.training.mechanisms import load_mechanism",
            "",
            f"pipe = imprompt.load_pipeline({model})",
            f'mechanism = load_mechanism("{ADAPTER_FILE}", pipe)',
            'images = mechanism.generate(pipe, [image_embeddings], 1.0, {"prompt": [""]})',
        )
    options = model_options(history)
    options[options.index("--adapter") + 1] = ADAPTER_FILE
    command = shlex.join(["imprompt", "generate", "reference.png", "--scale", "0.7", *options])
    python = _code(
        "python",
        "import imprompt",
        "",
        f"pipe = imprompt.load_pipeline({_quote(history.setting('base.model', 'mini'))})",
        f"encoder = {_encoder(history)}",
        f'adapter = imprompt.load_adapter("{ADAPTER_FILE}", image_encoder=encoder)',
        'with adapter.attach(pipe), adapter.use(imprompt.Reference("reference.png", scale=0.7)):',
        '    image = pipe("").images[0]',
    )
    return f"{_code('text', command)}\n\n{python}"


def _encoder(history: History) -> str:
    """Return the image encoder as `load_adapter` takes it."""
    encoder = history.setting("base.image_encoder", "known")
    if encoder != "known":
        return _quote(encoder)
    return 'imprompt.mini.WEIGHTS / "image_encoder"' if _is_mini(history) else '"known"'


def _is_mini(history: History) -> bool:
    return is_embedded(history.setting("base.model", "mini"))


def _with_diffusers(history: History) -> str:
    if not is_decoupled(history):
        return "diffusers does not support such an adapter."
    variant, encoder = history.setting("adapter.variant"), history.setting("base.image_encoder", "known")
    if variant in _IN_DIFFUSERS and encoder != "known" and not _is_mini(history):
        return _diffusers_code(history.setting("base.model"), encoder)
    taken = "Face embeddings" if variant in _FACES else "Embeddings of the image encoder"
    return (
        f"The file is in the official layout, which diffusers reads:\n\n{_code('python', *_LOAD)}\n\n"
        f"{taken} go into the pipeline as `ip_adapter_image_embeds`."
    )


_LOAD = (
    "pipe.load_ip_adapter(",
    f'    ".", subfolder="", weight_name="{ADAPTER_FILE}", image_encoder_folder=None',
    ")",
)


def _diffusers_code(model: str, encoder: str) -> str:
    return _code(
        "python",
        "from diffusers import AutoPipelineForText2Image",
        "from diffusers.utils import load_image",
        "from transformers import CLIPVisionModelWithProjection",
        "",
        f"encoder = CLIPVisionModelWithProjection.from_pretrained({_place(encoder)})",
        f"pipe = AutoPipelineForText2Image.from_pretrained({_quote(model)}, image_encoder=encoder)",
        *_LOAD,
        "pipe.set_ip_adapter_scale(0.7)",
        'image = pipe("", ip_adapter_image=load_image("reference.png")).images[0]',
    )


def _place(encoder: str) -> str:
    """Return what `from_pretrained` takes for "owner/name:folder/in/it"."""
    source = parse_source(encoder)
    return _quote(source.name) + (f", subfolder={_quote(source.subfolder)}" if source.subfolder else "")


def _data(history: History) -> str:
    get = history.setting
    source, size, held_out = get("data.source"), get("data.size", "?"), get("data.held_out", "?")
    kept = f"{100 * held_out:g} % of them" if isinstance(held_out, float) else f"those of `{held_out}`"
    shape = "in buckets of the area of" if get("data.buckets") else "cropped to"
    return (
        f"Images and captions from {f'`{source}`' if source else 'a cache'}, {shape} {size} × {size} px; "
        f"{kept}, at most {get('data.held_out_most', '?')}, were held out and give the figures below.\n\n"
        "Add here where the images come from, what they show, and their license."
    )


def _recipe(history: History) -> str:
    get = history.setting
    drops = [f"{100 * get(f'loss.{name}_drop', 0):g} %" for name in ("image", "text", "both")]
    rows = {
        "steps × samples": f"{history.step:,} × {get('training.batch_size', '?')} = "
        f"{_count_samples(history)} samples",
        "learning rate": f"{get('training.learning_rate', '?')}, {_schedule(history)}",
        "optimizer": f"AdamW, weight decay {get('training.weight_decay', '?')}, gradients clipped to norm "
        f"{get('training.max_gradient_norm', '?')}",
        "averaged weights": f"decay {get('training.ema_decay')}" if get("training.ema_decay") else "none",
        "dropped": f"image {drops[0]}, text {drops[1]}, both {drops[2]}",
        "loss weighting": str(get("loss.weighting", "none")),
        "times": str(get("loss.timesteps", "uniform")),
        "precision": str(get("training.precision", "?")),
        "seed": str(get("training.seed", "?")),
    }
    return _table(("", ""), [[name, value] for name, value in rows.items()]) + (
        "\n\nAll settings are in `config.json`; curves and samples in `index.html`."
    )


def _schedule(history: History) -> str:
    get = history.setting
    phases = [f"{get('training.schedule', 'constant')}"]
    phases += [f"{steps:,} steps of warm-up" for steps in [get("training.warmup_steps", 0)] if steps]
    phases += [f"{steps:,} of cool-down" for steps in [get("training.cooldown_steps", 0)] if steps]
    return ", ".join(phases)


def _count_samples(history: History) -> str:
    batch = history.setting("training.batch_size")
    return f"{history.step * batch:,}" if batch else "?"


def _figures(history: History) -> str:
    """Return the last held-out figures, and the best of those that have a direction."""
    best: dict[str, Callable[..., tuple[int, float]]] = {
        "held-out loss": min,
        "gap to shuffled": max,
        "gap to none": max,
        "similarity to reference": max,
        "similarity to prompt": max,
    }
    rows = []
    for name in (*best, "similarity to a shuffled reference"):
        if points := history.finite(name):
            best_words = "–"
            if name in best:
                step, value = best[name](points, key=lambda point: point[1])
                best_words = f"{format_short(_four(value))}, at step {step:,}"
            rows.append([name, format_short(_four(points[-1][1])), best_words])
    sentence = judge_adapter(history).sentence
    table = _table(("on held-out samples", "at the end", "best"), rows)
    return f"{sentence}\n\n{table}" if rows else sentence


def _limits(history: History) -> str:
    variant = history.setting("adapter.variant", "base")
    limits = [
        "It works with this base, with fine-tunes of it, and with this image encoder.",
        "It reproduces the kinds of content in its training images; other content becomes similar to those.",
    ]
    if variant in _FACES or variant == "full-face":
        limits.append("It reproduces a person's face: use it only with that person's consent.")
    if judge_adapter(history).trend == "none":
        limits.append("By the figures above it hardly reads its reference: train it longer before use.")
    limits.append("The held-out samples come from the same data, so the figures do not cover other images.")
    return "\n".join(f"- {limit}" for limit in limits)


def _cost(history: History) -> str:
    facts = history.environment
    processes = facts.get("processes", 1)
    device = facts.get("device", "an unknown device")
    machines = f"{processes} × {device}" if processes > 1 else device
    versions = ", ".join(f"{name} {facts[name]}" for name in (*PACKAGES, "python") if name in facts)
    commit = f", commit `{facts['commit']}`" if "commit" in facts else ""
    return f"{format_duration(history.seconds)} on {machines}.{f' {versions}{commit}.' if versions else ''}"


def _table(titles: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(language: str, *lines: str) -> str:
    return "\n".join([f"```{language}", *lines, "```"])


def _quote(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _four(value: float | int) -> float | int:
    """Round to four significant digits."""
    return float(f"{value:.4g}")
