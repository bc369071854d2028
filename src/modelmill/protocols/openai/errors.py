"""Errors in the shape of OpenAI's API."""

import msgspec

from modelmill.errors import MillError, NotFound
from modelmill.protocols.base import UnknownPath

KINDS = {
    "invalid_input": ("invalid_request_error", None),
    "too_large": ("invalid_request_error", "request_too_large"),
    "unauthenticated": ("authentication_error", "invalid_api_key"),
    "forbidden": ("permission_error", "insufficient_permissions"),
    "not_found": ("not_found_error", "model_not_found"),
    "method_not_allowed": ("invalid_request_error", "method_not_supported"),
    "conflict": ("conflict_error", "conflict"),
    "overloaded": ("rate_limit_error", "rate_limit_exceeded"),
    "cancelled": ("invalid_request_error", "request_cancelled"),
}
"""OpenAI's `type` and `code` by our code; what is not here is a `server_error` under our own
code.
"""


def error(error: MillError) -> bytes:
    """`{"error": {"message", "type", "param", "code"}}`.

    OpenAI's clients want this object. KServe's clients print whatever `error` holds, so they lose
    nothing by it.
    """
    kind, code = KINDS.get(error.code, ("server_error", error.code))
    unknown_path = isinstance(error, UnknownPath)
    document = {
        "message": error.message,
        "type": kind,
        "param": "model"
        if isinstance(error, NotFound) and not unknown_path
        else None,
        "code": "unknown_url" if unknown_path else code,
    }
    return msgspec.json.encode({"error": document})
