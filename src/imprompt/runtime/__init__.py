"""What a run needs of the machine it is on: the number format that is fastest there."""

from imprompt.runtime.precision import (
    Precision,
    TrialTimes,
    fastest_precision,
    measure_precisions,
    resolve_precision,
)

__all__ = ["Precision", "TrialTimes", "fastest_precision", "measure_precisions", "resolve_precision"]
