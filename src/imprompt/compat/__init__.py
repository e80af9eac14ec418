"""Diffusers' own IP-Adapter calls on imprompt's adapters, for scripts that use them already.

    imprompt.compat.enable(pipe)                                  # the one new line
    pipe.load_ip_adapter("h94/IP-Adapter", subfolder="models", weight_name="ip-adapter_sd15.safetensors")
    pipe.set_ip_adapter_scale(0.6)
    picture = pipe("a cat", ip_adapter_image=cat).images[0]

Everything belongs to the U-Net: all pipelines that have it take these calls, also those that are made later.
The pictures are those of diffusers, computed as `adapter.attach` does: K' and V' once per generation, the
base unchanged. docs/from-diffusers.md lists the calls, and where they differ from diffusers because diffusers
has a fault.

    scales     `set_ip_adapter_scale`: numbers and dictionaries → λ of each layer
    rows       which row of the prepared embeddings belongs to which row of the U-Net's batch
    inputs     embeddings and masks → K', λV' and masks of each layer
    adapters   the adapters of one denoiser
    transformers  those of FLUX.1 and Stable Diffusion 3.5
    calls      `load_ip_adapter` and its companions on every pipeline
"""

from imprompt.attention.denoiser_call import name_denoiser
from imprompt.attention.diffusers_internals import has_own_ip_adapter, unwrap_compiled
from imprompt.attention.placement import get_denoiser, get_unet
from imprompt.compat.calls import MIXINS, find_adapters, start_answering, stop_answering
from imprompt.compat.transformers import build_adapters
from imprompt.errors import AttachmentError

__all__ = ["disable", "enable"]


def enable(pipe: object) -> None:
    """Let imprompt answer diffusers' IP-Adapter calls, on this pipeline and on all that share its U-Net.

    These are `load_ip_adapter`, `set_ip_adapter_scale`, `unload_ip_adapter` and
    `prepare_ip_adapter_image_embeds`; and `ip_adapter_image`, `ip_adapter_image_embeds` and
    `cross_attention_kwargs={"ip_adapter_masks": ...}` in the pipeline's call. If it is enabled already,
    nothing happens.

    Args:
        pipe: a diffusers pipeline with a U-Net that has these calls

    Raises:
        AttachmentError: it has no U-Net or not these calls, or diffusers' own IP-Adapter is loaded
    """
    called = get_denoiser(pipe)
    denoiser = unwrap_compiled(called)
    if name_denoiser(denoiser) == "U-Net":
        get_unet(pipe)  # refuses other kinds of U-Nets
    if not isinstance(pipe, MIXINS):
        raise AttachmentError(
            f"{type(pipe).__name__} has no load_ip_adapter in diffusers; use adapter.attach(pipe) of "
            "imprompt.load_adapter(...) with it"
        )
    if has_own_ip_adapter(denoiser):
        raise AttachmentError(
            f"diffusers' own IP-Adapter is loaded on this {name_denoiser(denoiser)}; call "
            "pipe.unload_ip_adapter() first"
        )
    if find_adapters(pipe) is None:
        start_answering(build_adapters(denoiser, called))


def disable(pipe: object) -> None:
    """Undo `enable`: unload all adapters, and leave the pipeline and its U-Net as they were before.

    Raises:
        AttachmentError: it is not enabled
    """
    adapters = find_adapters(pipe)
    if adapters is None:
        noun = name_denoiser(unwrap_compiled(get_denoiser(pipe)))
        raise AttachmentError(f"imprompt.compat is not enabled on this pipeline's {noun}")
    stop_answering(adapters)
