"""OpenVINO computes what torch does, with one graph for every reference of a base, or says why not."""

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import tiny
from conftest import Result, ToyModel
from imprompt import Reference, accelerate
from imprompt.attention.sharing import list_attention_layers
from imprompt.attention.terms import ImageTerm, add_image_attention
from imprompt.backends import acceleration, conversion
from imprompt.backends.acceleration import measure_difference
from imprompt.backends.conversion import convert_unet, hash_unet
from imprompt.backends.graph import GraphUNet, list_shapes
from imprompt.backends.snapshot import UNetSnapshot
from imprompt.backends.unet_call import stack_terms
from imprompt.errors import ConfigError, MissingExtra
from imprompt.serving.engine.denoiser_calls import MergedDenoiser

pytest.importorskip("openvino", reason="OpenVINO is not installed: pip install 'imprompt[openvino]'")

TEXT = (2, tiny.CONTEXT_LEN, tiny.SD_CONTEXT)


@pytest.fixture(scope="module")
def pipe() -> Any:
    """A pipeline whose U-Net is converted, and compiled for each size, once for all tests."""
    made: Any = tiny.sd_pipeline()
    accelerate(made)
    return made


@pytest.fixture
def plain(pipe: Any) -> Iterator[Any]:
    """The same pipeline, computed by torch until the end of the test."""
    with by_torch(pipe):
        yield pipe


@contextmanager
def by_torch(pipe: Any) -> Iterator[None]:
    """Let torch compute the U-Net inside this context."""
    forward = vars(pipe.unet).pop("forward")
    try:
        yield
    finally:
        vars(pipe.unet)["forward"] = forward


@pytest.fixture
def no_conversion(monkeypatch: pytest.MonkeyPatch, pipe: Any) -> None:
    """Nothing may be converted any more."""

    def refuse(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(conversion, "write_graph", refuse)


def embedding(seed: int = 1) -> Tensor:
    return torch.randn(1, tiny.EMBEDDING_DIM, generator=torch.Generator().manual_seed(seed))


def draw(pipe: Any, prompt: str = "a cat", **arguments: Any) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    arguments = {"num_inference_steps": 3, "output_type": "latent"} | arguments
    return pipe(prompt, generator=generator, **arguments).images


def half_mask() -> Tensor:
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    return mask


REFERENCES: dict[str, Callable[[], list[Any]]] = {
    "one": lambda: [embedding()],
    "weaker": lambda: [Reference(embedding(), scale=0.3)],
    "off": lambda: [Reference(embedding(), scale=0.0)],
    "in a part of the steps": lambda: [Reference(embedding(), start=0.3, end=0.8)],
    "in a mask": lambda: [Reference(embedding(), mask=half_mask())],
    "in one layer": lambda: [Reference(embedding(), layers={3: 1.0})],
    "two": lambda: [Reference(embedding(), scale=0.5), Reference(embedding(2), mask=half_mask())],
    "of several pictures": lambda: [Reference(torch.cat([embedding(), embedding(2)]))],
}


@pytest.mark.usefixtures("no_conversion")
@pytest.mark.parametrize("kind", REFERENCES)
def test_one_graph_serves_every_reference_and_agrees_with_torch(pipe: Any, kind: str) -> None:
    adapter = tiny.adapter(pipe.unet)
    with adapter.attach(pipe), adapter.use(*REFERENCES[kind]()):
        output = draw(pipe)
        with by_torch(pipe):
            expected = draw(pipe)
    assert not torch.equal(output, expected)
    assert measure_difference(output, expected) < 1e-5


@pytest.mark.usefixtures("no_conversion")
def test_two_adapters_and_a_prompt_each_agree_with_torch(pipe: Any) -> None:
    first, second = tiny.adapter(pipe.unet), tiny.adapter(pipe.unet, seed=5)
    prompts: Any = ["a cat", "a dog"]
    with first.attach(pipe), second.attach(pipe):
        each = [[Reference(embedding(seed)) for seed in (1, 2)]]
        with first.use(*each), second.use(Reference(embedding(3), scale=0.4)):
            output = draw(pipe, prompts)
            with by_torch(pipe):
                expected = draw(pipe, prompts)
    assert measure_difference(output, expected) < 1e-5


@pytest.mark.usefixtures("no_conversion")
def test_without_an_adapter_without_guidance_and_in_another_size_it_agrees_too(pipe: Any) -> None:
    several: list[dict[str, Any]] = [{}, {"guidance_scale": 1.0}, {"height": 24, "width": 32}]
    for options in several:
        output = draw(pipe, **options)
        with by_torch(pipe):
            assert measure_difference(output, draw(pipe, **options)) < 1e-5


@pytest.mark.usefixtures("no_conversion")
def test_residuals_of_a_controlnet_are_inputs(pipe: Any) -> None:
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(TEXT)
    by_hand: Any = type(pipe.unet).forward
    with torch.no_grad():
        residuals = plain_residuals(pipe.unet, sample)
        options = {
            "down_block_additional_residuals": residuals[:-1],
            "mid_block_additional_residual": residuals[-1],
        }
        expected = by_hand(pipe.unet, sample, 10, text, **options).sample
        output, without = (pipe.unet(sample, 10, text, **some).sample for some in (options, {}))
    assert measure_difference(output, expected) < 1e-5
    assert measure_difference(output, without) > 1e-3


def plain_residuals(unet: Any, sample: Tensor) -> tuple[Tensor, ...]:
    """Residuals of the shapes that a ControlNet for this U-Net makes."""
    shapes = [(16, 8), (16, 8), (16, 4), (32, 4), (32, 4)]
    return tuple(torch.randn(sample.shape[0], channels, side, side) for channels, side in shapes)


@pytest.mark.usefixtures("no_conversion")
def test_a_server_merges_its_calls_on_an_accelerated_unet(pipe: Any) -> None:
    denoiser = MergedDenoiser(pipe.unet)
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, *TEXT[1:])
    calls = [denoiser.read_call(sample, 10, text), denoiser.read_call(sample + 1, 20, text)]
    outputs = denoiser.run(calls)
    with torch.no_grad():
        expected = [
            type(pipe.unet).forward(pipe.unet, s, t, text)[0] for s, t in ((sample, 10), (sample + 1, 20))
        ]
    assert max(map(measure_difference, outputs, expected)) < 1e-5


@pytest.mark.usefixtures("no_conversion")
def test_bfloat16_is_near(plain: Any) -> None:
    expected = draw(plain)
    with accelerate(plain, dtype="bfloat16") as made:
        assert measure_difference(draw(plain), expected) < 0.05
        assert max(made.differences.values()) < 0.05


def test_detaching_leaves_the_unet_as_it_was(plain: Any) -> None:
    before = dict(vars(plain.unet))
    with accelerate(plain):
        assert vars(plain.unet).keys() == {*before, "forward"}
    assert vars(plain.unet) == before


def test_a_second_call_replaces_the_first(plain: Any) -> None:
    first, second = accelerate(plain), accelerate(plain)
    first.detach()
    assert "forward" in vars(plain.unet)
    second.detach()
    assert "forward" not in vars(plain.unet)


def test_copies_of_the_unet_are_not_accelerated(pipe: Any) -> None:
    sample, text = torch.randn(2, 4, 8, 8), torch.randn(TEXT)
    with torch.no_grad():
        expected = type(pipe.unet).forward(pipe.unet, sample, 10, text).sample
        for copied in (copy.deepcopy(pipe.unet), pickle.loads(pickle.dumps(pipe.unet))):
            assert torch.equal(copied(sample, 10, text).sample, expected)
            assert vars(copied)["forward"].args[0] is copied


# Failures: torch computes, and a warning says why


def crash(monkeypatch: pytest.MonkeyPatch, folder: Path, line: str) -> None:
    """Let the process that tries a compilation run another script, in an empty cache of trials."""
    (folder / "trial.py").write_text(line)
    monkeypatch.setattr(conversion, "_TRIAL", folder / "trial.py")
    monkeypatch.setattr(conversion.ConvertedGraph, "find_trial", lambda *_: {})
    monkeypatch.setattr(conversion.ConvertedGraph, "write_trial", lambda *_, **__: None)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGFPE)", r"crashed on this processor \(SIGFPE\)"),
        ("raise SystemExit('no such kernel')", r"cannot compile it \(no such kernel\)"),
    ],
)
@pytest.mark.usefixtures("no_conversion")
def test_a_crash_of_the_compiler_is_caught_in_another_process_and_torch_computes(
    plain: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, reason: str
) -> None:
    expected = draw(plain)
    crash(monkeypatch, tmp_path, script)
    with accelerate(plain), pytest.warns(UserWarning, match=reason):
        assert torch.equal(draw(plain), expected)


@pytest.mark.usefixtures("no_conversion")
def test_a_crash_is_remembered_for_this_processor(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, size = convert_unet(pipe.unet), (9, 9, 9, 9)
    monkeypatch.setattr(conversion, "compile_elsewhere", lambda *_: "it crashed")
    assert graph.try_compilation(size, "float32", {}) == "it crashed"
    monkeypatch.setattr(conversion, "compile_elsewhere", lambda *_: None)
    assert graph.try_compilation(size, "float32", {}) == "it crashed"
    assert graph.try_compilation(size, "bfloat16", {}) is None
    monkeypatch.setattr(conversion, "name_processor", lambda: "another processor")
    assert graph.try_compilation(size, "float32", {}) is None


@pytest.mark.usefixtures("no_conversion")
def test_a_graph_that_is_too_far_from_torch_is_refused_with_the_figure(
    plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, figure = draw(plain), r"differs from torch's by \d\.\de-0\d of"
    monkeypatch.setitem(acceleration.LIMITS, "float32", 1e-12)
    with accelerate(plain), pytest.warns(UserWarning, match=figure) as caught:
        assert torch.equal(draw(plain), expected)
    assert len(caught) == 1


@pytest.mark.usefixtures("no_conversion")
def test_graphs_of_more_sizes_than_memory_is_for_are_compiled_again(
    plain: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[Any] = []

    class Counted(acceleration.CompiledGraph):
        def __init__(self, graph: Any, size: Any, options: Any) -> None:
            compiled.append(size)
            super().__init__(graph, size, options)

    monkeypatch.setattr(acceleration, "CompiledGraph", Counted)
    monkeypatch.setattr(acceleration, "MAX_GRAPH_BYTES", 1)
    with accelerate(plain):
        outputs = [draw(plain, guidance_scale=scale) for scale in (5.0, 5.0, 1.0, 5.0)]
    assert [size[0] for size in compiled] == [2, 1, 2]
    assert torch.equal(outputs[0], outputs[3])


def change_weights(pipe: Any) -> None:
    pipe.unet.conv_in.weight.data = pipe.unet.conv_in.weight.data.clone()


def write_weights(pipe: Any) -> None:
    with torch.no_grad():
        pipe.unet.conv_in.weight.mul_(1.0)


def add_hook(pipe: Any) -> None:
    pipe.unet.mid_block.register_forward_hook(lambda *_: None)


def slice_attention(pipe: Any) -> None:
    pipe.unet.set_attention_slice(1)


def free_u(pipe: Any) -> None:
    pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)


CHANGES: dict[str, Callable[[Any], None]] = {
    "weights or layers have changed": change_weights,
    "layers have changed": write_weights,
    "a layer of it has a hook": add_hook,
    "the attention processor of a layer is SlicedAttnProcessor": slice_attention,
    "FreeU is on": free_u,
}


@pytest.mark.parametrize("reason", CHANGES)
@pytest.mark.usefixtures("no_conversion")
def test_what_the_graph_does_not_know_is_computed_by_torch(reason: str) -> None:
    pipe: Any = tiny.sd_pipeline()
    with accelerate(pipe) as made:
        CHANGES[reason](pipe)
        with pytest.warns(UserWarning, match=f"torch computes the U-Net, not OpenVINO: .*{reason}") as caught:
            output = draw(pipe)
        made.detach()
    assert len(caught) == 1
    assert torch.equal(output, draw(pipe))


@pytest.mark.usefixtures("no_conversion")
@pytest.mark.parametrize(
    ("reason", "options"),
    [
        ("the call has encoder_attention_mask", {"encoder_attention_mask": torch.ones(TEXT[:2])}),
        ("no multiples of 2", {"sample": torch.randn(2, 4, 9, 8)}),
        ("gradients are computed", {"sample": torch.randn(2, 4, 8, 8, requires_grad=True)}),
    ],
)
def test_a_call_that_no_graph_has_is_computed_by_torch(
    pipe: Any, reason: str, options: dict[str, Any]
) -> None:
    inputs = {"sample": torch.randn(2, 4, 8, 8), "timestep": 10, "encoder_hidden_states": torch.randn(TEXT)}
    with pytest.warns(UserWarning, match=reason):
        output = pipe.unet(**inputs | options).sample
    assert torch.equal(output, type(pipe.unet).forward(pipe.unet, **inputs | options).sample)


def test_the_hash_follows_weights_and_settings() -> None:
    unet: Any = tiny.sd_unet()
    before = hash_unet(unet)
    assert before == hash_unet(copy.deepcopy(unet))
    with torch.no_grad():
        unet.conv_in.weight[0, 0, 0, 0] += 1
    changed = hash_unet(unet)
    unet.register_to_config(time_embedding_dim=7)
    assert len({before, changed, hash_unet(unet)}) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dtype": torch.float16}, "float32 or bfloat16 on the CPU, not in float16"),
        ({"dtype": "int8"}, "not in int8"),
    ],
)
def test_a_wrong_setting_is_one_sentence(pipe: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        accelerate(pipe, **arguments)


def test_a_denoiser_that_no_graph_computes_is_refused(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="not VAE"):
        accelerate(type("VAE", (torch.nn.Module,), {})())
    unet: Any = tiny.sd_unet()
    unet.register_to_config(class_embed_type="timestep")
    with pytest.raises(ConfigError, match="its class_embed_type is 'timestep'"):
        accelerate(unet)
    add_hook(hooked := tiny.sd_pipeline())
    with pytest.raises(ConfigError, match="a layer of it has a hook"):
        accelerate(hooked)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match=r"pip install 'imprompt\[openvino\]'"):
        accelerate(pipe)


# Parts


def test_terms_of_unequal_length_are_the_same_sum_when_stacked() -> None:
    generator = torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 2, 3, 5, 4, generator=generator)
    terms = [
        ImageTerm(torch.randn(2, 3, tokens, 4, generator=generator), torch.randn(2, 3, tokens, 4), weight)
        for tokens, weight in ((2, None), (4, torch.rand(2, 1, 5, 1)), (1, torch.rand(2, 1, 1, 1)))
    ]
    keys, values, bias, weight = stack_terms(terms, key)
    logits = query[:, None] @ keys.transpose(-1, -2) * 0.5 + bias
    output = (weight * (logits.softmax(-1) @ values)).sum(1)
    expected = add_image_attention(torch.zeros_like(query), query, terms)
    torch.testing.assert_close(output, expected)


@pytest.mark.parametrize("unet", [tiny.sd_unet(), tiny.xl_unet()], ids=["sd", "xl"])
def test_the_graph_is_the_unet_and_leaves_it_alone(unet: Any) -> None:
    """In torch, before anything is converted."""
    processors = dict(unet.attn_processors)
    graph = GraphUNet(unet)
    example = dict(zip(graph.names, graph.make_example(), strict=True))
    assert [*list_shapes(unet, (2, 4, 4, 7))] == graph.names
    for name, value in example.items():
        if name.startswith(("residual_", "image_value")):
            example[name] = torch.zeros_like(value)
    layers = list_attention_layers(unet)
    width = unet.config.cross_attention_dim
    text = torch.randn(2, 7, width)
    for layer, attn in enumerate(layers):
        if f"text_key.{layer}" in example:
            for part, linear in (("key", attn.to_k), ("value", attn.to_v)):
                example[f"text_{part}.{layer}"] = linear(text).unflatten(2, (attn.heads, -1)).transpose(1, 2)  # pyright: ignore[reportOptionalCall]
    added = {name: example[name] for name in ("text_embeds", "time_ids") if name in example}
    with torch.no_grad():
        output = graph(*example.values())
        expected = unet(example["sample"], example["timestep"], text, added_cond_kwargs=added or None).sample
    torch.testing.assert_close(output, expected)
    assert unet.attn_processors == processors


def test_a_snapshot_of_an_untouched_unet_sees_no_change(pipe: Any) -> None:
    snapshot = UNetSnapshot(pipe.unet)
    assert snapshot.find_change() is None
    adapter = tiny.adapter(pipe.unet)
    with adapter.attach(pipe):
        assert snapshot.find_change() is None


# Commands


def test_generate_takes_the_backend_and_a_picture_stores_it(
    imprompt: Callable[..., Result], toy: ToyModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny.picture().save("cat.png")
    words = ["generate", "cat.png", *toy.options]
    assert imprompt(*words, "--backend", "openvino").code == 0
    assert "openvino" in imprompt("inspect", "out.png").output
    assert imprompt(*words, "--backend", "onnx").error.count("\n") == 1
    assert "float16" in imprompt(*words, "--backend", "openvino", "--dtype", "float16").error


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_embedded_model_draws_the_same_picture(dtype: str) -> None:
    import imprompt

    pipe, adapter = imprompt.mini.pipeline(), imprompt.load_adapter("mini")
    picture = tiny.picture()
    expected = imprompt.generate(pipe, adapter, picture, steps=4)[0]
    with accelerate(pipe, dtype=dtype) as made:
        output = imprompt.generate(pipe, adapter, picture, steps=4)[0]
        assert max(made.differences.values()) < (1e-4 if dtype == "float32" else 0.05)
    difference = np.asarray(output).astype(float) - np.asarray(expected)
    assert abs(difference).mean() < (0.05 if dtype == "float32" else 3)


@pytest.mark.slow
def test_sdxl_agrees_with_torch() -> None:
    pipe: Any = tiny.xl_pipeline()
    adapter = tiny.adapter(pipe.unet)
    with adapter.attach(pipe), adapter.use(embedding()):
        expected = draw(pipe)
        with accelerate(pipe) as made:
            assert measure_difference(draw(pipe), expected) < 1e-5
            assert made.differences
