"""Are all pictures together like the real ones? Distances between two clouds of features.

None of them looks at pairs: pictures of the right things in the wrong places score well. They compare whole
sets, so they need many pictures, and mean nothing between different encoders.
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
"""Pictures of each side in a subset, and subsets, where there are more pictures than one subset holds."""

CMMD_SIGMA = 10.0
CMMD_SCALE = 1000.0
"""The kernel's width and the factor of arXiv 2401.09603, section 4."""

CHUNK = 4096

Features = Float[Tensor, "pictures dim"]
Others = Float[Tensor, "others dim"]


def kid(features: Features, others: Others, *, seed: int = 0) -> float:
    """Kernel Inception Distance: the unbiased MMD² with the kernel (x·y / dim + 1)³ (arXiv 1801.01401).

    No unit (papers often print it times 1000); 0 between two samples of one distribution, on average over
    samples, so a single value may be below 0. Unbiased in the number of pictures. Equal parts of both
    sides are compared: all, if both sides have as many and at most `KID_SUBSET`; else the mean of
    `KID_SUBSETS` draws, by `seed`. Features count as they are: their lengths change it.

    Raises:
        ValueError: fewer than two pictures on a side
        MissingExtra: without torchmetrics
    """
    require_torchmetrics()
    from torchmetrics.image.kid import KernelInceptionDistance

    check_clouds(features, others)
    size = min(len(features), len(others), KID_SUBSET)
    is_whole = len(features) == len(others) == size
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all", UserWarning)
        metric = KernelInceptionDistance(
            feature=AsItIs(features.shape[1]), subsets=1 if is_whole else KID_SUBSETS, subset_size=size
        )
    metric.update(others.double().cpu(), real=True)
    metric.update(features.double().cpu(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return float(metric.compute()[0])


def fid(features: Features, others: Others) -> float:
    """Fréchet distance between normal distributions fitted to both sides (arXiv 1706.08500).

        ‖μ - μ'‖² + tr(Σ + Σ' - 2 (Σ Σ')^½)

    Range [0, ∞), in the features' unit squared; 0 for equal sets. Pitfalls: biased, the fewer pictures the
    larger, so compare at one and the same number only, 10,000 or more; the filter that resized the pictures
    moves it. "FID" by name are Inception's features; with others say which.

    Raises:
        ValueError: fewer than two pictures on a side
        MissingExtra: without torchmetrics
    """
    require_torchmetrics()
    from torchmetrics.image.fid import FrechetInceptionDistance

    check_clouds(features, others)
    metric = FrechetInceptionDistance(feature=AsItIs(features.shape[1])).set_dtype(torch.float64)
    metric.update(others.double().cpu(), real=True)
    metric.update(features.double().cpu(), real=False)
    return max(float(metric.compute()), 0.0)  # equal sets leave a rounding error of either sign


def cmmd(features: Features, others: Others, *, unbiased: bool = True) -> float:
    """CMMD: 1000 · MMD² with the kernel exp(-‖x - y‖² / (2 · 10²)), x and y of length one (arXiv 2401.09603).

    No unit; 0 between two samples of one distribution. Made for CLIP ViT-L/14 at 336 px and few pictures.
    `unbiased` leaves each picture's kernel with itself out, as the paper's equation 4 does: a value may be
    below 0. Without it, it is what the paper's published code computes, never below 0 and larger by about
    1000 · (1 - mean kernel) · (1/m + 1/n): say which, and compare like with like.

    Raises:
        ValueError: fewer than two pictures on a side
    """
    check_clouds(features, others)
    x, y = (F.normalize(side.double(), dim=-1) for side in (features, others))
    within = sum(mean_kernel(side, side, leave_out_itself=unbiased) for side in (x, y))
    return CMMD_SCALE * (within - 2 * mean_kernel(x, y))


def mean_kernel(
    left: Float[Tensor, "left dim"], right: Float[Tensor, "right dim"], *, leave_out_itself: bool = False
) -> float:
    """Mean of the Gaussian kernel, less 1, over all pairs; what is less than 1 cancels in an MMD.

    Means of kernels near 1 would lose digits when they are subtracted; `expm1` keeps them.
    """
    total = 0.0
    for piece in left.split(CHUNK):
        distances = torch.cdist(piece, right, compute_mode="donot_use_mm_for_euclid_dist").square()
        total += float(torch.expm1(-distances / (2 * CMMD_SIGMA**2)).sum())
    # A feature's kernel with itself is 1, so less 1 it adds nothing to the sum.
    return total / (len(left) * (len(right) - 1 if leave_out_itself else len(right)))


class AsItIs(nn.Module):
    """The encoder of who has features already."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.num_features = dim

    def forward(self, features: Tensor) -> Tensor:
        """Return the features."""
        return features


def check_clouds(features: Tensor, others: Tensor) -> None:
    """Refuse sides of fewer than two pictures: they have no spread."""
    if min(len(features), len(others)) < 2:
        raise ValueError("a distance between sets of pictures needs two or more on each side")


def require_torchmetrics() -> None:
    """Say how to install what KID and FID need, if it is not there."""
    if importlib.util.find_spec("torchmetrics") is None:
        raise MissingExtra("torchmetrics", "eval")
