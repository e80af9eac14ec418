"""The faults of diffusers' adapters for transformers and of public ports; each has a test that it is gone.

"S" are those of diffusers 0.42 on Stable Diffusion 3.5, "F" those on FLUX.1, "P" those of other programs.
Where diffusers' behavior can be shown, it is. Left out are a report that nobody has reproduced (S2), and
three faults that are here, too: the resampler runs at every step (S12), tensor parallelism is not supported
(F10), and diffusers' skipping of attention fails on any FLUX.1 (F11).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from by_hand_transformers import ByHand, HandTerm
from faults import fault
from imprompt.checkpoint import PUBLISHED, build_adapter, load_adapter, save_adapter
from imprompt.errors import AdapterMismatch, AttachmentError, CheckpointError
from imprompt.reference import Reference
from test_transformer_files import siglip, tensors_of, write, xlabs_layout
from test_transformers import close, differ, official, run, run_prompted, wide_adapter
from tiny_transformers import adapter, call, embeddings, joint_transformer, transformer
from transformer_pipelines import CASES

FLUX, JOINT = (next(case for case in CASES if case.family == family) for family in ("FLUX.1", "SD3.5"))
SKIPPING = next(case for case in CASES if case.calls)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


# Stable Diffusion 3.5


@fault("S1")
def test_the_published_file_is_known_by_a_short_name() -> None:
    """diffusers looks for ip-adapter.safetensors, which the repository does not have."""
    assert PUBLISHED["sd35"].file == "ip-adapter.bin"


@fault("S3")
def test_an_image_encoder_is_loaded_from_where_it_is(tmp_path: Path) -> None:
    """diffusers takes the folder's name for a repository."""
    siglip().save_pretrained(tmp_path / "image_encoder")
    save_adapter(wide_adapter(), tmp_path / "a.safetensors")
    loaded = load_adapter(tmp_path / "a.safetensors", image_encoder=tmp_path / "image_encoder")
    assert loaded.image_encoder is not None
    assert loaded.image_encoder.is_siglip


@fault("S4")
def test_a_file_with_a_missing_tensor_is_refused(tmp_path: Path) -> None:
    """With diffusers it loads, and runs with a tensor that has no values."""
    tensors = tensors_of(wide_adapter())
    del tensors["ip_adapter.1.to_v_ip.weight"]
    with pytest.raises(CheckpointError, match=r"ip_adapter\.1\.to_v_ip\.weight is missing"):
        load_adapter(write(tensors, tmp_path), image_encoder=None)


@fault("S5")
def test_the_resampler_has_as_many_layers_as_the_file(tmp_path: Path) -> None:
    """diffusers builds four."""
    one = adapter("sd35")
    save_adapter(one, tmp_path / "a.safetensors")
    loaded: Any = load_adapter(tmp_path / "a.safetensors", image_encoder=None).projection
    assert len(loaded.layers) == 2


@fault("S6")
def test_the_transformer_has_no_more_attention_processors_than_before() -> None:
    """diffusers adds those of the resampler."""
    model = transformer("sd35")
    names = [*model.attn_processors]
    with wide_adapter().attach(model):
        assert [*model.attn_processors] == names
    model._load_ip_adapter_weights(official(wide_adapter()))
    assert len(model.attn_processors) == len(names) + 4


@fault("S7")
def test_fusing_after_attaching_is_answered_with_a_sentence() -> None:
    """diffusers crashes on a module without weight."""
    model, one = transformer("sd35"), wide_adapter()
    with one.attach(model), one.use(embeddings("sd35")):
        model.fuse_qkv_projections()
        with pytest.raises(AttachmentError, match="was given another processor"):
            run(model, call("sd35"))
    model = transformer("sd35")
    model._load_ip_adapter_weights(official(one))
    with pytest.raises(AttributeError):
        model.fuse_qkv_projections()


@fault("S8")
def test_skip_layer_guidance_has_the_positive_picture_in_its_third_call() -> None:
    """diffusers merges the tokens of both branches there."""
    pipe, one = SKIPPING.build(), wide_adapter()
    features = embeddings("sd35")
    with one.attach(pipe), one.use(Reference(features, scale=0.7)):
        ours = SKIPPING.latents(pipe)
    term = HandTerm(one, features[None], torch.zeros_like(features)[None], 0.7)
    with ByHand(pipe.transformer, [term], calls=SKIPPING.calls).install():
        close(ours, SKIPPING.latents(pipe))


@fault("S9")
def test_every_prompt_of_a_batch_may_have_its_picture() -> None:
    model, one, inputs = transformer("sd35"), wide_adapter(), call("sd35")
    pair = [embeddings("sd35", seed=seed) for seed in range(2)]
    together = run_prompted(model, one, inputs, pair)
    for row in range(2):
        close(together[row], run_prompted(model, one, inputs, pair[row])[row])


@fault("S10")
def test_a_base_with_two_attentions_in_a_block_is_refused() -> None:
    """diffusers puts the image branch on both."""
    with pytest.raises(AdapterMismatch, match="blocks with two attentions"):
        wide_adapter().attach(joint_transformer(dual=(0, 1)))


@fault("S11")
def test_several_adapters_act_together_where_and_how_strongly_each_is_asked_to() -> None:
    """diffusers has one, with one number."""
    model, inputs, pictures = transformer("sd35"), call("sd35"), [embeddings("sd35", seed=s) for s in (0, 1)]
    one, other, half = wide_adapter(), wide_adapter(seed=4), torch.eye(4, 6)
    with other.attach(model), other.use(Reference(pictures[1], layers={"transformer_blocks.1": 0.5})):
        ours = run_prompted(model, one, inputs, Reference(pictures[0], mask=half))
    terms = [
        HandTerm(one, pictures[0].expand(2, 1, -1, -1), where=half),
        HandTerm(other, pictures[1].expand(2, 1, -1, -1), on=lambda name: 0.5 * ("1" in name)),
    ]
    with ByHand(model, terms).install():
        close(ours, run(model, inputs))


@fault("S13")
def test_a_base_without_its_norms_is_refused() -> None:
    """diffusers' fused processor leaves them out: a fault that this work found."""
    model, inputs = transformer("sd35"), call("sd35")
    base = run(model, inputs)
    model.fuse_qkv_projections()
    differ(run(model, inputs), base)
    with pytest.raises(AttachmentError, match="leaves out the norms"):
        wide_adapter().attach(model)


# FLUX.1


@fault("F1")
def test_instantx_file_loads_and_acts(tmp_path: Path) -> None:
    """With diffusers: KeyError '0.to_k_ip.bias'."""
    one = adapter("flux-instantx")
    save_adapter(one, tmp_path / "a.safetensors")
    loaded = load_adapter(tmp_path / "a.safetensors", image_encoder=None)
    assert loaded.injection == "flux-instantx"
    with pytest.raises(KeyError):
        transformer("flux-xlabs")._load_ip_adapter_weights(official(one))


@fault("F2")
@pytest.mark.parametrize("tokens", [1, 7, 16])
def test_an_adapter_has_any_number_of_tokens(tokens: int, tmp_path: Path) -> None:
    """diffusers knows 4, and 16 of one width."""
    one = adapter("flux-xlabs", tokens=tokens)
    loaded = load_adapter(write(xlabs_layout(tensors_of(one)), tmp_path), image_encoder=None)
    assert loaded.projection.tokens == tokens
    with pytest.raises(ValueError, match="expected shape"):
        transformer("flux-xlabs")._load_ip_adapter_weights(official(one))


@fault("F3")
def test_a_call_without_a_picture_is_the_base() -> None:
    model, inputs = transformer("flux-xlabs"), call("flux-xlabs")
    base = run(model, inputs)
    with adapter("flux-xlabs").attach(model):
        assert torch.equal(run(model, inputs), base)
    model._load_ip_adapter_weights(official(adapter("flux-xlabs")))
    with pytest.raises(TypeError):
        run(model, inputs)


@fault("F4")
def test_two_prompts_with_a_picture_each_are_kept_apart() -> None:
    """With diffusers each row gets the tokens of both."""
    model, one, inputs = transformer("flux-xlabs"), adapter("flux-xlabs"), call("flux-xlabs")
    pair = [embeddings("flux-xlabs", seed=seed) for seed in range(2)]
    ours = run_prompted(model, one, inputs, pair)
    for row in range(2):
        close(ours[row], run_prompted(model, one, inputs, pair[row])[row])


@fault("F5")
def test_masks_act() -> None:
    """diffusers accepts them and ignores them."""
    model, one, inputs = transformer("flux-xlabs"), adapter("flux-xlabs"), call("flux-xlabs")
    picture, mask = embeddings("flux-xlabs"), torch.eye(4, 6)
    ours = run_prompted(model, one, inputs, Reference(picture, mask=mask))
    differ(ours, run_prompted(model, one, inputs, picture))
    with ByHand(model, [HandTerm(one, picture.expand(2, 1, -1), where=mask)]).install():
        close(ours, run(model, inputs))


@fault("F6")
def test_embeddings_need_an_image_encoder_with_guidance_alone() -> None:
    """diffusers encodes a black picture in any case."""
    pipe, one = FLUX.build(), adapter("flux-xlabs")
    with one.attach(pipe), one.use(embeddings("flux-xlabs")):
        assert FLUX.latents(pipe, guided=False).isfinite().all()
        with pytest.raises(AdapterMismatch, match="takes a black picture for no image"):
            FLUX.latents(pipe)
    picture = embeddings("flux-xlabs")
    with one.attach(pipe), one.use(Reference(picture, negative=torch.zeros_like(picture))):
        assert FLUX.latents(pipe).isfinite().all()


@fault("F7")
def test_the_order_of_a_files_parts_does_not_matter() -> None:
    tensors: Any = official(adapter("flux-xlabs"))
    turned = {name: tensors[name] for name in ("ip_adapter", "image_proj")}
    assert build_adapter(turned, name="turned").injection == "flux-xlabs"


@fault("F8")
def test_the_callers_dictionary_stays_as_it_is() -> None:
    pipe, one, given = FLUX.build(), adapter("flux-instantx"), {}
    with one.attach(pipe), one.use(embeddings("flux-instantx")):
        FLUX.latents(pipe, joint_attention_kwargs=given)
    assert given == {}


@fault("F9")
def test_keys_and_values_are_computed_once_and_never_at_scale_zero() -> None:
    pipe, one = FLUX.build(), adapter("flux-instantx")
    count: list[int] = []
    for layer in one.layers.values():
        layer.register_forward_hook(lambda *_: count.append(1))
    with one.attach(pipe), one.use(embeddings("flux-instantx")):
        FLUX.latents(pipe)
    assert len(count) == 2 * len(one.layers)  # for both branches
    count.clear()
    with one.attach(pipe), one.use(Reference(embeddings("flux-instantx"), scale=0)):
        FLUX.latents(pipe)
        assert not any(hook.latest.terms for hook in one._require_attachment().layers.terms.values())
    assert count == []


# Ports, and InstantX' own code


def deviates(deviation: str) -> None:
    model, one, inputs = transformer("flux-instantx"), adapter("flux-instantx"), call("flux-instantx")
    picture = embeddings("flux-instantx")
    ours = run_prompted(model, one, inputs, picture)
    term = HandTerm(one, picture.expand(2, 1, -1))
    with ByHand(model, [term]).install():
        close(ours, run(model, inputs))
    with ByHand(model, [term], deviation=deviation).install():
        differ(ours, run(model, inputs))


@fault("P1")
def test_values_are_not_normalized() -> None:
    """Shakker-Labs' node and a diffusers port normalize them."""
    deviates("V' normalized")


@fault("P2")
def test_the_query_is_taken_before_rotation_in_single_blocks_too() -> None:
    """DiffSynth and a diffusers port take it after."""
    deviates("the query after rotation")


@fault("P3")
def test_the_term_is_added_before_the_output_projection() -> None:
    """A diffusers port adds it after, without the block's gate."""
    deviates("added after W_out")


@fault("P4")
def test_without_a_negative_picture_the_negative_branch_is_the_bases() -> None:
    """DiffSynth puts a projected zero vector there, at scale 1 whatever the scale is."""
    pipe, one, picture = FLUX.build(), adapter("flux-instantx"), embeddings("flux-instantx")
    with one.attach(pipe), one.use(Reference(picture, scale=0.5)):
        ours = FLUX.latents(pipe)
    layout: Any = FLUX.guided
    with ByHand(pipe.transformer, [HandTerm(one, picture[None], None, 0.5)], layout).install():
        close(ours, FLUX.latents(pipe))


@fault("P5")
def test_the_time_step_keeps_its_digits_in_half_precision() -> None:
    """InstantX' own code for Stable Diffusion 3.5 rounds it to the latents' format: to 4 above 512."""
    one, features = wide_adapter(), embeddings("sd35")
    exact = one.convert(torch.bfloat16)
    inputs: Any = {"image_features": features[None].to(torch.bfloat16)}
    times = torch.tensor([701.0])
    with torch.no_grad():
        ours, rounded = (exact.project_at(inputs, t)[1] for t in (times, times.to(torch.bfloat16)))
    assert not torch.equal(ours, rounded)


@fault("P6")
def test_the_query_of_sd35_is_normalized_once() -> None:
    """A port takes the base's normalized query, and normalizes it again."""
    model, one, inputs = transformer("sd35"), wide_adapter(), call("sd35")
    features = embeddings("sd35")
    ours = run_prompted(model, one, inputs, features)
    with ByHand(model, [HandTerm(one, features.expand(2, 1, -1, -1))]).install():
        close(ours, run(model, inputs))
    assert isinstance(model.transformer_blocks[0].attn.norm_q, nn.Module)
    assert isinstance(ours, Tensor)
