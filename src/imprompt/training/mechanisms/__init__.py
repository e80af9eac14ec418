"""How an image prompt reaches the base: the paper's mechanism and seven others for comparison.

    decoupled       output = Attn(Q, K, V) + λ Attn(Q, K', V')        trained: projection, every W'_k, W'_v
    concatenated    output = Attn(Q, [K, K_i], [V, V_i])              trained: the projection alone
    replaced        output = Attn(Q, K_i, V_i)                        trained: projection and the whole U-Net
    unclip          time embedding + W e                              trained: W and the whole U-Net
    two-stream      output = (1-α) Attn(Q, K, V) + α Attn(Q, K_i, V_i)    trained: projection and the U-Net
    style-adapter   as concatenated, tokens by a transformer over f   trained: that transformer
    shuffled-control  U-Net + mean of C(shuffled picture)             trained: C, a ControlNet
    prior-decoder   as concatenated and unclip, with a prior of e     trained: projections, prior, U-Net

The base's own W_k, W_v compute K_i, V_i from the image tokens c_i; e is the image embedding, f are the image
features. "Concatenated" is the paper's simple adapter (Ye et al. 2023, section 4.4.1); "replaced" is how SD
image variations, "unclip" how SD-unCLIP, "two-stream" how Versatile Diffusion (Xu et al. 2022) take an image,
"style-adapter" how T2I-Adapter, "shuffled-control" how ControlNet 1.1, "prior-decoder" how Kandinsky 2.1.
Each class documents how it differs from the published method.

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
from imprompt.training.mechanisms.prior_decoder import PriorDecoderMechanism, build_prior_decoder
from imprompt.training.mechanisms.replaced import ReplacedMechanism
from imprompt.training.mechanisms.shuffled_control import ShuffledControlMechanism, build_controlnet
from imprompt.training.mechanisms.style_adapter import StyleAdapterMechanism, StyleProjection
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
    "PriorDecoderMechanism",
    "ReplacedMechanism",
    "ShuffledControlMechanism",
    "StyleAdapterMechanism",
    "StyleProjection",
    "TimeProjection",
    "TwoStreamMechanism",
    "UnclipMechanism",
    "build_controlnet",
    "build_prior_decoder",
    "load_mechanism",
    "read_metadata",
    "time_embedding_width",
]
