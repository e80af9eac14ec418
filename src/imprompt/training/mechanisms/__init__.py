"""How an image prompt reaches the base: the paper's mechanism and four others for comparison.

    decoupled       output = Attn(Q, K, V) + λ Attn(Q, K', V')        trained: projection, every W'_k, W'_v
    concatenated    output = Attn(Q, [K, K_i], [V, V_i])              trained: the projection alone
    replaced        output = Attn(Q, K_i, V_i)                        trained: projection and the whole U-Net
    unclip          time embedding + W e                              trained: W and the whole U-Net
    two-stream      output = (1-α) Attn(Q, K, V) + α Attn(Q, K_i, V_i)    trained: projection and the U-Net

The base's own W_k, W_v compute K_i, V_i from the image tokens c_i; e is the image embedding. The first two
leave the base unchanged, the others train it. "Concatenated" is the paper's simple adapter (Ye et al. 2023,
section 4.4.1); "replaced" is how SD image variations, "unclip" how SD-unCLIP, "two-stream" how Versatile
Diffusion (Xu et al. 2022) take an image. Each class documents how it differs from the published method.

    base            the interface
    projection      those with a projection of the image embedding
    text            text embeddings on both branches of guidance
    fine_tuned      those that train the U-Net as well
    files           adapter files → the attached mechanism
"""

from imprompt.training.mechanisms.base import Denoise, Inputs, Mechanism
from imprompt.training.mechanisms.concatenated import ConcatenatedMechanism
from imprompt.training.mechanisms.decoupled import DecoupledMechanism
from imprompt.training.mechanisms.files import MECHANISMS, load_mechanism, read_metadata
from imprompt.training.mechanisms.fine_tuned import FineTunedMechanism
from imprompt.training.mechanisms.replaced import ReplacedMechanism
from imprompt.training.mechanisms.two_stream import TwoStreamMechanism
from imprompt.training.mechanisms.unclip import TimeProjection, UnclipMechanism, time_embedding_width

__all__ = [
    "MECHANISMS",
    "ConcatenatedMechanism",
    "DecoupledMechanism",
    "Denoise",
    "FineTunedMechanism",
    "Inputs",
    "Mechanism",
    "ReplacedMechanism",
    "TimeProjection",
    "TwoStreamMechanism",
    "UnclipMechanism",
    "load_mechanism",
    "read_metadata",
    "time_embedding_width",
]
