"""The page: its tabs, in order.

A tab is a module with `TEXTS`, `CSS` and `build(service, page)`. A tab whose parts the service lacks is not shown.
"""

import html
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType

import gradio as gr

from rlhf.serving.service import Service
from rlhf.serving.ui import (
    blind,
    chat,
    compare,
    consent,
    data,
    ladder,
    rank,
    runs,
    share,
    tasks,
    texts,
    theme,
)

TITLE = "RLHF"
TEXTS = {
    "page.chat": ("Chat", "채팅"),
    "page.compare": ("Compare", "비교"),
    "page.ladder": ("Ladder", "사다리"),
    "page.rank": ("Rank", "순위"),
    "page.runs": ("Runs", "학습"),
    "page.data": ("Data", "데이터"),
    "page.share": ("Share", "공유"),
    "page.empty": (
        "There is no finished model in {runs} yet. Train the first one in the tab Runs, then open this page again.",
        "{runs}에 완료된 모델이 아직 없습니다. '학습' 탭에서 첫 모델을 학습한 뒤 이 페이지를 다시 여세요.",
    ),
}


@dataclass(frozen=True)
class Tab:
    """module: with the tab's TEXTS, CSS and `build`. shown: does the service have what it needs?"""

    module: ModuleType
    shown: Callable[[Service], bool]

    @property
    def name(self) -> str:
        return self.module.__name__.rpartition(".")[2]


def is_empty(service: Service) -> bool:
    """True where no model can be tried yet, and one may come."""
    has_models = bool(service.engine.runs or service.encoders.runs)
    return not has_models and service.find is not None


def can_chat(service: Service) -> bool:
    # An empty page has the tab too: a page stays as it was built until the server starts again.
    return bool(service.engine.runs) or is_empty(service)


def takes_feedback(service: Service) -> bool:
    return can_chat(service) and service.feedback is not None


def starts_runs(service: Service) -> bool:
    return service.jobs is not None


def has_data(service: Service) -> bool:
    return service.jobs is not None or service.feedback is not None


def has_ladder(service: Service) -> bool:
    return bool(service.engine.runs) and ladder.find_ladder(service.runs) is not None


def may_push(service: Service) -> bool:
    return service.jobs is not None and service.jobs.allowed.may_push


TABS = (
    Tab(chat, can_chat),
    Tab(compare, takes_feedback),
    Tab(rank, takes_feedback),
    Tab(ladder, has_ladder),
    Tab(runs, starts_runs),
    Tab(data, has_data),
    Tab(share, may_push),
)
# Gradio takes one style sheet per page.
CSS = theme.CSS + tasks.CSS + blind.CSS + "".join(tab.module.CSS for tab in TABS)


def shown_tabs(service: Service) -> list[Tab]:
    """The tabs that the service can fill."""
    return [tab for tab in TABS if tab.shown(service)]


def notice_of_none(service: Service, page: gr.Blocks) -> None:
    """The line above the tabs while there is no model, which goes when the page is opened with one."""
    notice = gr.HTML("", elem_id="page-empty")

    def on_load(request: gr.Request):
        service.refresh()
        if not is_empty(service):
            return gr.HTML(visible=False)
        line = texts.text("page.empty", texts.language_of(request), runs=service.runs)
        return f"<p role='status'>{html.escape(line)}</p>"

    options = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    page.load(on_load, None, notice, **options)


def build_page(service: Service) -> gr.Blocks:
    """Build the page: the tabs of the service, then one for each task of an encoder that is there."""
    texts.add_texts(TEXTS)
    texts.add_texts(tasks.TEXTS)
    texts.add_texts(blind.TEXTS)
    texts.add_texts(consent.TEXTS)
    encoders = service.encoders
    with theme.titled_page(TITLE) as page:
        # Who serves encoders only came for these.
        kinds = [view.kind for view in tasks.VIEWS if encoders.runs.get(view.kind)]
        first = kinds[0] if kinds and not can_chat(service) else None
        if is_empty(service):
            first = "runs"
            notice_of_none(service, page)
        with gr.Tabs(selected=first):
            for tab in shown_tabs(service):
                texts.add_texts(tab.module.TEXTS)
                with gr.Tab(texts.label(f"page.{tab.name}"), id=tab.name):
                    tab.module.build(service, page)
            for view in tasks.VIEWS:
                if view.kind in kinds:
                    with gr.Tab(texts.label(f"tasks.{view.kind}"), id=view.kind):
                        tasks.encoder_view(encoders, view)
    page.i18n_instance = texts.i18n()  # what mount_gradio_app(i18n=) would set
    return page
