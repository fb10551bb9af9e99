"""The web service: the endpoints of api.py, /health, /metrics, a login, and the Gradio app at /.

A request passes the middlewares from the outside in: Observer (name, log, numbers), Guard (Host, Origin, identity, size),
CORS. Then come our own routes, and last the page, which is mounted at / and takes what is left.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import gradio as gr
from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

import rlhf
from rlhf.serving.service import Service
from rlhf.serving.ui.page import CSS, build_page
from rlhf.serving.ui.theme import theme
from rlhf.serving.web import api, login
from rlhf.serving.web.access import Access
from rlhf.serving.web.access_log import Observer
from rlhf.serving.web.errors import add_handlers
from rlhf.serving.web.guard import Guard, Rules
from rlhf.serving.web.metrics import ServiceMetrics
from rlhf.serving.web.threads import in_thread

logger = logging.getLogger(__name__)

RESCAN_SECONDS = 10  # between two looks for new runs
# Components through which a user can send a file
UPLOADING = ("file", "uploadbutton", "image", "audio", "video", "multimodaltextbox", "fileexplorer")


def build_app(
    service: Service, *, rules: Rules | None = None, access: Access | None = None
) -> FastAPI:
    """The service with all its routes. Closing it closes the engine and the jobs' line.

    rules: who may call it; by default this machine. access: keys and accounts; by default nobody needs one.
    """
    access = access or Access()
    rules = rules or Rules()
    page = build_page(service)
    if any(is_upload(block) for block in page.blocks.values()):
        rules = rules.with_uploads()
    return mount_page(build_api(service, rules, access), page, access)


def build_api(service: Service, rules: Rules, access: Access) -> FastAPI:
    """All but the page."""
    metrics = ServiceMetrics(lambda: load_report(service))
    app = FastAPI(
        title="rlhf",
        version=rlhf.__version__,
        lifespan=lambda app: lifespan(service),
        # Their pages load scripts from other hosts.
        docs_url=None,
        redoc_url=None,
    )
    add_handlers(app)
    # Gradio adds headers of its own for any origin, unless it sees this middleware.
    app.add_middleware(
        CORSMiddleware,
        allow_origins=list(rules.origins),
        allow_methods=["GET", "POST"],
        allow_headers=["Authorization", "Content-Type"],
    )
    app.add_middleware(Guard, rules=rules, access=access)
    app.add_middleware(Observer, metrics=metrics)  # the last one added is the outermost
    app.include_router(api.make_router(service))
    app.include_router(login.make_router(access))

    @app.get("/health")
    async def health() -> dict:
        count = len(api.served_models(service))
        return {"status": "ok", "version": rlhf.__version__, "models": count}

    # What watches a server often asks without wanting the body.
    app.head("/health", include_in_schema=False)(health)

    @app.get("/metrics", include_in_schema=False)
    async def numbers() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4")

    return app


def mount_page(app: FastAPI, page: gr.Blocks, access: Access) -> FastAPI:
    """The Gradio app at /. The Guard tells it who asks: Gradio's own login is not used."""
    who = None
    if access.required:
        who = user_of
    return gr.mount_gradio_app(
        app,
        page,
        path="/",
        theme=theme(),
        css=CSS,
        footer_links=["api"],
        run_history=False,
        show_error=False,  # tracebacks stay in the server's log
        max_file_size="1mb",
        ssr_mode=False,
        enable_monitoring=False,
        auth_dependency=who,
    )


def user_of(request) -> str | None:
    return request.scope.get("rlhf.user")


def is_upload(block) -> bool:
    """True for a component that takes a file from the user."""
    name = block.get_block_name()
    return name in UPLOADING and getattr(block, "interactive", None) is not False


def load_report(service: Service) -> dict:
    """The engine's numbers, and how many models are served."""
    report = {"models_served": len(api.served_models(service))}
    return report | service.engine.load_report()


@asynccontextmanager
async def lifespan(service: Service) -> AsyncIterator[None]:
    """Look for new runs while the server runs; at its end stop what would keep the process alive."""
    rescan = asyncio.create_task(keep_fresh(service))
    yield
    rescan.cancel()
    with suppress(asyncio.CancelledError):
        await rescan
    service.engine.close()
    if service.jobs is not None:
        service.jobs.close()


async def keep_fresh(service: Service) -> None:
    while service.find is not None:
        await asyncio.sleep(RESCAN_SECONDS)
        try:
            if await in_thread(service.refresh):
                logger.info("the served models changed: %d", len(api.served_models(service)))
        except Exception:
            # The next look may succeed: a folder was renamed meanwhile, for instance.
            logger.exception("looking for new runs failed")
