"""Are all images together like the real ones? Distances between two sets of features.

None of them compares pairs: images of the right things in the wrong places score well. They compare whole
sets, so they need many images, and values of different encoders cannot be compared.
"""

import importlib.util
import warnings

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from imprompt.errors import MissingExtra

KID_SUBSET = 1000
KID_SUBSETS = 100
"""The number of images of each side in a subset, and of subsets, if one subset does not hold all images."""

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
"""The kernel's width and the factor of arXiv 2401.09603, section 4."""

CHUNK = 4096

Features = Float[Tensor, "pictures dim"]
Others = Float[Tensor, "others dim"]


def kid(features: Features, others: Others, *, seed: int = 0) -> float:
    """Return the Kernel Inception Distance: unbiased MMD², kernel (x·y / dim + 1)³ (arXiv 1801.01401).

    It has no unit (papers often print it times 1000). Between two samples of one distribution it is 0 on
    average, so a single value may be below 0. It is unbiased in the number of images. Equal numbers of both
    sides are compared: all, if both sides have the same number and at most `KID_SUBSET`; else the mean of
    `KID_SUBSETS` draws, by `seed`. The lengths of the features change it.

    Raises:
        ValueError: a side has fewer than two images
        MissingExtra: torchmetrics is not installed
    """
    require_torchmetrics()
    from torchmetrics.image.kid import KernelInceptionDistance

    check_clouds(features, others)
    size = min(len(features), len(others), KID_SUBSET)
    is_whole = len(features) == len(others) == size
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all", UserWarning)
        metric = KernelInceptionDistance(
            feature=GivenFeatures(features.shape[1]), subsets=1 if is_whole else KID_SUBSETS, subset_size=size
        )
    metric.update(others.double().cpu(), real=True)
    metric.update(features.double().cpu(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return float(metric.compute()[0])


def fid(features: Features, others: Others) -> float:
    """Return the Fréchet distance between normal distributions fitted to both sides (arXiv 1706.08500).

        ‖μ - μ'‖² + tr(Σ + Σ' - 2 (Σ Σ')^½)

    The range is [0, ∞), in the features' unit squared; 0 for equal sets. Pitfalls: it is biased, larger for
    fewer images, so compare only at one number of images, 10,000 or more; the filter that resized the images
    changes it. "FID" without more words means Inception's features; for others, name them.

    Raises:
        ValueError: a side has fewer than two images
        MissingExtra: torchmetrics is not installed
    """
    require_torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance

    check_clouds(features, others)
    metric = FrechetInceptionDistance(feature=GivenFeatures(features.shape[1])).set_dtype(torch.float64)
    metric.update(others.double().cpu(), real=True)
    metric.update(features.double().cpu(), real=False)
    return max(float(metric.compute()), 0.0)  # equal sets leave a rounding error of either sign


def cmmd(features: Features, others: Others, *, unbiased: bool = True) -> float:
    """Return CMMD: 1000 · MMD², kernel exp(-‖x - y‖² / (2 · 10²)), x, y of length one (arXiv 2401.09603).

    It has no unit; it is 0 between two samples of one distribution. It was made for CLIP ViT-L/14 at 336 px
    and few images. `unbiased` leaves out each image's kernel with itself, as the paper's equation 4 does; a
    value may be below 0. Without it, the result is that of the paper's published code, which is never below 0
    and larger by about 1000 · (1 - mean kernel) · (1/m + 1/n). Say which one it is, and compare only equal
    ones.

    Raises:
        ValueError: a side has fewer than two images
    """
    check_clouds(features, others)
    x, y = (F.normalize(side.double(), dim=-1) for side in (features, others))
    within = sum(mean_kernel(side, side, leave_out_itself=unbiased) for side in (x, y))
    return CMMD_SCALE * (within - 2 * mean_kernel(x, y))


def mean_kernel(
    left: Float[Tensor, "left dim"], right: Float[Tensor, "right dim"], *, leave_out_itself: bool = False
) -> float:
    """Return the mean of the Gaussian kernel, less 1, over all pairs; an MMD cancels the 1.

    The difference of means of kernels near 1 would lose digits; `expm1` preserves them.
    """
    total = 0.0
    for piece in left.split(CHUNK):
        distances = torch.cdist(piece, right, compute_mode="donot_use_mm_for_euclid_dist").square()
        total += float(torch.expm1(-distances / (2 * CMMD_SIGMA**2)).sum())
    # A feature's kernel with itself is 1, so less 1 it adds nothing to the sum.
    return total / (len(left) * (len(right) - 1 if leave_out_itself else len(right)))


class GivenFeatures(nn.Module):
    """An "encoder" for torchmetrics that returns features as they are."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: Tensor) -> Tensor:
        """Return the features."""
        return features


def check_clouds(features: Tensor, others: Tensor) -> None:
    """Raise an error if a side has fewer than two images, which have no spread."""
    if min(len(features), len(others)) < 2:
        raise ValueError("a distance between sets of pictures needs two or more on each side")


def require_torchmetrics() -> None:
    """Raise an error that says how to install torchmetrics, if it is not installed."""
    if importlib.util.find_spec("torchmetrics") is None:
        raise MissingExtra("torchmetrics", "eval")
