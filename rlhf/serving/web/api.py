"""The HTTP endpoints under /v1: chats and completions in OpenAI's form, scores of reward models, encoder tasks.

A request runs in a thread of its own (see threads.py). Its status is known when the engine gives its first event: a bad
request or a full line raises before that. After it, an error is an event of the stream.
"""

import asyncio
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import JSONResponse, Response

from rlhf.errors import UserError
from rlhf.serving.catalogue import model_ids
from rlhf.serving.engine.requests import Busy, Completion, StreamEnd, TextChunk, Waiting
from rlhf.serving.predictors import as_text
from rlhf.serving.service import Service
from rlhf.serving.web.errors import ApiError, as_api_error
from rlhf.serving.web.openai_format import (
    DONE,
    ChatForm,
    CompletionForm,
    Form,
    comment,
    server_sent,
    total_usage,
    usage,
)
from rlhf.serving.web.schemas import (
    ChatBody,
    ClassifyBody,
    CompletionBody,
    LoadBody,
    Row,
    Sampling,
    ScoreBody,
)
from rlhf.serving.web.threads import ClientGone, EventReader, in_thread, unless_gone

CLIENT_GONE = 499  # no client reads it: for the log only
SHORT_REQUESTS = 32  # scores and predictions that may run or wait at once


# ---- names of models -----------------------------------------------------------------------------------------------


def served_models(service: Service) -> list[tuple[str, str, str]]:
    """(label, kind, folder or Hub id) of every model, in the order of the pickers."""
    rows = [(label, "chat", str(path)) for label, path in service.engine.runs.items()]
    for kind, runs in service.encoders.runs.items():
        rows += [(label, kind, str(path)) for label, path in runs.items()]
    rows += [(label, "reward", str(path)) for label, path in service.engine.reward_runs.items()]
    return rows


def find_model(service: Service, name: str, kinds: tuple[str, ...] = ()) -> tuple[str, str]:
    """(label, kind) of the model with this label or id; an ApiError if there is none of these kinds."""
    rows = served_models(service)
    # Of all models, so that an id means the same to every endpoint.
    ids = model_ids([label for label, _, _ in rows])
    wanted = []
    for label, kind, _ in rows:
        if kinds and kind not in kinds:
            continue
        if name in (label, ids[label]):
            return label, kind
        wanted.append(ids[label])
    names = ", ".join(wanted) or "(none is served)"
    raise ApiError(
        404,
        f"there is no {' or '.join(kinds)} model {name!r}: give one of {names}",
        param="model",
        code="model_not_found",
    )


def model_entry(label: str, kind: str, path: str, name: str) -> dict:
    """A model in OpenAI's form. `label` is its name on the page."""
    config = Path(path) / "config.json"
    created = 0
    if config.is_file():  # a Hub id has no folder here
        created = int(config.stat().st_mtime)
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "rlhf",
        "kind": kind,
        "label": label,
    }


def list_models(service: Service) -> list[dict]:
    rows = served_models(service)
    ids = model_ids([label for label, _, _ in rows])
    return [model_entry(label, kind, path, ids[label]) for label, kind, path in rows]


# ---- streams -------------------------------------------------------------------------------------------------------


class EventStream(Response):
    """Sends server-sent events until they end or the client goes away; then calls `close`.

    Starlette's own streaming response notices a client that went away only when it sends the next text.
    """

    media_type = "text/event-stream"

    def __init__(self, texts: AsyncIterator[str], close: Callable[[], None]):
        # X-Accel-Buffering: nginx would otherwise collect the events
        super().__init__(headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self.texts, self.close = texts, close

    async def __call__(self, scope, receive, send) -> None:
        try:
            await unless_gone(receive, self._send(send))
        except ClientGone:
            scope["rlhf.gone"] = True  # for the access log
        finally:
            self.close()

    async def _send(self, send) -> None:
        start = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(start)
        async for text in self.texts:
            body = text.encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def streamed(
    form: Form, reader: EventReader, first, include_usage: bool
) -> AsyncIterator[str]:
    """The server-sent events of one answer. first: the engine's first event, which is already read."""
    event, started = first, False
    try:
        while event is not None:
            if isinstance(event, Waiting):
                yield comment(waiting_text(event))
            elif not started:
                started = True
                for chunk in form.opening(0):
                    yield server_sent(chunk)
            if isinstance(event, TextChunk):
                yield server_sent(form.text(0, event))
            elif isinstance(event, StreamEnd):
                yield server_sent(form.last(0, event, messages_cut=event.messages_cut))
                if include_usage:
                    used = usage(event.prompt_tokens, event.tokens)
                    yield server_sent(form.usage_chunk(used))
                yield DONE
            event = await reader.next()
    except Exception as error:
        yield server_sent(as_api_error(error, form.request_id).body())


def waiting_text(event: Waiting) -> str:
    if event.loading:
        return "the model is loaded"
    return f"{event.ahead} ahead in line"


async def streamed_samples(
    form: Form, completions: list[Completion], used: dict | None
) -> AsyncIterator[str]:
    """Several answers as a stream. They were generated together, so each is one chunk."""
    for i, completion in enumerate(completions):
        for chunk in form.opening(i):
            yield server_sent(chunk)
        yield server_sent(form.text(i, completion))
        try:
            yield server_sent(form.last(i, completion))
        except ApiError as error:  # the server is closing
            yield server_sent(error.body())
            return
    if used is not None:
        yield server_sent(form.usage_chunk(used))
    yield DONE


# ---- one request ---------------------------------------------------------------------------------------------------


class Asker:
    """Asks the engine on behalf of one HTTP request, and stops it when the client goes away.

    prompts: conversations (lists of messages) or raw texts.
    """

    def __init__(self, service: Service, request: Request, body: Sampling, prompts: list):
        # The cheap checks first
        refuse_unsupported(body)
        self.engine, self.request, self.body, self.prompts = service.engine, request, body, prompts
        self.id = request_id(request)
        self.client = client_name(request)
        self.label, _ = find_model(service, body.model, ("chat",))
        self.settings = body.settings()
        self.samples = body.n or 1
        self.stopped = False

    def stop(self) -> None:
        self.stopped = True
        self.engine.cancel(self.id)

    async def _stop_for_good(self, work: asyncio.Future) -> None:
        """Stop what runs in a thread. The engine does not know a request whose prompt is still read, so it is told again."""
        while not work.done():
            self.stop()
            # Often enough for a client that leaves early, rarely enough to cost nothing.
            await asyncio.wait({work}, timeout=0.1)
        work.exception()  # nobody else asks for it

    async def respond(self, form: Form) -> Response:
        options = self.body.stream_options
        include_usage = bool(options is not None and options.include_usage)
        try:
            if self.body.stream and self.samples == len(self.prompts) == 1:
                return await self._stream(form, include_usage)
            work = in_thread(self._sample)
            try:
                # Shielded: the thread goes on, and its end must be seen.
                answers = await unless_gone(self.request.receive, asyncio.shield(work))
            except ClientGone:
                await self._stop_for_good(work)
                raise
        except ClientGone:
            self.stop()
            return gone(self.request)
        except Exception as error:
            raise as_api_error(error, self.id) from error
        return self._all(form, answers, include_usage)

    async def _stream(self, form: Form, include_usage: bool) -> Response:
        start = partial(
            self.engine.stream,
            self.label,
            self.prompts[0],
            self.settings,
            request=self.id,
            client=self.client,
        )
        # The status waits for the first event: until then a refusal can still be a 400 or a 503.
        reader = EventReader(start, self.stop)
        try:
            first = await unless_gone(self.request.receive, reader.next())
        except BaseException:
            reader.close()
            raise
        return EventStream(streamed(form, reader, first, include_usage), reader.close)

    def _sample(self) -> list[list[Completion]]:
        """The answers to each prompt. Runs in a thread."""
        answers = []
        for prompt in self.prompts:
            if self.stopped:  # the client went away
                break
            completions = self.engine.sample(
                self.label,
                prompt,
                self.settings,
                self.samples,
                request=self.id,
                client=self.client,
            )
            answers.append(completions)
        return answers

    def _all(self, form: Form, answers: list[list[Completion]], include_usage: bool) -> Response:
        used = total_usage(answers)
        # Choices are numbered through: those of the first prompt come first.
        completions = [completion for group in answers for completion in group]
        if not self.body.stream:
            return JSONResponse(form.whole(completions, used))
        texts = streamed_samples(form, completions, used if include_usage else None)
        return EventStream(texts, self.stop)


def refuse_unsupported(body: Sampling) -> None:
    """ApiError for a field that would change the answer and that we do not support."""
    name = body.refused_field()
    if name is not None:
        raise ApiError(
            400,
            f"{name} is not supported here: drop it",
            param=name,
            code="unsupported_parameter",
        )


def request_id(request: Request) -> str:
    """The name of a request in the log, in errors and in the header X-Request-Id."""
    return request.scope.setdefault("rlhf.id", uuid.uuid4().hex)


def client_name(request: Request) -> str | None:
    """The name of who asks, for the limit of requests per client: the key's or account's name, else the address.

    None for this machine without a login: its programs belong to one person, who may ask as much as there is room for.
    """
    name = request.scope.get("rlhf.user")
    if name:
        return f"user {name}"
    if request.client is None or request.client.host in ("127.0.0.1", "::1"):
        return None
    return f"address {request.client.host}"


def gone(request: Request) -> Response:
    request.scope["rlhf.gone"] = True  # for the access log
    return Response(status_code=CLIENT_GONE)


class Room:
    """Limits how many short requests, which have no line in the engine, run or wait at once."""

    def __init__(self, size: int):
        self.size, self.taken = size, 0

    @contextmanager
    def take(self):
        if self.taken >= self.size:
            raise Busy(f"{self.size} requests are running or waiting: try again", retry_after=2)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1


async def short_request(request: Request, room: Room, function: Callable[[], dict]) -> Response:
    """The result of a call that cannot be stopped, unless there is no room or the client went away."""
    try:
        with room.take():
            # The room is given back when the work ends, not when the client goes.
            result = await in_thread(function)
    except Exception as error:
        raise as_api_error(error, request_id(request)) from error
    return JSONResponse(result)


# ---- routes --------------------------------------------------------------------------------------------------------

ERRORS = {
    400: {"description": "a bad request: `error.param` names the field"},
    404: {"description": "no such model"},
    413: {"description": "the body is too large"},
    503: {"description": "busy: ask again after Retry-After seconds"},
}
STREAMED = ERRORS | {200: {"description": "the answer, or a stream of server-sent events"}}


def make_router(service: Service) -> APIRouter:
    router = APIRouter(responses=ERRORS)
    add_model_routes(router, service)
    add_text_routes(router, service)
    add_short_routes(router, service)
    return router


def add_model_routes(router: APIRouter, service: Service) -> None:
    @router.get("/v1/models")
    async def models() -> dict:
        """The models that can be asked. `kind` says how: chat, reward, or a task of /v1/classify."""
        return {"object": "list", "data": list_models(service)}

    @router.get("/v1/models/{name:path}")
    async def model(name: str) -> dict:
        label, _ = find_model(service, name)
        return next(entry for entry in list_models(service) if entry["label"] == label)

    @router.post("/load_model", include_in_schema=False)
    async def load(body: LoadBody) -> Response:
        """The first question of `transformers chat`. A model is loaded when it is first used: there is nothing to do."""
        status = {"status": "ready", "model": body.model, "cached": True}
        return Response(server_sent(status), media_type="text/event-stream")


def add_text_routes(router: APIRouter, service: Service) -> None:
    @router.post("/v1/chat/completions", responses=STREAMED)
    async def chat(body: ChatBody, request: Request) -> Response:
        """Answer a conversation. A last message of the assistant is continued."""
        messages = [message.plain() for message in body.messages]
        form = ChatForm(request_id(request), body.model)
        return await ask(request, body, [messages], form)

    @router.post("/v1/completions", responses=STREAMED)
    async def complete(body: CompletionBody, request: Request) -> Response:
        """Continue raw text, without a chat template."""
        form = CompletionForm(request_id(request), body.model)
        return await ask(request, body, body.prompts(), form)

    async def ask(request: Request, body: Sampling, prompts: list, form: Form) -> Response:
        try:
            asker = Asker(service, request, body, prompts)
        except UserError as error:
            raise as_api_error(error, form.request_id) from error
        return await asker.respond(form)


def add_short_routes(router: APIRouter, service: Service) -> None:
    room = Room(SHORT_REQUESTS)

    @router.post("/v1/score")
    async def score(body: ScoreBody, request: Request) -> Response:
        """Score answers to a conversation with a reward model, in the order of `completions`."""
        label, _ = find_model(service, body.model, ("reward",))
        messages = [message.plain() for message in body.messages]

        def work() -> dict:
            scores = service.engine.score(label, messages, body.completions)
            data = []
            for i, value in enumerate(scores):
                data.append({"object": "score", "index": i, "score": value})
            return {"object": "list", "model": body.model, "data": data}

        return await short_request(request, room, work)

    @router.post("/v1/classify")
    async def classify(body: ClassifyBody, request: Request) -> Response:
        """Predictions of an encoder for rows of its task, in the form of `rlhf predict`."""
        label, kind = find_model(service, body.model, tuple(service.encoders.runs) or ("encoder",))

        def work() -> dict:
            data = []
            for i, row in enumerate(body.rows()):
                prediction = predict(service, kind, label, row)
                data.append({"object": "prediction", "index": i, "prediction": prediction})
            return {"object": "list", "model": body.model, "kind": kind, "data": data}

        return await short_request(request, room, work)


def predict(service: Service, kind: str, label: str, row: Row) -> dict:
    """The prediction for a text or a row; UserError names a column that the model does not have."""
    encoders = service.encoders
    columns = encoders.columns(kind, label)
    if isinstance(row, str):  # short for a row with the first column
        row = {columns[0]: row}
    texts = {}
    for name, value in row.items():
        if name not in columns:
            raise UserError(f"input: {name!r} is not a column of this model: {', '.join(columns)}")
        # A list of texts, as the page's text box takes it.
        texts[name] = as_text(kind, name, value) if isinstance(value, list) else value
        if not isinstance(texts[name], str):
            raise UserError(f"input: {name} must be a string")
    return encoders.predict(kind, label, texts)
