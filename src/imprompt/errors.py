"""Every error that imprompt raises on purpose.

    ImpromptError                   the message is one sentence: the problem and its remedy
    ├── ImageError                  a picture cannot be read, or is too large
    ├── CheckpointError             a file cannot be read, is of another kind, or holds a wrong tensor
    ├── AdapterMismatch             an adapter does not fit this base model or this image encoder
    ├── InvalidReference            a setting of a reference is impossible (scale, no picture, ...)
    ├── AmbiguousBatch              references cannot be assigned to the batch in exactly one way
    ├── AttachmentError             the adapter is attached, is not attached, or meets an unknown attention
    ├── UnknownModel                there is no base model, adapter or encoder of that name or path
    ├── OutputError                 a result cannot be written
    ├── ConfigError                 a configuration or a setting is wrong
    ├── DataError                   training data cannot be used, or too much of them is damaged
    ├── TrainingError               a training run cannot continue
    └── MissingExtra                an optional dependency is not installed

The command line prints the message as one line on standard error and exits with 1. Any other exception is a
defect of imprompt and keeps its traceback.
"""


class ImpromptError(Exception):
    """Base class of all errors of imprompt; the message is one sentence on which a user can act."""


class ImageError(ImpromptError):
    """A picture cannot be read, is damaged, or is too large."""


class CheckpointError(ImpromptError):
    """A file of tensors cannot be read, is of another kind, or holds a wrong tensor (it is named)."""


class AdapterMismatch(ImpromptError):
    """An adapter is valid but does not fit this base model or this image encoder."""


class InvalidReference(ImpromptError):
    """A setting of a reference is impossible: there is no picture, the scale is no number, ..."""


class AmbiguousBatch(ImpromptError):
    """References can be assigned to a batch in no way or in several ways."""


class AttachmentError(ImpromptError):
    """An adapter is already attached, is not attached, or meets an unknown attention processor."""


class UnknownModel(ImpromptError):
    """There is no base model, adapter or encoder of that name or path, or it cannot be fetched."""


class OutputError(ImpromptError):
    """A result cannot be written: the folder is missing, the disk is full, ..."""


class ConfigError(ImpromptError):
    """A configuration or a setting is wrong; the message names it, and a similar known name if any."""


class DataError(ImpromptError):
    """Training data cannot be read, or too many samples are damaged (the message names the first one)."""


class TrainingError(ImpromptError):
    """A training run cannot continue: a loss is not finite, the checkpoint belongs to another run, ..."""


class MissingExtra(ImpromptError):
    """An optional dependency is not installed; the message is the command that installs it.

    Args:
        package: import name of the missing package
        extra: the extra of imprompt that installs it, e.g. "train"
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed: pip install 'imprompt[{extra}]'")
        self.package = package
        self.extra = extra
