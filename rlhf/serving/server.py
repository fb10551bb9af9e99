"""The web service: /health, /v1/models, and the Gradio app at /.

Left out so far: the other /v1 endpoints, and serving anyone but this machine, which needs auth.
"""

from contextlib import asynccontextmanager

import gradio as gr
from fastapi import FastAPI
from starlette.middleware.trustedhost import TrustedHostMiddleware

import rlhf
from rlhf.errors import UserError
from rlhf.serving.engine import Engine
from rlhf.serving.predictors import Encoders
from rlhf.serving.ui.chat import theme
from rlhf.serving.ui.page import CSS, build_page

LOOPBACK = ("127.0.0.1", "localhost")


def check_host(host: str) -> None:
    if host not in LOOPBACK:
        raise UserError(
            f"--host {host}: only {' or '.join(LOOPBACK)} can be served, since there is no login yet; "
            "from another machine use a tunnel: ssh -L 7860:127.0.0.1:7860 MACHINE"
        )


def build_app(engine: Engine, encoders: Encoders) -> FastAPI:
    served = [(name, "chat") for name in engine.runs]
    served += [(name, kind) for kind, runs in encoders.runs.items() for name in runs]

    @asynccontextmanager
    async def lifespan(app: FastAPI):
        yield
        engine.close()

    app = FastAPI(title="rlhf", version=rlhf.__version__, lifespan=lifespan)
    # A page of another site whose name points here (DNS rebinding) is refused by the name it asks for.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(LOOPBACK))

    @app.get("/health")
    def health() -> dict:
        return {"status": "ok", "version": rlhf.__version__, "models": len(served)}

    @app.get("/v1/models")
    def models() -> dict:
        entries = [
            {"id": name, "object": "model", "owned_by": "rlhf", "kind": kind}
            for name, kind in served
        ]
        return {"object": "list", "data": entries}

    return gr.mount_gradio_app(
        app,
        build_page(engine, encoders),
        path="/",
        theme=theme(),
        css=CSS,
        footer_links=["api"],
        run_history=False,
        show_error=False,
        max_file_size="1mb",
        ssr_mode=False,
        enable_monitoring=False,
    )
