"""What makes a training step fast leaves its gradients alone: no reads, compiled blocks, checkpoints."""

from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch
from torch import Tensor, nn

import tiny
from host_reads import HostReads
from imprompt.errors import ConfigError
from imprompt.training import adapters
from imprompt.training.activations import checkpoint_blocks, compile_blocks, list_blocks
from imprompt.training.loop import Run
from short_runs import build_base, config, write_home


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("training"))


def build(home: Path, name: str, **changes: Any) -> Run:
    return adapters.build_run(config(home, name, **changes), build_base())


@pytest.mark.parametrize("changes", [{}, {"training__ema_decay": 0.9}, {"training__passes": 2}])
def test_no_training_step_reads_a_value_from_the_device(home: Path, changes: dict[str, Any]) -> None:
    """Losses, norms and faults stay on the device until a step that logs."""
    run = build(home, "silent", training__batch_size=4, **changes)
    batches = list(run.feed(range(2)))
    run.train_step(batches[0])
    with HostReads() as reads:
        parts = run.train_step(batches[1])
    assert reads.found == []
    assert {"loss", "gradient norm"} <= parts.keys()
    assert all(isinstance(part, Tensor) for part in parts.values())


# Checkpoints


def gradients(unet: Any, adapter: Any) -> Tensor:
    call: Any = tiny.unet_input(unet)
    with adapter.attach(unet), adapter.condition_on(tiny.embedding(2, 1)):
        unet(**call).sample.square().mean().backward()
    taken = torch.cat([weight.grad.flatten() for weight in adapter.parameters()])
    adapter.zero_grad()
    return taken


def test_checkpoints_at_every_nth_block_leave_the_gradients_as_they_are() -> None:
    unet = tiny.sd_unet().requires_grad_(False)
    adapter = tiny.adapter(unet).requires_grad_(True)
    expected = gradients(unet, adapter)
    for every in (1, 2, 3, 9):
        checkpoint_blocks(unet, every)
        marked = [any(is_checkpointed(part) for part in block.modules()) for block in list_blocks(unet)]
        assert marked == [number % every == 0 for number in range(5)]
        torch.testing.assert_close(gradients(unet, adapter), expected, rtol=1e-5, atol=1e-7)


def is_checkpointed(module: nn.Module) -> bool:
    return getattr(module, "gradient_checkpointing", False)


def test_the_interval_reaches_the_unet(home: Path) -> None:
    settings = {"training__gradient_checkpointing": True, "training__checkpoint_every": 2}
    objective: Any = build(home, "checkpointed", **settings).objective
    blocks = list_blocks(objective.base.unet)
    assert [any(map(is_checkpointed, block.modules())) for block in blocks] == [True, False] * 2 + [True]


# Compiled blocks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_compiled_blocks_have_the_same_gradients_and_are_compiled_once(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    plain, compiled = (build(home, name) for name in ("plain", "compiled"))
    torch._dynamo.reset()
    objective: Any = compiled.objective
    assert compile_blocks(objective.base.unet, backend="aot_eager") == 4
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        for one, other in zip(plain.feed(range(2)), compiled.feed(range(2)), strict=True):
            torch.testing.assert_close(take(compiled, other), take(plain, one), rtol=1e-4, atol=1e-6)


def take(run: Run, passes: Any) -> Tensor:
    (batch,) = passes
    run.objective.differentiate(batch, lambda loss: loss.backward())
    trained: Any = run.objective.trained  # pyright: ignore[reportAttributeAccessIssue]
    taken = torch.cat([weight.grad.flatten() for weight in trained.parameters() if weight.grad is not None])
    trained.zero_grad()
    return taken


def test_compiling_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    with pytest.raises(ConfigError, match=r"training\.compile needs a C\+\+ compiler"):
        compile_blocks(tiny.sd_unet())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training__checkpoint_every": 2}, "checkpoint_every 2 has no effect without"),
        ({"training__compile": True, "training__gradient_checkpointing": True}, "cannot be used together"),
        ({"training__compile": True, "adapter__mechanism": "replaced"}, "is for a frozen base"),
    ],
)
def test_settings_that_do_not_go_together(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config(tmp_path, "refused", **changes)
