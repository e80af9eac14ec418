"""Settings that every training run has, whatever it trains."""

from typing import Literal

from pydantic import Field

from imprompt.runtime.settings import ClosedSettings


class LoopSettings(ClosedSettings):
    """Settings of the training loop, whatever is trained."""

    seed: int = 0
    """Seed of the order of samples, of the noise, and of new weights."""
    steps: int = Field(ge=1)
    """Number of optimizer steps."""
    batch_size: int = Field(default=64, ge=1)
    """Samples per step, summed over all processes and passes, so that a run means the same on any machine."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak learning rate of AdamW."""
    warmup_steps: int = Field(default=200, ge=0)
    """Number of first steps over which the learning rate rises linearly from zero."""
    cooldown_steps: int = Field(default=0, ge=0)
    """Number of last steps over which the learning rate falls linearly to zero."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the exponential moving average of the weights, which is evaluated and saved; 0 means none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """Number format of the frozen models on a GPU; "auto" takes the fastest one there. On a CPU "auto" and
    "bf16" take bfloat16 for the denoiser if a measurement finds that faster, and float32 otherwise. Trained
    weights are always float32."""
    log_every: int = Field(default=20, ge=1)
    """Number of steps between lines of the log."""
    save_every: int = Field(default=500, ge=1)
    """Number of steps between checkpoints."""
    sample_every: int = Field(default=1000, ge=1)
    """Number of steps between sample grids."""
    keep: int = Field(default=2, ge=1)
    """Number of most recent checkpoints to keep; the best one is always kept."""
