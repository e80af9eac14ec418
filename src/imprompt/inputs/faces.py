"""Face embeddings for FaceID adapters, by any callable or by InsightFace.

InsightFace is an extra: pip install 'imprompt[faces]'. Its code has the MIT license, but **its models may be
used for non-commercial research only** (https://github.com/deepinsight/insightface, "License"). It fetches
them itself on first use. The published FaceID adapters were trained on its embeddings.
"""

import contextlib
import importlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from imprompt.errors import ImageError, InvalidReference, MissingExtra, UnknownModel


class Face(NamedTuple):
    """The input of FaceID adapters: the `embedding` "512", and for FaceID-Plus the aligned `crop`."""

    embedding: Tensor
    crop: Image.Image


FaceEmbedder = Callable[[Image.Image], Tensor | Face]
"""A function that finds the face in an upright RGB picture and returns its embedding "512", or a `Face`."""

DETECTOR_SIZES = tuple(range(640, 319, -64))
"""Widths, in pixels, at which a picture is searched. A face that fills it is found only at a small width."""

CROP_SIZE = 224
"""Side of the aligned crop, in pixels: the image size of the encoders of FaceID-Plus."""


class InsightFaceEmbedder:
    """ArcFace embeddings of unit length by InsightFace, whose models are for research only.

    Args:
        choose: which face to take: "largest" (by the area of its box), "leftmost", or a number that counts
            from the left, beginning with 0
        model: name of a model pack; the published FaceID adapters use "buffalo_l"
        providers: execution providers of onnxruntime, in order of preference

    Raises:
        MissingExtra: insightface or onnxruntime is not installed
        UnknownModel: the models are neither installed nor can be fetched
        InvalidReference: `choose` is none of the three
    """

    def __init__(
        self,
        choose: Literal["largest", "leftmost"] | str | int = "largest",
        *,
        model: str = "buffalo_l",
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        _check_choice(choose)
        self.choose = choose
        app, self._align = _import("insightface.app"), _import("insightface.utils.face_align")
        try:
            with contextlib.redirect_stdout(sys.stderr):  # it prints the names of what it loads
                self._app = app.FaceAnalysis(name=model, providers=list(providers))
                self._app.prepare(ctx_id=0, det_size=(DETECTOR_SIZES[0],) * 2)
        except Exception as error:  # a download, a zip file, onnxruntime or an assertion may fail
            reason = " ".join(str(error).split()) or type(error).__name__
            raise UnknownModel(f"no InsightFace models {model!r}: {reason}") from error

    def __call__(self, picture: Image.Image) -> Face:
        """Return the chosen face of an upright RGB picture.

        Raises:
            ImageError: there is no face, or no face of the chosen number
        """
        pixels = np.ascontiguousarray(np.asarray(picture.convert("RGB"))[:, :, ::-1])  # InsightFace takes BGR
        face = self._choose_face(self._find_faces(pixels))
        aligned = self._align.norm_crop(pixels, landmark=face.kps, image_size=CROP_SIZE)
        embedding = torch.from_numpy(np.asarray(face.normed_embedding, np.float32).copy())
        return Face(embedding, Image.fromarray(np.ascontiguousarray(aligned[:, :, ::-1])))

    def _find_faces(self, pixels: np.ndarray) -> list[Any]:
        """Return all faces from left to right, at the largest detector size that finds one."""
        for size in DETECTOR_SIZES:
            # Not by `prepare`, which keeps the first size that it was called with.
            self._app.det_model.input_size = size, size
            faces = self._app.get(pixels)
            if faces:
                return sorted(faces, key=lambda face: float(face.bbox[0]))
        raise ImageError(
            f"no face was found in the picture of {pixels.shape[1]} × {pixels.shape[0]} pixels; use one that "
            "shows a face clearly and upright"
        )

    def _choose_face(self, faces: list[Any]) -> Any:
        if self.choose == "largest":
            return max(faces, key=lambda face: _area(face.bbox))
        number = 0 if self.choose == "leftmost" else int(self.choose)
        if number >= len(faces):
            raise ImageError(
                f"the picture shows {len(faces)} faces, numbered from 0; there is no face {number}"
            )
        return faces[number]


def _area(box: np.ndarray) -> float:
    left, top, right, bottom = (float(edge) for edge in box[:4])
    return (right - left) * (bottom - top)


def _check_choice(choose: object) -> None:
    number = isinstance(choose, int) and not isinstance(choose, bool) and choose >= 0
    if not number and choose not in ("largest", "leftmost"):
        raise InvalidReference(f"choose must be largest, leftmost or a number from 0, not {choose!r}")


def _import(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtra((error.name or module).partition(".")[0], "faces") from error
