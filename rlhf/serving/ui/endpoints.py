"""Endpoints for programs: functions with named parameters, whose refusals are errors for the client.

gr.api makes an endpoint of a function with type hints. Here the names, types and defaults come as a table, so that
endpoints that share their settings need not repeat them.
"""

import inspect
import logging
from collections.abc import Callable

import gradio as gr

from rlhf.errors import UserError
from rlhf.serving.engine.requests import Busy
from rlhf.serving.ui.texts import add_texts, language_of, text, told

logger = logging.getLogger(__name__)
REQUIRED = inspect.Parameter.empty  # the default of a parameter that has none
TEXTS = {
    "endpoint.failed": (
        "The model failed while answering. The server's log says why.",
        "답변 중 모델에 오류가 났습니다. 이유는 서버 로그에 있습니다.",
    ),
}
add_texts(TEXTS)


def expose(function: Callable, named: dict[str, tuple], returns: type, **options) -> None:
    """Make an endpoint of a function whose positional arguments get these names, types and defaults."""
    # The language of its errors needs the request, so each endpoint gets one.
    takes_request = "request" in inspect.signature(function).parameters
    if inspect.isgeneratorfunction(function):
        endpoint = _streaming(function, takes_request)
    else:
        endpoint = _plain(function, takes_request)
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    request = inspect.Parameter("request", kind, annotation=gr.Request)
    signature = [request]
    for name, (annotation, default) in named.items():
        signature.append(inspect.Parameter(name, kind, annotation=annotation, default=default))
    # Gradio reads both: the names and defaults here, the types there.
    endpoint.__signature__ = inspect.Signature(signature, return_annotation=returns)
    annotations = {parameter.name: parameter.annotation for parameter in signature}
    endpoint.__annotations__ = annotations | {"return": returns}
    endpoint.__doc__ = function.__doc__
    if "api_name" not in options:
        options["api_name"] = function.__name__
    gr.api(endpoint, **options)


def _plain(function: Callable, takes_request: bool) -> Callable:
    def endpoint(request, *values):
        try:
            return function(request, *values) if takes_request else function(*values)
        except Exception as error:
            raise refused(error, request) from error

    return endpoint


def _streaming(function: Callable, takes_request: bool) -> Callable:
    def endpoint(request, *values):
        try:
            yield from function(request, *values)
        except Exception as error:
            raise refused(error, request) from error

    return endpoint


def refused(error: Exception, request: gr.Request) -> gr.Error:
    """The error that a client gets. Of a failure it gets no details, which may hold paths."""
    language = language_of(request)
    # Gradio has no header for it.
    if isinstance(error, Busy):
        return gr.Error(f"{told(error, language)} (retry after {error.retry_after} s)")
    if isinstance(error, UserError):
        return gr.Error(told(error, language), print_exception=False)
    logger.error("an endpoint failed", exc_info=error)
    return gr.Error(text("endpoint.failed", language), print_exception=False)
