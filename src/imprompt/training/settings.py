"""Settings that every training run has, whatever it trains."""

from typing import Literal

from pydantic import Field

from imprompt.runtime.settings import ClosedSettings


class LoopSettings(ClosedSettings):
    """What the loop needs to know, whatever is trained."""

    seed: int = 0
    """Of the order of samples, of noise, and of new weights."""
    steps: int = Field(ge=1)
    """How many times the weights are changed."""
    batch_size: int = Field(default=64, ge=1)
    """Samples of one step, of all processes and passes together: a run means the same on any machine."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Of AdamW."""
    warmup_steps: int = Field(default=200, ge=0)
    """The learning rate rises from zero, linearly, over this many first steps."""
    cooldown_steps: int = Field(default=0, ge=0)
    """The learning rate falls to zero, linearly, over this many last steps."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    max_gradient_norm: float = Field(default=1.0, gt=0)
    """Longer gradients are cut to this length."""
    ema_decay: float = Field(default=0.999, ge=0, lt=1)
    """Of the averaged weights, which are those that are shown and saved; 0 for none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "fp32"
    """In which frozen models compute on a GPU. "auto" is the fastest there, and on a CPU bfloat16 for the
    denoiser if that is measured to be faster; otherwise a CPU computes in float32. Trained weights are
    float32."""
    log_every: int = Field(default=20, ge=1)
    """Steps between lines of the log."""
    save_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    sample_every: int = Field(default=1000, ge=1)
    """Steps between sample grids."""
    keep: int = Field(default=2, ge=1)
    """How many checkpoints stay, beside the best."""
