"""Errors as OpenAI's clients expect them: {"error": {message, type, param, code}}."""

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.responses import JSONResponse
from pydantic import ValidationError

from peftjob.errors import ConflictError, NotFoundError, PeftJobError, RetryableError, UsageError

RETRY_AFTER_S = 1
"""A full queue moves within about a second."""


class ApiError(Exception):
    """An error to show to the client."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self._headers = headers
        self.body: dict[str, Any] = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }

    def to_response(self) -> JSONResponse:
        return JSONResponse(self.body, status_code=self.status, headers=self._headers)


def model_not_found(name: str, known: Sequence[str]) -> ApiError:
    return ApiError(
        404,
        f"The model {name!r} does not exist; this server has {', '.join(known)}",
        param="model",
        code="model_not_found",
    )


def context_exceeded(prompt_tokens: int, context_tokens: int, *, param: str) -> ApiError:
    return ApiError(
        400,
        f"The prompt has {prompt_tokens} tokens; this model's context holds {context_tokens}, the "
        "answer included. Shorten it",
        param=param,
        code="context_length_exceeded",
    )


def invalid_request(err: ValidationError) -> ApiError:
    """All problems in one message; `param` names the first."""
    problems = err.errors(include_url=False, include_context=False, include_input=False)
    lines = []
    for problem in problems:
        path = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            message = "not supported by this server"
        lines.append(f"{path}: {message}" if path else message)
    location = problems[0]["loc"]
    return ApiError(400, "; ".join(lines), param=str(location[0]) if location else None)


def busy(message: str) -> ApiError:
    return ApiError(
        429,
        f"{message}; try again",
        kind="rate_limit_error",
        code="queue_full",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


def late(message: str) -> ApiError:
    return ApiError(504, message, kind="server_error", code="deadline_exceeded")


def ending() -> ApiError:
    return ApiError(
        503,
        "The server is ending and had no time left for this; try again",
        kind="server_error",
        code="server_ending",
        headers={"Retry-After": str(RETRY_AFTER_S)},
    )


_STATUS: tuple[tuple[type[PeftJobError], int], ...] = (
    (UsageError, 400),
    (NotFoundError, 404),
    (ConflictError, 409),
    (RetryableError, 503),
    (PeftJobError, 422),
)


def refused(err: PeftJobError) -> ApiError:
    """What an administrator is told of an adapter that can't be loaded or unloaded."""
    status = next(status for kind, status in _STATUS if isinstance(err, kind))
    retry = {"Retry-After": str(RETRY_AFTER_S)} if status == 503 else None
    return ApiError(status, str(err), code="adapter_refused", headers=retry)


def failed(message: str) -> ApiError:
    return ApiError(500, message, kind="server_error", code="engine_failed")
