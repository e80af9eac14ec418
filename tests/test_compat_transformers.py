"""diffusers' own IP-Adapter calls on FLUX.1 and Stable Diffusion 3.5, answered by imprompt."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import imprompt.compat
import tiny
from imprompt.errors import AmbiguousBatch, AttachmentError, InvalidReference
from imprompt.inputs.encoder import ImageEncoder
from imprompt.reference import Reference
from test_transformer_files import siglip
from test_transformers import close, differ, official, wide_adapter
from tiny_transformers import adapter, embeddings
from transformer_pipelines import CASES, TransformerCase

pytestmark = pytest.mark.filterwarnings("ignore:.FluxPosEmbed. is deprecated:FutureWarning")

FLUX, JOINT = (next(case for case in CASES if case.family == family) for family in ("FLUX.1", "SD3.5"))
SKIPPING = next(case for case in CASES if case.calls)


def flux() -> Any:
    pipe = FLUX.build()
    pipe.register_modules(image_encoder=tiny.vision_model(seed=3), feature_extractor=tiny.image_processor())
    return pipe


@contextmanager
def enable_with(pipe: Any, *files: Any, scale: Any = None) -> Iterator[None]:
    """Let imprompt answer, with these adapters."""
    imprompt.compat.enable(pipe)
    try:
        load(pipe, *files)
        if scale is not None:
            pipe.set_ip_adapter_scale(scale)
        yield
    finally:
        imprompt.compat.disable(pipe)


def load(pipe: Any, *files: Any) -> None:
    weights = [official(one) for one in files]
    if hasattr(pipe.transformer, "single_transformer_blocks"):
        options: Any = {"weight_name": [""] * len(weights), "subfolder": ""}
        pipe.load_ip_adapter(weights, image_encoder_pretrained_model_name_or_path=None, **options)
    else:
        pipe.load_ip_adapter(weights[0], image_encoder_folder=None)


def for_flux(*pictures: Tensor) -> dict[str, Any]:
    """A tensor for each adapter; the negative is a zero embedding here."""
    positive = [one[None] for one in pictures]
    negative = [torch.zeros_like(one[None]) for one in pictures]
    return {"ip_adapter_image_embeds": positive, "negative_ip_adapter_image_embeds": negative}


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("scale", [1.0, [0.3, 0.9]])
def test_flux_makes_what_diffusers_makes(guided: bool, scale: Any) -> None:
    pipe, one = flux(), adapter("flux-xlabs")
    base = FLUX.latents(pipe, guided=guided)
    given = for_flux(embeddings("flux-xlabs"))
    with enable_with(pipe, one, scale=scale):
        ours = FLUX.latents(pipe, guided=guided, **given)
        close(FLUX.latents(pipe, guided=guided), base)  # diffusers cannot be called without a picture
    assert torch.equal(FLUX.latents(pipe, guided=guided), base)
    load(pipe, one)
    pipe.set_ip_adapter_scale(scale)
    close(ours, FLUX.latents(pipe, guided=guided, **given))
    differ(ours, base)


def test_flux_makes_what_diffusers_makes_of_a_picture_and_of_two_adapters() -> None:
    pipe = flux()
    pair = [adapter("flux-xlabs"), adapter("flux-xlabs", seed=1)]
    pictures = [tiny.picture(seed=1), tiny.picture(seed=2)]
    with enable_with(pipe, *pair, scale=[0.4, 0.8]):
        ours = FLUX.latents(pipe, ip_adapter_image=pictures)
    pipe = flux()
    load(pipe, *pair)
    pipe.set_ip_adapter_scale([0.4, 0.8])
    close(ours, FLUX.latents(pipe, ip_adapter_image=pictures))


def test_two_prompts_with_a_picture_each_are_kept_apart_on_flux() -> None:
    """diffusers merges them silently: each row gets both pictures."""
    pipe, one, prompts = flux(), adapter("flux-xlabs"), ["a cat", "a red dog"]
    pictures = torch.stack([embeddings("flux-xlabs", seed=seed) for seed in range(2)])
    given: Any = {"ip_adapter_image_embeds": [pictures], "negative_ip_adapter_image_embeds": [pictures * 0]}
    with enable_with(pipe, one):
        together = FLUX.latents(pipe, prompts, **given)
        for row, prompt in enumerate(prompts):
            alone = FLUX.latents(pipe, [prompt], seeds=[row], **for_flux(pictures[row]))
            close(together[row : row + 1], alone)
    load(pipe, one)
    differ(FLUX.latents(pipe, prompts, **given), together)


def test_masks_act_on_flux() -> None:
    """diffusers accepts them and ignores them."""
    pipe, one = flux(), adapter("flux-xlabs")
    left = torch.zeros(1, 1, 16, 24)
    left[..., :12] = 1
    given = for_flux(embeddings("flux-xlabs"))
    with enable_with(pipe, one):
        halves = [
            FLUX.latents(pipe, joint_attention_kwargs={"ip_adapter_masks": [mask]}, **given)
            for mask in (left, 1 - left, torch.ones_like(left))
        ]
        everywhere = FLUX.latents(pipe, **given)
    close(halves[2], everywhere)
    differ(halves[0], everywhere)
    differ(halves[0], halves[1])


def test_the_callers_dictionary_stays_as_it_is() -> None:
    """diffusers leaves the image embeddings in it."""
    pipe, given = flux(), {"ip_adapter_masks": None}
    with enable_with(pipe, adapter("flux-xlabs")):
        before = dict(given)
        FLUX.latents(pipe, joint_attention_kwargs=dict(given), **for_flux(embeddings("flux-xlabs")))
    assert given == before


def test_embeddings_need_no_image_encoder_without_guidance() -> None:
    """diffusers encodes a black picture although nothing needs it, and crashes."""
    pipe = FLUX.build()
    given: Any = {"ip_adapter_image_embeds": [embeddings("flux-xlabs")[None]]}
    given["negative_ip_adapter_image_embeds"] = given["ip_adapter_image_embeds"]
    imprompt.compat.enable(pipe)
    pipe.load_ip_adapter(
        official(adapter("flux-xlabs")),
        weight_name="",
        image_encoder_pretrained_model_name_or_path=None,
    )
    assert FLUX.latents(pipe, guided=False, **given).isfinite().all()
    imprompt.compat.disable(pipe)


@pytest.mark.parametrize("guided", [True, False])
@pytest.mark.parametrize("scale", [None, 0.8])
def test_sd35_makes_what_diffusers_makes(guided: bool, scale: float | None) -> None:
    pipe, one = JOINT.build(), wide_adapter()
    base = JOINT.latents(pipe, guided=guided)
    features = embeddings("sd35")
    both = torch.cat([torch.zeros_like(features), features]) if guided else features
    with enable_with(pipe, one, scale=scale):
        assert pipe.is_ip_adapter_active
        ours = JOINT.latents(pipe, guided=guided, ip_adapter_image_embeds=both)
        close(JOINT.latents(pipe, guided=guided), base)
    assert not pipe.is_ip_adapter_active
    assert torch.equal(JOINT.latents(pipe, guided=guided), base)
    load(pipe, one)
    if scale is not None:
        pipe.set_ip_adapter_scale(scale)
    close(ours, JOINT.latents(pipe, guided=guided, ip_adapter_image_embeds=both))
    differ(ours, base)


def test_sd35_makes_what_diffusers_makes_of_a_picture() -> None:
    pipe, one = JOINT.build(), wide_adapter()
    from transformers import SiglipImageProcessorPil  # pyright: ignore[reportAttributeAccessIssue]

    processor = SiglipImageProcessorPil(size={"height": 28, "width": 28})
    pipe.register_modules(image_encoder=siglip(), feature_extractor=processor)
    picture = tiny.picture(width=40, height=24)
    with enable_with(pipe, one):
        ours = JOINT.latents(pipe, ip_adapter_image=picture)
    one.image_encoder = ImageEncoder(siglip())
    with one.attach(pipe), one.use(Reference(picture, scale=0.5)):
        close(ours, JOINT.latents(pipe))
    pipe.register_modules(image_encoder=siglip(), feature_extractor=processor)
    load(pipe, one)
    close(ours, JOINT.latents(pipe, ip_adapter_image=picture))


def test_skip_layer_guidance_gets_the_positive_picture_alone() -> None:
    """diffusers gives the third call both branches' features, merged into one sequence."""
    pipe, one, features = SKIPPING.build(), wide_adapter(), embeddings("sd35")
    both = torch.cat([torch.zeros_like(features), features])
    with enable_with(pipe, one, scale=0.7):
        ours = SKIPPING.latents(pipe, ip_adapter_image_embeds=both)
    with one.attach(pipe), one.use(Reference(features, scale=0.7)):
        close(ours, SKIPPING.latents(pipe))
    load(pipe, one)
    pipe.set_ip_adapter_scale(0.7)
    assert (SKIPPING.latents(pipe, ip_adapter_image_embeds=both) - ours).abs().max() > 1e-4


def test_two_prompts_with_a_picture_each_are_kept_apart_on_sd35() -> None:
    """diffusers fails: four rows for two."""
    pipe, one, prompts = JOINT.build(), wide_adapter(), ["a cat", "a red dog"]
    features = embeddings("sd35", 2)
    both = torch.cat([torch.zeros_like(features), features])
    with enable_with(pipe, one):
        together = JOINT.latents(pipe, prompts, ip_adapter_image_embeds=both)
        for row, prompt in enumerate(prompts):
            alone = torch.stack([torch.zeros_like(features[row]), features[row]])
            close(
                together[row : row + 1],
                JOINT.latents(pipe, [prompt], seeds=[row], ip_adapter_image_embeds=alone),
            )
    load(pipe, one)
    with pytest.raises(RuntimeError):
        JOINT.latents(pipe, prompts, ip_adapter_image_embeds=both)


@pytest.mark.parametrize("case", [FLUX, JOINT], ids=str)
def test_disabling_leaves_nothing(case: TransformerCase) -> None:
    pipe = case.build()
    before = {name: dict(vars(module)) for name, module in pipe.transformer.named_modules()}
    kind: Any = type(pipe)
    methods = {name: getattr(kind, name) for name in ("load_ip_adapter", "set_ip_adapter_scale")}
    with enable_with(pipe, adapter("flux-xlabs") if case is FLUX else wide_adapter()):
        assert getattr(kind, "load_ip_adapter") is not methods["load_ip_adapter"]  # noqa: B009
    for name, module in pipe.transformer.named_modules():
        assert vars(module).keys() == before[name].keys()
        assert not module._forward_hooks
    assert {name: getattr(kind, name) for name in methods} == methods


def test_what_does_not_fit_is_refused() -> None:
    pipe = flux()
    with enable_with(pipe, adapter("flux-xlabs")):
        with pytest.raises(InvalidReference, match="got 3 scales for 2 blocks"):
            pipe.set_ip_adapter_scale([0.1, 0.2, 0.3])
        three = [embeddings("flux-xlabs", 3)[:, None]]
        given: Any = {"ip_adapter_image_embeds": three, "negative_ip_adapter_image_embeds": three}
        with pytest.raises(AmbiguousBatch, match="rows for 2 prompts"):
            FLUX.latents(pipe, ["a", "b"], **given)
        pipe.unload_ip_adapter()
        with pytest.raises(AttachmentError, match="no IP-Adapter is loaded on this transformer"):
            pipe.set_ip_adapter_scale(1.0)
    load(pipe, adapter("flux-xlabs"))
    with pytest.raises(AttachmentError, match="own IP-Adapter is loaded on this transformer"):
        imprompt.compat.enable(pipe)
