"""The exception of an answer that is an error; it is light, because the command checks access with it."""

from collections.abc import Mapping

from starlette.exceptions import HTTPException


class ApiError(HTTPException):
    """An answer that is an error.

    Args:
        status: the status code
        message: one sentence
        kind: a type of error of the OpenAI API, such as invalid_request_error or server_error
        code: a word for programs
        param: the field at fault
        headers: further headers
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.message, self.kind, self.code, self.param = message, kind, code, param
