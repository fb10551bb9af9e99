"""The Runs tab: every run with its curves, samples, report and card; a form that starts a recipe; the line of jobs.

The actions are in `run_actions`, and each is an endpoint as well. What is refused is an error for clients too.
"""

import html
import textwrap
from dataclasses import asdict

import gradio as gr

from rlhf.errors import UserError
from rlhf.serving.jobs.allowed import existing_run
from rlhf.serving.run_files import details
from rlhf.serving.service import Service
from rlhf.serving.ui import curves, run_form, run_view, texts
from rlhf.serving.ui.refusals import told
from rlhf.serving.ui.run_actions import (
    NEXT,
    RunsView,
    feedback_folder_has_events,
    form_facts,
    made_by,
)
from rlhf.serving.ui.run_texts import TEXTS
from rlhf.serving.ui.texts import label, language_of, tab_line, text

TICK = 2  # seconds between two looks at a run that trains
TITLE_SHOWN = 48  # characters of the summary of a recipe or a settings file
PANES = ("head", "curves", "samples", "card", "report", "log", "settings")
QUIET = {"show_progress": "hidden", "api_visibility": "private"}  # of events

CSS = run_view.CSS + run_form.CSS + curves.CSS
PICK = """
element.addEventListener('click', (event) => {
  const run = event.target.closest('[data-run]');
  if (run) trigger('pick', {run: run.dataset.run});
});
"""
STOP = """
element.addEventListener('click', (event) => {
  const job = event.target.closest('[data-stop]');
  if (!job) return;
  job.disabled = true;
  trigger('stop', {job: job.dataset.stop, now: job.dataset.now === 'true'});
});
"""


def build(service: Service, page: gr.Blocks) -> None:
    """Build the tab in the open block."""
    view = RunsView(service)
    run, seen = gr.State(""), gr.State({})
    timer = gr.Timer(TICK, active=False)
    tab_line("runs.line_here" if view.jobs is not None else "runs.line_look")
    line = gr.HTML("", js_on_load=STOP, elem_id="runs-line")
    with gr.Tabs(elem_id="runs-tabs") as tabs:
        with gr.Tab(label("runs.results"), id="results"):
            shown = result_components(view)
        if view.jobs is not None:
            with gr.Tab(label("runs.new"), id="new") as new_tab:
                form = form_components(view)
    wire_results(view, page, shown, (run, seen, timer, line))
    if view.jobs is not None:
        wire_form(view, (new_tab, tabs, form), shown, (run, timer, line))
    endpoints(view)


def result_components(view: RunsView) -> dict:
    """The list of runs on the left, one run on the right."""
    with gr.Row(equal_height=False):
        with gr.Column(scale=2, min_width=280):
            refresh = gr.Button(label("runs.refresh"), size="sm")
            runs = gr.HTML("", js_on_load=PICK, elem_id="runs-list")
        with gr.Column(scale=5, min_width=320):
            head = gr.HTML("", elem_id="run-head")
            with gr.Row(elem_id="run-buttons"):
                resume = gr.Button(label("runs.continue"), visible=False, size="sm")
                following = gr.Button(label("runs.next"), visible=False, size="sm")
            with gr.Tabs():
                with gr.Tab(label("runs.curves")):
                    compare = gr.Dropdown([], label=label("runs.compare"), elem_id="run-compare")
                    plots = gr.HTML("", elem_id="run-curves")
                texts = {}
                for name in ("samples", "card", "report", "log", "settings"):
                    with gr.Tab(label(f"runs.{name}")):
                        texts[name] = gr.HTML("", elem_id=f"run-{name}")
    shown = {
        "refresh": refresh,
        "list": runs,
        "head": head,
        "resume": resume,
        "next": following,
        "compare": compare,
        "curves": plots,
    }
    return shown | texts


def form_components(view: RunsView) -> dict:
    """The choice of a recipe, the way from feedback to PPO, and the form."""
    components = {}
    if view.feedback is not None:
        section = gr.Accordion(label("runs.feedback"), open=False, elem_id="runs-feedback")
        components["section"] = section
        with section:
            components["help"] = gr.Markdown("")
            with gr.Row():
                components["model"] = gr.Dropdown([], label=label("runs.feedback.model"))
                components["name"] = gr.Textbox("feedback", label=label("runs.feedback.name"))
            components["commands"] = gr.HTML("", elem_id="runs-feedback-commands")
            components["both"] = gr.Button(
                label("runs.feedback.start"), variant="primary", elem_id="runs-feedback-start"
            )
    with gr.Row():
        components["recipe"] = gr.Dropdown([], label=label("runs.recipe"), elem_id="run-recipe")
        components["config"] = gr.Dropdown([], label=label("runs.config"), elem_id="run-config")

    # Gradio marks the function, which a method does not allow.
    def check_form(asked: dict, request: gr.Request) -> dict:
        return view.check_form(asked, language_of(request))

    components["form"] = gr.HTML(
        "", js_on_load=run_form.SCRIPT, server_functions=[check_form], elem_id="run-form"
    )
    return components


class ResultEvents:
    """Handlers of the list, the line and the timer. All take the reader's language from the request."""

    def __init__(self, view: RunsView):
        self.view = view

    def panes(self, name: str, other: str | None, language: str) -> list[str]:
        """The list, the line, and the panes of a run, as HTML."""
        view = self.view
        return [
            view.list_html(name, language),
            view.line_html(language),
            view.head_html(name, language),
            view.curves_html(name, other or "", language),
            *view.texts_html(name, language),
        ]

    def everything(self, name: str, other: str | None, request: gr.Request) -> list:
        """The panes, the buttons, the choice of a run to compare with, and the timer."""
        language = language_of(request)
        others = [run["name"] for run in self.view.runs() if run["name"] != name]
        choices = [(text("runs.no_compare", language), ""), *zip(others, others, strict=True)]
        chosen = other if other in others else ""
        return [
            *self.panes(name, chosen, language),
            *run_buttons(self.view, name),
            gr.Dropdown(choices=choices, value=chosen),
            gr.Timer(active=self.view.is_live(name)),
        ]

    def pick(self, other: str | None, event: gr.EventData, request: gr.Request) -> list:
        """Another run was chosen."""
        name = str(asked(event).get("run", ""))
        return [name, *self.everything(name, other, request)]

    def tick(self, name: str, other: str | None, seen: dict, request: gr.Request) -> list:
        """Send what has changed since the last tick. The rest keeps its scroll position and the focus."""
        now_seen, sent = {}, []
        for i, pane in enumerate(self.panes(name, other, language_of(request))):
            now_seen[str(i)] = hash(pane)
            is_new = seen.get(str(i)) != hash(pane)
            sent.append(pane if is_new else gr.skip())
        # Nothing runs any more: the page needs no more ticks until something is started.
        stops = not self.view.is_live(name)
        timer = gr.Timer(active=False) if stops else gr.skip()
        return [now_seen, *sent, *run_buttons(self.view, name), timer]

    def compare(self, name: str, other: str | None, request: gr.Request) -> str:
        """The curves of both runs."""
        return self.view.curves_html(name, other or "", language_of(request))

    def stop(self, event: gr.EventData, request: gr.Request) -> str:
        """Stop the job whose button was pressed."""
        job = asked(event)
        self.view.stop(str(job.get("job", "")), at_once=job.get("now") is True)
        return self.view.line_html(language_of(request))


def asked(event: gr.EventData) -> dict:
    """The data that the browser sent with an event."""
    return event._data if isinstance(event._data, dict) else {}


def wire_results(view: RunsView, page: gr.Blocks, shown: dict, parts: tuple) -> None:
    """Events of the list, of the line and of the timer."""
    run, seen, timer, line = parts
    events = ResultEvents(view)
    panes = [shown["list"], line, *(shown[name] for name in PANES)]
    buttons = [shown["resume"], shown["next"]]
    outputs = [*panes, *buttons, shown["compare"], timer]
    inputs = [run, shown["compare"]]
    page.load(events.everything, inputs, outputs, **QUIET)
    shown["refresh"].click(events.everything, inputs, outputs, **QUIET)
    shown["list"].pick(told(events.pick), [shown["compare"]], [run, *outputs], **QUIET)
    shown["compare"].input(events.compare, inputs, shown["curves"], **QUIET)
    line.stop(told(events.stop), None, line, **QUIET)
    timer.tick(events.tick, [*inputs, seen], [seen, *panes, *buttons, timer], **QUIET)


def run_buttons(view: RunsView, name: str) -> list:
    """Updates of the buttons "Continue" and "Use it": shown where they can do something."""
    try:
        folder = existing_run(view.root, name)
    except UserError:
        return [gr.Button(visible=False), gr.Button(visible=False)]
    job = view.job_of(name)
    can_resume = job is not None and job.has_ended and job.state != "done"
    status = details(view.root, folder)["status"]
    can_use = view.jobs is not None and status in ("done", "trained") and made_by(folder) in NEXT
    return [gr.Button(visible=can_resume), gr.Button(visible=can_use)]


class FormEvents:
    """Handlers of the form: choose a recipe and a settings file, start, continue, train on the feedback."""

    def __init__(self, view: RunsView, form: dict):
        self.view, self.form = view, form

    def choices(self, recipe: str, config: str, name: str, values: dict, language: str) -> list:
        """Updates of the recipe, the settings file and the form."""
        recipes = self.view.recipes()
        recipe_choices = []
        for key, facts in recipes.items():
            recipe_choices.append((f"{key}: {shortened(facts['summary'])}", key))
        configs = [(text("runs.no_config", language), "")]
        for entry in recipes[recipe]["configs"]:
            configs.append((f"{entry['name']}: {shortened(entry['purpose'])}", entry["name"]))
        return [
            gr.Dropdown(choices=recipe_choices, value=recipe),
            gr.Dropdown(choices=configs, value=config),
            self.view.form_html(recipe, config, name, values, language),
        ]

    def opened(self, recipe: str | None, request: gr.Request) -> list:
        """The tab is shown: at its first time the recipes are read."""
        language = language_of(request)
        updates = [gr.skip()] * 3  # a form that somebody is filling in stays
        if not recipe:
            updates = self.choices("sft", "", self.view.free_name("my-run"), {}, language)
        return [*updates, *feedback_updates(self.view, self.form, language)]

    def chosen(self, recipe: str, request: gr.Request) -> list:
        """Another recipe."""
        return self.choices(recipe, "", self.view.free_name("my-run"), {}, language_of(request))

    def configured(self, recipe: str, config: str, request: gr.Request) -> str:
        """Another settings file."""
        name = self.view.free_name(f"my-{config or 'run'}")
        return self.view.form_html(recipe, config, name, {}, language_of(request))

    def start(self, event: gr.EventData, request: gr.Request) -> list:
        """The run of the form goes in line."""
        job = self.view.start(*form_facts(asked(event)))
        message = text("runs.started", language_of(request), name=job.name)
        gr.Info(html.escape(message))
        return [job.name, gr.Tabs(selected="results"), *self.line(request)]

    def resume(self, name: str, request: gr.Request) -> list:
        """The run that is shown goes in line again."""
        job = self.view.job_of(name)
        if job is None:
            raise UserError(f"the app did not start {name}")
        self.view.resume(job.id)
        return self.line(request)

    def use(self, name: str, request: gr.Request) -> list:
        """The form of the run that usually comes next, filled in."""
        filled = self.choices(*self.view.next_run(name), language_of(request))
        return [gr.Tabs(selected="new"), *filled]

    def plan(self, model: str | None, name: str, request: gr.Request) -> list:
        """The commands that the button starts, or why it cannot; and the button."""
        language = language_of(request)
        try:
            commands = self.view.feedback_commands(model or "", name)
        except UserError as error:
            problem = html.escape(texts.told(error, language))
            return [f"<p class='problem'>{problem}</p>", gr.Button(interactive=False)]
        title = html.escape(text("runs.feedback.commands", language))
        shown = f"<h4>{title}</h4><pre class='command' tabindex='0'>{html.escape(commands)}</pre>"
        return [f"<div class='run-form'>{shown}</div>", gr.Button(interactive=True)]

    def train(self, model: str | None, name: str, request: gr.Request) -> list:
        """The reward model of the feedback and PPO go in line."""
        jobs = self.view.train_on_feedback(model or "", name)
        return [jobs[0].name, gr.Tabs(selected="results"), *self.line(request)]

    def line(self, request: gr.Request) -> list:
        """Updates of the line and of the timer."""
        return [self.view.line_html(language_of(request)), gr.Timer(active=True)]


def shortened(title: str) -> str:
    """The beginning of a title, as long as a list shows it."""
    return textwrap.shorten(title, TITLE_SHOWN, placeholder=" ...")


def wire_form(view: RunsView, parts: tuple, shown: dict, state: tuple) -> None:
    """Events of the form."""
    new_tab, tabs, form = parts
    run, timer, line = state
    events = FormEvents(view, form)
    options = QUIET | {"show_progress": "minimal"}
    choice = [form["recipe"], form["config"], form["form"]]
    feedback = [form[name] for name in ("help", "model", "both") if name in form]
    new_tab.select(told(events.opened), [form["recipe"]], [*choice, *feedback], **options)
    form["recipe"].input(told(events.chosen), [form["recipe"]], choice, **options)
    form["config"].input(told(events.configured), choice[:2], form["form"], **options)
    form["form"].start(told(events.start), None, [run, tabs, line, timer], **options)
    shown["resume"].click(told(events.resume), [run], [line, timer], **options)
    shown["next"].click(told(events.use), [run], [tabs, *choice], **options)
    if "both" in form:
        inputs = [form["model"], form["name"]]
        plan = {"inputs": inputs, "outputs": [form["commands"], form["both"]]}
        for changed in (form["model"].change, form["name"].change, form["section"].expand):
            changed(events.plan, **plan, **QUIET)
        form["both"].click(told(events.train), inputs, [run, tabs, line, timer], **options)


def feedback_updates(view: RunsView, form: dict, language: str) -> list:
    """Updates of the way from feedback to PPO; none where there is no store."""
    if "both" not in form:
        return []
    models = view.chat_models()
    has_events = feedback_folder_has_events(view.feedback.folder)
    key = "runs.feedback.help" if has_events else "runs.feedback.none"
    return [
        gr.Markdown(text(key, language)),
        gr.Dropdown(choices=models, value=models[0] if models else None),
        gr.Button(interactive=has_events and bool(models)),
    ]


class Endpoints:
    """The actions of the tab for clients, with named parameters."""

    def __init__(self, view: RunsView):
        self.view = view

    def runs_list(self) -> list:
        return self.view.runs()

    def runs_show(self, run: str) -> dict:
        return self.view.show(run)

    def runs_recipes(self) -> dict:
        return self.view.recipes()

    def runs_command(
        self, recipe: str, settings: dict, name: str, config: str = "", layout: str = ""
    ) -> str:
        return self.view.command(recipe, settings, name, config, layout)

    def runs_start(
        self, recipe: str, settings: dict, name: str, config: str = "", layout: str = ""
    ) -> dict:
        return asdict(self.view.start(recipe, settings, name, config, layout))

    def runs_line(self) -> list:
        return [asdict(job) for job in self.view.require_jobs().list()]

    def runs_stop(self, job: str, at_once: bool = False) -> dict:
        return asdict(self.view.stop(job, at_once))

    def runs_continue(self, job: str) -> dict:
        return asdict(self.view.resume(job))

    def runs_feedback_commands(self, model: str, name: str) -> str:
        return self.view.feedback_commands(model, name)

    def runs_train_on_feedback(self, model: str, name: str) -> list:
        return [asdict(job) for job in self.view.train_on_feedback(model, name)]


def endpoints(view: RunsView) -> None:
    """Add the endpoints that this server has something to answer with."""
    actions = Endpoints(view)
    names = ["runs_list", "runs_show"]
    if view.jobs is not None:
        names += [
            "runs_recipes",
            "runs_command",
            "runs_start",
            "runs_line",
            "runs_stop",
            "runs_continue",
        ]
        if view.feedback is not None:
            names += ["runs_feedback_commands", "runs_train_on_feedback"]
    # The names of the parameters are those of the methods.
    for name in names:
        gr.api(told(getattr(actions, name)), api_name=name)


__all__ = ["CSS", "TEXTS", "build"]
