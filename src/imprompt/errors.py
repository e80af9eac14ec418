"""Every error that imprompt raises on purpose.

    ImpromptError                   one sentence: what is wrong, and what to do about it
    ├── ImageError                  a picture cannot be read, or is too large
    ├── CheckpointError             a file cannot be read, is no adapter, or holds a wrong tensor
    ├── AdapterMismatch             an adapter does not fit this base model or this image encoder
    ├── InvalidReference            a reference asks for something impossible (scale, no picture, ...)
    ├── AmbiguousBatch              references cannot be laid on the batch in exactly one way
    ├── AttachmentError             attached twice, not attached, or on an attention we do not know
    ├── UnknownModel                no base model, adapter or encoder of that name or at that path
    ├── OutputError                 a result cannot be written
    ├── ConfigError                 a recipe or a setting is wrong
    ├── DataError                   training data cannot be used, or too much of it cannot
    ├── TrainingError               a run cannot go on
    └── MissingExtra                an optional dependency is not installed

The command line prints the message as one line on standard error and exits with 1. Anything else that escapes
is a defect of ours and keeps its traceback.
"""


class ImpromptError(Exception):
    """Base of all our errors; the message is one sentence that a user can act on."""


class ImageError(ImpromptError):
    """A picture cannot be read, is damaged, or is too large."""


class CheckpointError(ImpromptError):
    """An adapter file cannot be read, is no adapter, or holds a wrong tensor (the message names it)."""


class AdapterMismatch(ImpromptError):
    """An adapter is sound but does not fit this base model or this image encoder."""


class InvalidReference(ImpromptError):
    """A reference asks for something impossible: no picture, a scale that is no number, ..."""


class AmbiguousBatch(ImpromptError):
    """References can be laid on a batch in no way or in several ways; we refuse rather than guess."""


class AttachmentError(ImpromptError):
    """An adapter is attached already, is not attached, or met an attention processor it does not know."""


class UnknownModel(ImpromptError):
    """No base model, adapter or encoder of that name or path (or it is not here and we are offline)."""


class OutputError(ImpromptError):
    """A result cannot be written: the folder is missing, the disk is full, ..."""


class ConfigError(ImpromptError):
    """A recipe or a setting is wrong; the message names it and the nearest right name, if any."""


class DataError(ImpromptError):
    """Training data cannot be read, or too large a share of it is damaged (the message names the first)."""


class TrainingError(ImpromptError):
    """A training run cannot go on: its figures are not finite, its checkpoint is of another run, ..."""


class MissingExtra(ImpromptError):
    """An optional dependency is not installed; the message is the command that installs it.

    Args:
        package: the name of the missing package, as imported
        extra: the extra of imprompt that brings it, e.g. "train"
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(f"this needs {package}, which is not installed: pip install 'imprompt[{extra}]'")
        self.package = package
        self.extra = extra
