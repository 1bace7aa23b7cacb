"""What all routes of ours share: bodies read within limits, errors in OpenAI's shape."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from kserve_runtime.engine import EngineBusyError, EngineFailedError
from kserve_runtime.errors import ApiError, busy, ending, failed, invalid_request, late, refused
from kserve_runtime.metrics import Metrics
from kserve_runtime.streams import ClientGoneError, DeadlineError
from peftjob.errors import PeftJobError

log = logging.getLogger(__name__)

PREFIXES = ("/openai/v1", "/v1")
"""KServe's prefix, and the one that most clients assume."""

MAX_BODY_BYTES = 16 * 2**20
"""Far above any context; keeps one request from filling the memory."""

CLIENT_GONE = 499
"""nginx's status for a client that didn't wait; nobody reads it but a log."""

Body = TypeVar("Body", bound=BaseModel)


def guarded_route(metrics: Metrics) -> type[APIRoute]:
    """The class of routes whose errors have OpenAI's shape, whatever happens, and are counted."""

    class GuardedRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def guarded(request: Request) -> Response:
                try:
                    return await handle(request)
                except (ClientGoneError, ClientDisconnect):
                    return Response(status_code=CLIENT_GONE)
                except asyncio.CancelledError:
                    # uvicorn's, when what is under way has had its time to end.
                    metrics.refused_request(503)
                    return ending().to_response()
                # Whatever it is: a client that is told nothing of it tries again and again.
                except Exception as err:
                    error = to_api_error(err, request)
                    metrics.refused_request(error.status)
                    return error.to_response()

            return guarded

    return GuardedRoute


async def unknown_route(request: Request, err: Exception) -> Response:
    """What there is no route for, as OpenAI's clients expect it."""
    if not isinstance(err, HTTPException):
        raise err
    message = f"{request.method} {request.url.path[:200]}: {err.detail}"
    return ApiError(
        err.status_code, message, code="unknown_route", headers=err.headers
    ).to_response()


def to_api_error(err: Exception, request: Request) -> ApiError:
    """What a client is told of `err`. What nobody has foreseen goes to the log, with its
    traceback."""
    match err:
        case ApiError():
            return err
        case EngineBusyError():
            return busy(str(err))
        case EngineFailedError():
            return failed(str(err))
        case DeadlineError():
            return late(str(err))
        case PeftJobError():
            return refused(err)
    log.error("%s %s failed", request.method, request.url.path, exc_info=err)
    return failed(f"{type(err).__name__} in the server; see its log")


async def read_body(http: Request, schema: type[Body], *, empty: bytes = b"") -> Body:
    """The request's JSON, or `empty` where there is none.

    `http.state.body_bytes` is its length, `http.state.began` when it was there, of the event loop's
    clock.

    Raises:
        ApiError: 413 where it is too long, 400 with all that is wrong with it.
    """
    body = bytearray()
    async for part in http.stream():
        body += part
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"The body has more than {MAX_BODY_BYTES} bytes")
    http.state.body_bytes = len(body)
    http.state.began = asyncio.get_running_loop().time()
    try:
        # Pydantic's own reader also refuses what no tokenizer takes, such as half a surrogate pair.
        return schema.model_validate_json(bytes(body) or empty)
    except ValidationError as err:
        raise invalid_request(err) from err
