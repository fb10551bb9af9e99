"""Errors of the HTTP endpoints, in OpenAI's form: {"error": {"message", "type", "param", "code"}}."""

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from rlhf.errors import UserError
from rlhf.serving.engine.requests import Busy

logger = logging.getLogger(__name__)

# status -> OpenAI's type of error
TYPES = {
    401: "authentication_error",
    403: "permission_error",
    429: "rate_limit_error",
    500: "server_error",
    503: "server_error",
}


class ApiError(Exception):
    """A refused request. param: the field. code: a short name of the reason. retry_after: seconds."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ):
        super().__init__(message)
        self.status, self.message = status, message
        self.param, self.code, self.retry_after = param, code, retry_after

    def body(self) -> dict:
        kind = TYPES.get(self.status, "invalid_request_error")
        # A lone surrogate, from JSON such as "\ud800", cannot be sent.
        message = self.message.encode(errors="replace").decode()
        error = {"message": message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        headers = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(self.retry_after)
        if self.status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="rlhf"'
        return JSONResponse(self.body(), status_code=self.status, headers=headers)


def as_api_error(error: BaseException, request_id: str) -> ApiError:
    """The error to send for one that the engine raised. Only a UserError's text is for the client."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Busy):
        return ApiError(503, str(error), code="busy", retry_after=error.retry_after)
    if isinstance(error, UserError):
        return ApiError(400, str(error), code="invalid_value")
    # The message may hold paths of the server, so it goes to the log only.
    logger.error("request %s failed", request_id, exc_info=error)
    return ApiError(
        500, f"the model failed; the server's log has the reason under request {request_id}"
    )


def field_name(location: tuple) -> str:
    """`messages[0].content` for ("body", "messages", 0, "content"); names of types in a union are dropped."""
    name = ""
    for part in location:
        if isinstance(part, int):
            name += f"[{part}]"
        elif part != "body" and part.isidentifier():
            name += f".{part}"
    return name.lstrip(".").encode(errors="replace").decode()


def from_validation(errors: list[dict]) -> ApiError:
    """The first thing that is wrong with a body."""
    # Of a union of types pydantic lists every alternative that did not fit. The first is the likeliest.
    first = errors[0]
    param = field_name(first["loc"])
    if first["type"] == "json_invalid":
        return ApiError(400, "the body is not valid JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return ApiError(
            400, f"{param}: there is no such field here", param=param, code="unknown_parameter"
        )
    reason = first["msg"]
    where = param or "the body"
    return ApiError(400, f"{where}: {reason}", param=param or None, code="invalid_value")


def add_handlers(app: FastAPI) -> None:
    """Answer every error of the endpoints in OpenAI's form."""

    @app.exception_handler(ApiError)
    async def refused(request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        return from_validation(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> JSONResponse:
        response = ApiError(error.status_code, str(error.detail)).response()
        response.headers.update(error.headers or {})
        return response
