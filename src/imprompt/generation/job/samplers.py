"""The names that people use for samplers, as diffusers' schedulers.

Source: the table of A1111's samplers in diffusers' documentation (api/schedulers/overview).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple


class Sampler(NamedTuple):
    """A scheduler of diffusers and the settings that make it the sampler of that name."""

    scheduler: str
    """Name of diffusers' class."""
    settings: Mapping[str, Any]
    """Settings that replace those of the base's own scheduler."""
    title: str
    """The name in A1111's web UI, which pictures carry."""


_KARRAS = {"use_karras_sigmas": True}
_MULTISTEP = {"algorithm_type": "dpmsolver++", "use_karras_sigmas": False}
_SDE = {"algorithm_type": "sde-dpmsolver++", "use_karras_sigmas": False}
_TRAILING = {"timestep_spacing": "trailing"}

SAMPLERS: Mapping[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler", {}, "DDIM"),
    "ddim_trailing": Sampler("DDIMScheduler", _TRAILING, "DDIM"),
    "ddpm": Sampler("DDPMScheduler", {}, "DDPM"),
    "pndm": Sampler("PNDMScheduler", {"skip_prk_steps": True}, "PLMS"),
    "euler": Sampler("EulerDiscreteScheduler", {"use_karras_sigmas": False}, "Euler"),
    "euler_karras": Sampler("EulerDiscreteScheduler", _KARRAS, "Euler Karras"),
    "euler_trailing": Sampler("EulerDiscreteScheduler", _TRAILING, "Euler"),
    "euler_a": Sampler("EulerAncestralDiscreteScheduler", {}, "Euler a"),
    "euler_a_trailing": Sampler("EulerAncestralDiscreteScheduler", _TRAILING, "Euler a"),
    "heun": Sampler("HeunDiscreteScheduler", {"use_karras_sigmas": False}, "Heun"),
    "lms": Sampler("LMSDiscreteScheduler", {"use_karras_sigmas": False}, "LMS"),
    "dpm++_2m": Sampler("DPMSolverMultistepScheduler", _MULTISTEP, "DPM++ 2M"),
    "dpm++_2m_karras": Sampler("DPMSolverMultistepScheduler", _MULTISTEP | _KARRAS, "DPM++ 2M Karras"),
    "dpm++_2m_sde": Sampler("DPMSolverMultistepScheduler", _SDE, "DPM++ 2M SDE"),
    "dpm++_2m_sde_karras": Sampler("DPMSolverMultistepScheduler", _SDE | _KARRAS, "DPM++ 2M SDE Karras"),
    "unipc": Sampler("UniPCMultistepScheduler", {}, "UniPC"),
    "lcm": Sampler("LCMScheduler", {}, "LCM"),
    "tcd": Sampler("TCDScheduler", {}, "TCD"),
}
"""Name → sampler."""
