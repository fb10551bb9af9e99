"""The web service: /health, /v1/models, and the Gradio app at /.

Not included: the other /v1 endpoints, and serving other machines, which needs a login.
"""

from contextlib import asynccontextmanager

import gradio as gr
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

import rlhf
from rlhf.errors import UserError
from rlhf.serving.service import Service
from rlhf.serving.ui.page import CSS, build_page
from rlhf.serving.ui.theme import theme

LOOPBACK = ("127.0.0.1", "localhost")


def check_host(host: str) -> None:
    """Raise UserError for an address that other machines can reach."""
    if host not in LOOPBACK:
        raise UserError(
            f"--host {host}: use {' or '.join(LOOPBACK)}, because there is no login yet; "
            "to reach it from another machine use a tunnel: ssh -L 7860:127.0.0.1:7860 MACHINE"
        )


def build_app(service: Service) -> FastAPI:
    """The service with all its routes. Closing it closes the engine."""
    engine = service.engine
    served = [(name, "chat") for name in engine.runs]
    for kind, runs in service.encoders.runs.items():
        served += [(name, kind) for name in runs]

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        engine.close()  # its worker thread would keep the process alive

    app = FastAPI(title="rlhf", version=rlhf.__version__, lifespan=lifespan)
    # DNS rebinding: another site's name may point to this machine, and its pages could then read ours. The Host header
    # still holds that name, so the request is refused.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))

    @app.get("/health")
    def health() -> dict:
        return {"status": "ok", "version": rlhf.__version__, "models": len(served)}

    @app.get("/v1/models")
    def models() -> dict:
        entries = []
        for name, kind in served:
            entries.append({"id": name, "object": "model", "owned_by": "rlhf", "kind": kind})
        return {"object": "list", "data": entries}  # the form of OpenAI's endpoint

    return gr.mount_gradio_app(
        app,
        build_page(service),
        path="/",
        theme=theme(),
        css=CSS,
        footer_links=["api"],
        run_history=False,
        show_error=False,  # tracebacks stay in the server's log
        max_file_size="1mb",
        ssr_mode=False,
        enable_monitoring=False,
    )
