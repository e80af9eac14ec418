"""The face in a picture. InsightFace is not installed here: a stand-in with its interface plays its part."""

import sys
from collections.abc import Callable
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from imprompt.errors import ImageError, InvalidReference, MissingExtra, UnknownModel
from imprompt.inputs.faces import Face, FaceEmbedder, InsightFaceEmbedder

Stub = SimpleNamespace


def face(left: int, width: int, height: int) -> Stub:
    """As InsightFace finds one: box, five points, an embedding whose first value tells which face it is."""
    embedding = np.zeros(512)
    embedding[:2] = left, 3
    return Stub(
        bbox=np.array([left, 5, left + width, 5 + height], np.float32),
        kps=np.full((5, 2), left, np.float32),
        embedding=embedding,
        normed_embedding=embedding / np.linalg.norm(embedding),
    )


BROAD, LARGE, SMALL = face(4, 20, 10), face(50, 19, 19), face(30, 6, 6)


class StandIn:
    """A `FaceAnalysis` that finds `faces` at detector sizes up to `seen_at`, and notes how it is used."""

    def __init__(self, *faces: Stub, seen_at: int = 640) -> None:
        self.faces, self.seen_at = faces, seen_at
        self.det_model = Stub(input_size=None)
        self.sizes: list[int] = []
        self.pixels = np.zeros(0)

    def create(self, name: str, providers: list[str]) -> "StandIn":
        print("find model:", name)
        self.name, self.providers = name, providers
        return self

    def prepare(self, ctx_id: int, det_size: tuple[int, int]) -> None:
        self.det_model.input_size = det_size

    def get(self, pixels: np.ndarray) -> list[Stub]:
        self.pixels = pixels
        width, height = self.det_model.input_size
        assert width == height
        self.sizes.append(width)
        return list(self.faces) if width <= self.seen_at else []


def norm_crop(pixels: np.ndarray, landmark: np.ndarray, image_size: int) -> np.ndarray:
    """Not aligned, but it tells what it was given: a square of the colour (BGR) at the landmark."""
    x, y = landmark[0].astype(int)
    return np.broadcast_to(pixels[min(y, len(pixels) - 1), x], (image_size, image_size, 3))


@pytest.fixture
def install_insightface(monkeypatch: pytest.MonkeyPatch) -> Callable[[StandIn], StandIn]:
    def install(app: StandIn) -> StandIn:
        names = "insightface", "insightface.app", "insightface.utils", "insightface.utils.face_align"
        modules = {name: ModuleType(name) for name in names}
        modules["insightface.app"].FaceAnalysis = app.create  # pyright: ignore[reportAttributeAccessIssue]
        modules["insightface.utils.face_align"].norm_crop = norm_crop  # pyright: ignore[reportAttributeAccessIssue]
        for name, module in modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        return app

    return install


Install = Callable[[StandIn], StandIn]


def picture() -> Image.Image:
    return tiny.picture(width=80, height=60)


def find_face(made: object) -> int:
    """Which face, by its left edge."""
    assert isinstance(made, Face)
    return round(3 * float(made.embedding[0] / made.embedding[1]))


@pytest.mark.parametrize(("choose", "left"), [("largest", 50), ("leftmost", 4), (0, 4), (1, 30), (2, 50)])
def test_one_of_several_faces_is_chosen(install_insightface: Install, choose: str | int, left: int) -> None:
    for faces in ((BROAD, LARGE, SMALL), (SMALL, BROAD, LARGE)):  # the order they are found in says nothing
        install_insightface(StandIn(*faces))
        assert find_face(InsightFaceEmbedder(choose)(picture())) == left


def test_the_embedding_is_the_normed_one(install_insightface: Install) -> None:
    install_insightface(StandIn(LARGE))
    embedding = InsightFaceEmbedder()(picture()).embedding
    assert embedding.dtype == torch.float32
    assert torch.equal(embedding, torch.from_numpy(LARGE.normed_embedding).float())
    assert embedding.shape == (512,)


def test_the_model_sees_bgr_and_the_crop_is_rgb(install_insightface: Install) -> None:
    app, given = install_insightface(StandIn(LARGE)), picture()
    made = InsightFaceEmbedder()(given)
    assert np.array_equal(app.pixels, np.asarray(given)[:, :, ::-1])
    assert app.pixels.flags.c_contiguous
    assert made.crop.size == (224, 224)
    assert made.crop.getpixel((0, 0)) == given.getpixel((50, 50))


@pytest.mark.parametrize(
    ("seen_at", "sizes"), [(640, [640]), (520, [640, 576, 512]), (320, [*range(640, 319, -64)])]
)
def test_the_detector_becomes_smaller_until_a_face_is_found(
    install_insightface: Install, seen_at: int, sizes: list[int]
) -> None:
    app = install_insightface(StandIn(LARGE, seen_at=seen_at))
    embedder = InsightFaceEmbedder()
    embedder(picture())
    embedder(picture())  # starts at the largest size again
    assert app.sizes == sizes * 2


def test_the_model_and_where_it_runs_are_passed_on(install_insightface: Install) -> None:
    app = install_insightface(StandIn(LARGE))
    InsightFaceEmbedder(model="antelopev2", providers=["CUDAExecutionProvider", "CPUExecutionProvider"])
    assert app.name == "antelopev2"
    assert app.providers == ["CUDAExecutionProvider", "CPUExecutionProvider"]


def test_standard_output_stays_ours(install_insightface: Install, capsys: pytest.CaptureFixture[str]) -> None:
    install_insightface(StandIn(LARGE))
    InsightFaceEmbedder()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "find model: buffalo_l\n")


def test_it_is_a_face_embedder(install_insightface: Install) -> None:
    install_insightface(StandIn(LARGE))
    embedder: FaceEmbedder = InsightFaceEmbedder()
    assert isinstance(embedder(picture()), Face)


# What is refused, and how


def test_a_picture_without_a_face(install_insightface: Install) -> None:
    app = install_insightface(StandIn(LARGE, seen_at=319))
    with pytest.raises(ImageError, match="no face was found in the picture of 80 × 60 pixels"):
        InsightFaceEmbedder()(picture())
    assert app.sizes[-1] == 320


def test_a_face_that_is_not_there(install_insightface: Install) -> None:
    install_insightface(StandIn(LARGE, SMALL))
    with pytest.raises(ImageError, match="shows 2 faces, numbered from 0; there is no face 2"):
        InsightFaceEmbedder(2)(picture())


@pytest.mark.parametrize("choose", ["first", -1, True])
def test_a_choice_that_is_none(install_insightface: Install, choose: str | int) -> None:
    install_insightface(StandIn(LARGE))
    with pytest.raises(
        InvalidReference, match=f"choose must be largest, leftmost or a number from 0, not {choose!r}"
    ):
        InsightFaceEmbedder(choose)


@pytest.mark.parametrize("missing", ["insightface", "insightface.utils.face_align"])
def test_a_missing_package(
    install_insightface: Install, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    install_insightface(StandIn(LARGE))
    for name in [name for name in sys.modules if name.startswith(missing)]:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    with pytest.raises(MissingExtra, match=r"needs insightface.*pip install 'imprompt\[faces\]'"):
        InsightFaceEmbedder()


def test_models_that_cannot_be_fetched(install_insightface: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    app = install_insightface(StandIn(LARGE))

    def fail(ctx_id: int, det_size: tuple[int, int]) -> None:
        raise AssertionError

    monkeypatch.setattr(app, "prepare", fail)
    with pytest.raises(UnknownModel, match="no InsightFace models 'buffalo_l': AssertionError"):
        InsightFaceEmbedder()
