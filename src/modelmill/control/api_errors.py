"""The errors of the admin API as JSON: one line that names what was wrong, and a code."""

from collections.abc import Callable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from modelmill.errors import MillError

BODY_TYPES = ("model_attributes_type", "dict_type")
"""What validation says of a body that is no JSON object."""
NO_OBJECT = "the body is a JSON object, sent with the header Content-Type: application/json"
FAILED = "the admin API failed; the gateway's log says why"
HTTP_CODES = {404: "not_found", 405: "method_not_allowed"}


class ErrorResponses:
    """The handlers of errors; `status` translates ours to HTTP."""

    def __init__(self, status: Callable[[MillError], int]) -> None:
        self._status = status

    def add_to(self, api: FastAPI) -> None:
        """Let the application answer with these."""
        api.exception_handler(MillError)(self.ours)
        api.exception_handler(RequestValidationError)(self.invalid)
        api.exception_handler(Exception)(self.unforeseen)
        api.exception_handler(HTTPException)(self.http)

    def ours(self, request: Request, error: MillError) -> JSONResponse:
        """An error that the platform raised."""
        return _problem(error.message, error.code, self._status(error))

    def invalid(
        self, request: Request, error: RequestValidationError
    ) -> JSONResponse:
        """A request that does not fit its shape."""
        return _problem(_invalid_text(error.errors()[0]), "invalid_input", 400)

    def unforeseen(self, request: Request, error: Exception) -> JSONResponse:
        """A fault of ours."""
        return _problem(FAILED, "internal", 500)

    def http(self, request: Request, error: HTTPException) -> JSONResponse:
        """A path or method that is none."""
        path = request.url.path[:200]
        text = (
            f"{request.method} {path}: {str(error.detail).lower()}; see /docs"
        )
        code = HTTP_CODES.get(error.status_code, "invalid_input")
        response = _problem(text, code, error.status_code)
        response.headers.update(error.headers or {})
        return response


def _problem(text: str, code: str, status: int) -> JSONResponse:
    return JSONResponse({"error": text, "code": code}, status)


def _invalid_text(first: dict[str, Any]) -> str:
    """The first finding of the validation, with the field that it is about."""
    location = first["loc"]
    message: str = first["msg"]
    if first["type"] in BODY_TYPES and location == ("body",):
        return NO_OBJECT
    field = ".".join(str(part) for part in location if part != "body")
    if not field:
        return message
    return f"{field}: {message[0].lower()}{message[1:]}"
