"""The device on which models run: the one that is named, or the fastest of this machine."""

import torch

from imprompt.errors import ConfigError

_ACCELERATORS = ("cuda", "xpu", "mps")
_CPU = torch.device("cpu")


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """Return the device of a name, or by default the first of cuda, xpu, mps that is here, else the CPU.

    Raises:
        ConfigError: no device of torch, or one that this machine does not have
    """
    if name is None:
        return next((device for device in map(torch.device, _ACCELERATORS) if _is_here(device)), _CPU)
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device {name!r} is none of cuda, mps, xpu and cpu") from None
    if not _is_here(device):
        raise ConfigError(f"this machine has no device {str(name)!r}, or this build of torch cannot use it")
    return device


def _is_here(device: torch.device) -> bool:
    if device.type not in _ACCELERATORS:  # the CPU, and "meta", which computes nothing
        return device.index in (None, 0)
    module = getattr(torch, device.type, None)
    return bool(module) and module.is_available() and (device.index or 0) < module.device_count()
