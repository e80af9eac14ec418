"""`imprompt generate`: options → a job → pictures."""

from pathlib import Path
from typing import Annotated

import typer

from imprompt.cli.jobs import generate_files
from imprompt.cli.options import drop_defaults
from imprompt.cli.terminal import complete_adapter, number_option

EACH = "Per reference (give once for all, or once for each; '-' skips one)"
START = "Image-to-image, inpainting and ControlNet"
MODELS = "Models"
SAMPLING = "Sampling and text"
MACHINE = "Device and memory"
JOBS = "Jobs"


def add_to(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(generate)


def generate(
    reference: Annotated[
        list[str] | None,
        typer.Argument(
            help="Image prompts: pictures or embedding files. Several act together. '-' is standard input; "
            "a folder stands for each of its pictures in turn.",
            show_default=False,
        ),
    ] = None,
    prompt: Annotated[str | None, typer.Option(help="Text prompt.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="Negative text prompt.")] = None,
    guidance_scale: Annotated[
        float | None,
        number_option(
            "Scale of classifier-free guidance; 1 turns it off. Default: 7.5; on the embedded model 3, on "
            "FLUX.1 3.5, on SD3.5 4.5."
        ),
    ] = None,
    guidance_interval: Annotated[
        str | None,
        typer.Option(
            metavar="<start,end>",
            help="Fractions of the steps between which there is guidance: 0,0.6 leaves it out of the last 40 "
            "percent, which is faster. Default: 0,1.",
        ),
    ] = None,
    true_guidance_scale: Annotated[
        float | None,
        number_option("FLUX.1: scale of guidance away from the negative prompt; 1 turns it off. Default: 1."),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Number of denoising steps. Default: 25.")] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="The same seed gives the same picture. Default: 0.")
    ] = None,
    count: Annotated[
        int | None,
        typer.Option(min=1, help="Number of pictures; their seeds count up from --seed. Default: 1."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="<size>",
            help="Width and height in pixels: 512x768, or one number for both. Default: those of the base.",
        ),
    ] = None,
    width: Annotated[int | None, typer.Option(min=8, help="Width in pixels, with --height.")] = None,
    height: Annotated[int | None, typer.Option(min=8, help="Height in pixels, with --width.")] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="File to write: .png, .jpg or .webp; several are out-0.png, out-1.png, ... If a file is "
            "there, the next free number is taken. Default: out.png."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files, instead of taking free names.")
    ] = False,
    view: Annotated[
        bool,
        typer.Option(
            "--view", help="Also write what the image encoder sees of each reference, to out-seen.png."
        ),
    ] = False,
    scale: Annotated[
        list[float] | None, number_option("Weight λ of the image prompt; 0 ignores it. Default: 1.", EACH)
    ] = None,
    mode: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<mode>",
            help='Layers on which it acts: full, style, composition, "strong style", ...; '
            "`imprompt layers` draws them.",
            rich_help_panel=EACH,
        ),
    ] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(
            help="Mask of the region in which it acts (white).",
            metavar="<file>",
            rich_help_panel=EACH,
        ),
    ] = None,
    from_: Annotated[
        list[float] | None,
        number_option("Fraction of the steps at which it starts to act, 0 to 1.", EACH, "--from", "--start"),
    ] = None,
    until: Annotated[
        list[float] | None,
        number_option("Fraction of the steps at which it stops acting, 0 to 1.", EACH, "--until", "--end"),
    ] = None,
    crop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="<crop>",
            help="How the encoder's square is cut: center, top, bottom, left, right, pad, stretch, tiles, "
            "or a position x,y.",
            rich_help_panel=EACH,
        ),
    ] = None,
    negative: Annotated[
        list[str] | None,
        typer.Option(help="Negative image prompt.", metavar="<file>", rich_help_panel=EACH),
    ] = None,
    combine: Annotated[
        str | None,
        typer.Option(
            help="Combine all pictures into one reference: concat, average, add, subtract, "
            "'normalized average' or interpolate.",
            rich_help_panel=EACH,
        ),
    ] = None,
    init_image: Annotated[
        str | None,
        typer.Option(help="Picture to start from (image-to-image).", metavar="<file>", rich_help_panel=START),
    ] = None,
    strength: Annotated[
        float | None,
        number_option("How much of the picture is repainted, 0 to 1. Default: 0.8; 1 with --inpaint.", START),
    ] = None,
    inpaint: Annotated[
        str | None,
        typer.Option(
            help="Inpainting mask: white is repainted, black is kept.",
            metavar="<file>",
            rich_help_panel=START,
        ),
    ] = None,
    control: Annotated[
        list[str] | None,
        typer.Option(
            help="Control image of a ControlNet; the mini ControlNet takes its edges. May be repeated.",
            metavar="<file>",
            rich_help_panel=START,
        ),
    ] = None,
    control_model: Annotated[
        list[str] | None,
        typer.Option(
            help="ControlNet for the control image: mini, a folder, or a hub id.",
            metavar="<model>",
            rich_help_panel=START,
        ),
    ] = None,
    control_scale: Annotated[
        list[float] | None, number_option("Conditioning scale of the ControlNet. Default: 1.", START)
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(
            help="Base model: mini, mini:STYLE, a folder in diffusers' format, a hub id, or a single file "
            "(.safetensors, .ckpt) of Stable Diffusion 1.5, 2.x or SDXL. Default: the one that fits "
            "--adapter, or mini.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    adapter: Annotated[
        str | None,
        typer.Option(
            help="Image-prompt adapter: mini, mini-plus, a short name (see `imprompt variants`), a file, or "
            "owner/name:file on the hub. Default: the one that fits --base, or mini.",
            autocompletion=complete_adapter,
            rich_help_panel=MODELS,
        ),
    ] = None,
    image_encoder: Annotated[
        str | None,
        typer.Option(
            help="Image encoder: a folder or a hub id. Default: the one that the adapter was trained with.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    loras: Annotated[
        list[str] | None,
        typer.Option(
            "--lora",
            metavar="<file[:weight]>",
            help="LoRA that changes the base: a file or owner/name:file on the hub. May be repeated.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    vae: Annotated[
        str | None,
        typer.Option(
            metavar="<model>",
            help="Another autoencoder: a folder, a file, or a hub id.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    embeddings: Annotated[
        list[str] | None,
        typer.Option(
            "--embedding",
            metavar="<[token=]file>",
            help="Textual inversion; its token is the file's name by default. May be repeated.",
            rich_help_panel=MODELS,
        ),
    ] = None,
    variant: Annotated[
        str | None,
        typer.Option(help="Variant of the base's files, for instance fp16.", rich_help_panel=MODELS),
    ] = None,
    revision: Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of the base's repository.", rich_help_panel=MODELS),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="<name>",
            help="Sampler: ddim, euler, euler_a, dpm++_2m, dpm++_2m_karras, unipc, heun, lcm, tcd, ... "
            "Default: the base's own.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    speed: Annotated[
        str | None,
        typer.Option(
            metavar="<speed>",
            help="exact, balanced or fast: sampler and number of steps at once. For bases and LoRAs of few "
            "steps: lcm, hyper, lightning or turbo. Other options override them. "
            "Default: exact.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    feature_cache: Annotated[
        int | None,
        typer.Option(
            metavar="<n>",
            help="Compute the U-Net's deep blocks at every n-th step only. Default: 1, at every step.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    clip_skip: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=12,
            help="Layer of the text encoder that is read, counted from its end as in A1111. Default: that of "
            "the base.",
            rich_help_panel=SAMPLING,
        ),
    ] = None,
    prompt_weighting: Annotated[
        bool,
        typer.Option(
            "--prompt-weighting",
            help='Read weights such as "(red)1.3 hair--" and prompts of any length (compel\'s syntax).',
            rich_help_panel=SAMPLING,
        ),
    ] = False,
    device: Annotated[
        str | None,
        typer.Option(
            metavar="<name>",
            help="cuda, mps, xpu or cpu. Default: the fastest there is.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="<name>",
            help="float32, float16, bfloat16, or auto: the fastest of this CPU, found by timing. Default: "
            "float16 on a GPU, float32 on the CPU.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(
            metavar="<name>",
            help="What computes the U-Net: torch, or openvino, faster on a CPU; it converts each base once. "
            "Default: torch.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    offload: Annotated[
        str | None,
        typer.Option(
            metavar="<kind>",
            help="Keep the base in main memory, and move it to the GPU by model, sequential (by layer) or "
            "group.",
            rich_help_panel=MACHINE,
        ),
    ] = None,
    cuda_graphs: Annotated[
        bool,
        typer.Option(
            "--cuda-graphs",
            help="Compute the U-Net by CUDA graphs: the same pictures, with less work for the processor.",
            rich_help_panel=MACHINE,
        ),
    ] = False,
    tiling: Annotated[
        bool,
        typer.Option(
            "--tiling", help="Decode the picture in tiles, to save memory.", rich_help_panel=MACHINE
        ),
    ] = False,
    job: Annotated[
        Path | None,
        typer.Option(
            help="Read all settings from a TOML file; only --output, --seed and --count override them.",
            rich_help_panel=JOBS,
        ),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(
            help="Reuse all settings stored in an image made by imprompt; other options override them.",
            rich_help_panel=JOBS,
        ),
    ] = None,
    save_job: Annotated[
        Path | None,
        typer.Option(help="Also write the settings as a TOML file for --job.", rich_help_panel=JOBS),
    ] = None,
) -> None:
    """Generate pictures from image prompts, with or without text.

    [bold]Examples[/bold]

    imprompt generate cat.png

    imprompt generate cat.png --prompt "on a blue background" --scale 0.6

    imprompt generate cat.png room.png --mode style --mode composition

    imprompt generate cat.png dog.png --mask left.png --mask right.png --scale 0.8 --scale 1

    imprompt generate cat.png --init-image photo.png --inpaint mask.png

    imprompt generate cat.png --adapter sd15 --lora style.safetensors:0.7 --scheduler dpm++_2m_karras

    imprompt generate --like out.png --seed 1 --count 4

    imprompt generate photos --prompt "in the rain" --size 512x768 --output rain.jpg

    Each picture carries its settings; [bold]imprompt inspect out.png[/bold] shows them.
    """
    generate_files(drop_defaults(locals()), view=view, save_job=save_job, overwrite=overwrite)
