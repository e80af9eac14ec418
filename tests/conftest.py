"""What several test files share: a whole toy model on disk, and the command line in this process."""

import functools
import signal
import sys
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import huggingface_hub.constants
import jaxtyping
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

import faults
import matrix
import tiny
import training_processes  # noqa: F401 - before anything starts a process
from imprompt import cli
from imprompt.adapter.module import ImagePromptAdapter
from imprompt.checkpoint import save_adapter
from imprompt.generation import models
from imprompt.generation.models import load_pipeline

# How long an example takes on a busy machine says nothing about the code.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

# Laws hold bit for bit: on a busy machine the number of threads, and with it the order of sums, may change.
torch.set_num_threads(1)


class ToyModel(NamedTuple):
    """A base, an adapter that fits it, an adapter that does not, and an image encoder, as files."""

    base: Path
    adapter: Path
    other_adapter: Path
    image_encoder: Path

    @property
    def options(self) -> list[str]:
        """What makes `imprompt generate` use it."""
        options = {"--base": self.base, "--adapter": self.adapter, "--image-encoder": self.image_encoder}
        return [str(word) for option in options.items() for word in option] + ["--steps", "2"]


@pytest.fixture(scope="session")
def toy(tmp_path_factory: pytest.TempPathFactory) -> ToyModel:
    folder = tmp_path_factory.mktemp("toy")
    names = "base", "adapter.safetensors", "other.safetensors", "encoder"
    made = ToyModel(*(folder / name for name in names))
    tiny.sd_pipeline().save_pretrained(made.base)
    tiny.vision_model().save_pretrained(made.image_encoder)
    save_adapter(tiny.adapter(tiny.sd_unet()), made.adapter)
    save_adapter(tiny.adapter(tiny.xl_unet()), made.other_adapter)
    return made


class Result(NamedTuple):
    """What a command did."""

    code: int
    output: str
    error: str


@pytest.fixture(scope="session", autouse=True)
def no_network() -> Iterator[None]:
    """Let the hub answer at once that it cannot be reached."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what commands remember out of the cache of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("IMPROMPT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return tiny.sd_unet()


@pytest.fixture
def pipe() -> Any:
    return tiny.sd_pipeline()


@pytest.fixture
def adapter() -> ImagePromptAdapter:
    """For `unet` and for the U-Net of `pipe`."""
    return tiny.adapter(tiny.sd_unet())


@pytest.fixture
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in production: no type checks at run time but our own."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@functools.cache
def load_base_once(name: str, **options: Any) -> DiffusionPipeline:
    """Load a base; one that a test changes by options must be the test's own folder."""
    return load_pipeline(name, **options)


@pytest.fixture
def imprompt(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command as `imprompt(*words)`; a base is read from disk once for all tests."""
    monkeypatch.setattr(models, "load_pipeline", load_base_once)

    def run(*words: str | Path) -> Result:
        capfd.readouterr()
        code = cli.main([str(word) for word in words])
        said = capfd.readouterr()
        return Result(code, said.out, said.err)

    return run


# Several processes


class ByFile(LoadScopeScheduling):
    """A file's tests stay together, and so do all that docs/pipelines.md is written from."""

    def _split_scope(self, nodeid: str) -> str:
        stem = Path(nodeid.partition("::")[0]).stem
        return "pipelines" if stem.startswith("test_pipelines") else stem

    def remove_node(self, node: WorkerController) -> str | None:
        """Leave out the finished files of a process that died: xdist would wait for their tests for ever."""
        files = self.assigned_work[node].items()
        self.assigned_work[node] = {file: tests for file, tests in files if not all(tests.values())}
        return super().remove_node(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    config.option.loadscopereorder = False  # by the number of tests: files of few slow ones would come last
    return ByFile(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: WorkerController, error: object) -> None:
    """Print the exit code of a process of tests that died; a negative one is the number of a signal."""
    if error is not None:
        connection: Any = node.gateway._io
        code = connection.popen.wait(10)
        print(f"\n{node.gateway.id} ended with {code}", file=sys.stderr)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take long come first, so that all processes end at about the same time."""
    lasting: Counter[Path] = Counter()
    for item in items:
        lasting[item.path] += 30 if item.get_closest_marker("slow") else 1  # as many others, about
    items.sort(key=lambda item: -lasting[item.path])


def pytest_itemcollected(item: pytest.Item) -> None:
    if (number := faults.number_of(item)) is not None:
        item.user_properties.append(("fault", number))


# docs/pipelines.md


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-matrix", metavar="PAGE", help="write what test_pipelines*.py find to this page")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "cell(pipeline, features, refused): cells of docs/pipelines.md")
    config.stash[matrix.OUTCOMES] = {}
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(faults.Tally(), "faults")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    matrix.record(item.config.stash[matrix.OUTCOMES], item, report)
    return report


SECONDS = 10


@pytest.fixture
def in_time() -> Iterator[None]:
    """A test that hangs fails."""

    def end(signum: int, frame: object) -> None:
        raise TimeoutError(f"no answer in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
