"""The job of a picture that a client asks for: that of `imprompt generate`, or one without references."""

from typing import Annotated

from pydantic import BeforeValidator

from imprompt.generation.job import Job, JobReference
from imprompt.generation.job.reference import as_tuple


class RequestJob(Job):
    """A job that may have no reference: then it is text-to-image."""

    references: Annotated[tuple[JobReference, ...], BeforeValidator(as_tuple)]
