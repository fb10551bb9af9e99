"""The actions of the Runs tab, without a page: plain functions that take and return values."""

import json
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.record import RECORD, read_object
from rlhf.serving.jobs.allowed import existing_run
from rlhf.serving.jobs.command import layouts, shell_text
from rlhf.serving.jobs.jobs import SHARE, Jobs, read_tail
from rlhf.serving.jobs.records import JOB_FAILED, Job
from rlhf.serving.run_files import (
    RowsOfRuns,
    alarms,
    card,
    details,
    list_runs,
    pictures,
    report,
    samples,
)
from rlhf.serving.service import Service
from rlhf.serving.ui import curves as curve_plots
from rlhf.serving.ui import run_form, run_view
from rlhf.serving.ui.texts import text, told

LOG_SHOWN = 16_000  # bytes of the end of a log
FAILURES_SHOWN = 2  # jobs that left no run
LISTED_FILES = 200
LARGEST_SETTINGS = 100_000  # characters of the settings of a form

# A finished run of one recipe -> the recipe that it is used in, and by which key.
NEXT = {
    "tokenizer": ("pretrain", "tokenizer_name_or_path"),
    "word_vectors": ("pretrain", "embeddings_from"),
    "pretrain": ("sft", "model_name_or_path"),
    "sft": ("reward", "model_name_or_path"),
    "reward": ("ppo", "reward_model_path"),
    "dpo": ("dpo", "model_name_or_path"),
    "kto": ("kto", "model_name_or_path"),
    "ilql": ("ilql", "model_name_or_path"),
    "ppo": ("ppo", "model_name_or_path"),
}


class RunsView:
    """The contents and the actions of the tab, without a page."""

    def __init__(self, service: Service):
        self.service = service
        self.root = Path(service.runs)
        self.jobs: Jobs | None = getattr(service, "jobs", None)
        self.feedback = getattr(service, "feedback", None)
        self.rows = RowsOfRuns()

    # ---- runs ------------------------------------------------------------------------------------------------------

    def runs(self) -> list[dict]:
        """Every run with its recipe, status, date and key numbers, the newest first."""
        return [vars(run) for run in list_runs(self.root)]

    def show(self, run: str) -> dict:
        """One run: its facts, curves, samples, alarms and the end of its log."""
        job = self.job_of(run)
        try:
            folder = existing_run(self.root, run)
        except UserError as error:
            if job is None or not job.reason:
                raise
            # It ended before it made a folder.
            raise UserError(f"{error}: its job {job.state}: {job.reason}") from error
        return details(self.root, folder) | {
            "curves": self.rows.curves(folder),
            "samples": samples(folder),
            "alarms": alarms(folder),
            "log": read_tail(Path(job.log), LOG_SHOWN) if job else "",
            "job": job.id if job else "",
        }

    def job_of(self, run: str) -> Job | None:
        """The newest job of a run, if the app started it."""
        return self.jobs.of_run(run) if self.jobs else None

    def is_live(self, run: str) -> bool:
        """True while something changes: a job, or the run that is shown."""
        if self.jobs and any(not job.has_ended for job in self.jobs.list()):
            return True
        try:
            folder = existing_run(self.root, run)
        except UserError:
            return False
        return details(self.root, folder)["status"] == "running"

    def list_html(self, run: str, language: str) -> str:
        return run_view.list_html(list_runs(self.root), run, language)

    def line_html(self, language: str) -> str:
        """The line of jobs, and the newest of those that failed and left no run to look at."""
        jobs = self.jobs.list() if self.jobs else []
        failures = []
        for job in reversed(jobs):
            is_run = job.recipe != SHARE  # pushes are in a tab of their own
            if is_run and job.state == JOB_FAILED and not (Path(job.folder) / RECORD).exists():
                failures.append(job)
        return run_view.line_html(jobs, failures[:FAILURES_SHOWN], language)

    def head_html(self, run: str, language: str) -> str:
        """The heading of a run, or a hint to choose one."""
        try:
            folder = existing_run(self.root, run)
        except UserError:
            job = self.job_of(run)
            if job is not None:  # it has not made its folder yet
                return run_view.failure_html(job, language)
            hint = run_view.escape(text("runs.pick", language))
            return f"<p class='quiet'>{hint}</p>"
        facts = details(self.root, folder)
        return run_view.head_html(facts, alarms(folder), self.job_of(run), language)

    def curves_html(self, run: str, other: str, language: str) -> str:
        """The curves of a run, and of another one to compare it with."""
        curves = self._curves(run)
        others = self._curves(other) if other != run else {}
        if not curves and not others:
            if not run:
                return ""
            return f"<p class='quiet'>{run_view.escape(text('runs.no_curves', language))}</p>"
        names = {key: text(f"runs.{key}", language) for key in ("training", "evaluation", "step")}
        names |= {"other": other, "more": text("runs.more", language, n="{n}")}
        return curve_plots.curves_html(curves, others, names)

    def _curves(self, run: str) -> curve_plots.Curves:
        try:
            return self.rows.curves(existing_run(self.root, run))
        except UserError:
            return {}

    def texts_html(self, run: str, language: str) -> tuple[str, str, str, str, str]:
        """Samples, card, report, log and settings of a run; all empty where there is none."""
        job = self.job_of(run)
        log = read_tail(Path(job.log), LOG_SHOWN) if job else ""
        try:
            folder = existing_run(self.root, run)
        except UserError:
            return ("", "", "", run_view.log_html(log, language) if log else "", "")
        plots = run_view.pictures_html(pictures(folder), language)
        return (
            run_view.samples_html(samples(folder), language),
            self._markdown(card(folder), "runs.no_card", language),
            self._markdown(report(folder), "runs.no_report", language) + plots,
            run_view.log_html(log, language),
            run_view.settings_html(details(self.root, folder), language),
        )

    def _markdown(self, source: str, missing: str, language: str) -> str:
        if not source:
            return f"<p class='quiet'>{run_view.escape(text(missing, language))}</p>"
        return run_view.markdown_html(source)

    # ---- new runs --------------------------------------------------------------------------------------------------

    def require_jobs(self) -> Jobs:
        """The line of jobs. UserError where this server starts none."""
        if self.jobs is None:
            raise UserError("this server starts no runs")
        return self.jobs

    def recipes(self) -> dict[str, dict]:
        """Recipe -> summary, keys and settings files."""
        return self.require_jobs().recipes()

    def command(
        self, recipe: str, settings: dict, name: str, config: str = "", layout: str = ""
    ) -> str:
        """The command of a new run as text for a terminal. UserError for settings that the recipe would refuse."""
        jobs = self.require_jobs()
        words = jobs.command(recipe, settings, name, config=config, layout=layout)
        jobs.check(recipe, words)
        return shell_text(words, str(Path.cwd()))

    def check_form(self, asked: dict, language: str = "en") -> dict:
        """The command for the form, and the problem with its field if there is one. Nothing is raised here."""
        answer = {"command": "", "problem": "", "key": "", "ready": False}
        try:
            recipe, settings, name, config, layout = form_facts(asked)
            jobs = self.require_jobs()
            # Without a name the command is still shown.
            words = jobs.command(recipe, settings, name or "NAME", config=config, layout=layout)
            answer["command"] = shell_text(words, str(Path.cwd()))
            jobs.check(recipe, words)
            answer["ready"] = bool(name)
        except UserError as error:
            answer["problem"] = told(error, language)
            names = [key["name"] for key in self._keys(asked)]
            answer["key"] = run_form.key_of(str(error), names)
        return answer

    def _keys(self, asked) -> list[dict]:
        recipe = asked.get("recipe") if isinstance(asked, dict) else None
        forms = self.jobs.recipes() if self.jobs and self.jobs.is_warm else {}
        return forms.get(recipe, {}).get("keys", [])

    def start(
        self, recipe: str, settings: dict, name: str, config: str = "", layout: str = ""
    ) -> Job:
        """Put a run in line."""
        return self.require_jobs().start(recipe, settings, name, config=config, layout=layout)

    def stop(self, job: str, at_once: bool = False) -> Job:
        return self.require_jobs().stop(job, at_once=at_once)

    def resume(self, job: str) -> Job:
        return self.require_jobs().resume(job)

    def form_html(self, recipe: str, config: str, name: str, values: dict, language: str) -> str:
        """The form of a recipe, filled in."""
        form = self.recipes().get(recipe)
        if form is None:
            raise UserError(f"no recipe {recipe!r}")
        return run_form.form_html(
            recipe,
            form,
            config=config,
            name=name,
            values=values,
            suggestions={"models": self.models(), "files": self.files()},
            layouts=tuple(layouts()),
            language=language,
        )

    def models(self) -> list[str]:
        """The folders of finished runs, as a form suggests them."""
        runs = [run for run in list_runs(self.root) if run.status in ("done", "trained")]
        return [self.path_of(run.name) for run in runs]

    def path_of(self, run: str) -> str:
        """The folder of a run as a command names it."""
        return (self.root / run).as_posix()

    def files(self) -> list[str]:
        """Files of rows below the open folders, as a form suggests them."""
        return data_files(self.roots())

    def roots(self) -> list[Path]:
        """The folders whose files are suggested."""
        folders = [self.root]
        if self.jobs is not None:
            folders += self.jobs.allowed.roots
        if self.feedback is not None:
            folders.append(Path(self.feedback.folder))
        return list(dict.fromkeys(folders))

    def next_run(self, run: str) -> tuple[str, str, str, dict]:
        """(recipe, config, name, values) of the run that usually comes after this one."""
        folder = existing_run(self.root, run)
        facts = details(self.root, folder)
        recipe = made_by(folder)
        following, key = NEXT.get(recipe, ("sft", "model_name_or_path"))
        parent = str(Path(run).parent)
        name = following if parent == "." else f"{parent}/{following}"
        values = {key: self.path_of(run)}
        # The policy that PPO trains is the one whose answers were ranked.
        if recipe == "reward":
            policy = facts["parents"].get("policy") or facts["parents"].get("model")
            if policy:
                values["model_name_or_path"] = policy
        return following, self.same_config(run, following), self.free_name(name), values

    def same_config(self, run: str, recipe: str) -> str:
        """The settings file that a run was made with, if the other recipe has one of the same name."""
        # The same file of another recipe has the sizes and rates for the same model.
        words = details(self.root, existing_run(self.root, run))["command"].split()
        if "--config" not in words[:-1]:
            return ""
        name = Path(words[words.index("--config") + 1]).stem
        names = [entry["name"] for entry in self.recipes()[recipe]["configs"]]
        return name if name in names else ""

    def free_name(self, name: str) -> str:
        """The name, with a number where a run has it already."""
        free, i = name, 2
        while (self.root / free).exists():
            free, i = f"{name}-{i}", i + 1
        return free

    # ---- from feedback to a better model ---------------------------------------------------------------------------

    def feedback_runs(self, model: str, name: str) -> list[tuple]:
        """(recipe, settings, name, config) of the reward model that learns from the feedback, and of PPO with it.

        PPO's prompts are those that the model was trained on; where these are gone, those of the feedback.
        """
        if self.feedback is None or not feedback_folder_has_events(self.feedback.folder):
            raise UserError("there is no feedback yet: rank or compare some answers first")
        folder = existing_run(self.root, model)
        store, policy = str(self.feedback.folder), self.path_of(model)
        reward_name, ppo_name = f"{name}/reward", f"{name}/ppo"
        reward = {"dataset_name": store, "model_name_or_path": policy}
        ppo = {
            "model_name_or_path": policy,
            "reward_model_path": [self.path_of(reward_name)],
            "dataset_name": prompts_of(folder) or store,
        }
        return [
            ("reward", reward, reward_name, self.same_config(model, "reward")),
            ("ppo", ppo, ppo_name, self.same_config(model, "ppo")),
        ]

    def feedback_commands(self, model: str, name: str) -> str:
        """The commands of both runs as text for a terminal. UserError for what the recipes would refuse."""
        commands = self._checked(self.feedback_runs(model, name))
        return "\n\n".join(shell_text(words, str(Path.cwd())) for words in commands)

    def _checked(self, plan: list[tuple]) -> list[list[str]]:
        """The commands of a plan, both checked: the reward model of the first is there when the second begins."""
        jobs = self.require_jobs()
        reward_model = self.path_of(plan[0][2])
        commands = []
        for recipe, settings, run, config in plan:
            words = jobs.command(recipe, settings, run, config=config)
            jobs.check(recipe, words, [reward_model])
            commands.append(words)
        return commands

    def train_on_feedback(self, model: str, name: str) -> list[Job]:
        """Put both runs in line, one after the other."""
        jobs = self.require_jobs()
        plan = self.feedback_runs(model, name)
        # Before the first one is in line.
        self._checked(plan)
        # PPO waits for the reward model, and is dropped if that one fails.
        started: list[Job] = []
        for recipe, settings, run, config in plan:
            after = started[-1].id if started else ""
            started.append(jobs.start(recipe, settings, run, config=config, after=after))
        return started

    def chat_models(self) -> list[str]:
        """Names of the runs that hold a chat model, which feedback can improve."""
        runs = list_runs(self.root)
        kinds = ("sft", "pretrain")
        names = []
        # A reward model or an encoder cannot answer.
        for run in runs:
            recipe = made_by(self.root / run.name)
            if run.status in ("done", "trained") and recipe in ("ppo", *kinds):
                names.append(run.name)
        # SFT first: PPO starts from it, and so does the reward model.
        return sorted(names, key=lambda name: made_by(self.root / name) != "sft")


def made_by(folder: Path) -> str:
    """The recipe of a run; "" where its record does not say."""
    return str(read_object(folder / RECORD).get("recipe") or "")


def prompts_of(folder: Path) -> str:
    """The first file with prompts that a run was trained on, if it is still there; "" otherwise."""
    for entry in read_object(folder / RECORD).get("data") or []:
        name = str(entry.get("name", "")) if isinstance(entry, dict) else ""
        if name.endswith((".jsonl", ".json", ".csv", ".parquet")) and Path(name).is_file():
            return name
    return ""


def feedback_folder_has_events(folder) -> bool:
    """True if somebody has said something."""
    path = Path(folder) / "events.jsonl"
    return path.is_file() and path.stat().st_size > 0


def data_files(roots: list[Path]) -> list[str]:
    """Files of rows below some folders. Hidden folders, checkpoints and the rows that runs write are passed over."""
    names = []
    endings = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt", ".conll")
    own = ("metrics.jsonl", "samples.jsonl", "alarms.jsonl", "run.json", "report.json")
    for root in roots:
        for path in (
            sorted(root.glob("*/data/*")) + sorted(root.glob("*.*")) + sorted(root.glob("data/*"))
        ):
            if path.name.endswith(endings) and path.name not in own and path.is_file():
                names.append(path.as_posix())
            if len(names) == LISTED_FILES:
                return list(dict.fromkeys(names))
    return list(dict.fromkeys(names))


def form_facts(asked) -> tuple[str, dict, str, str, str]:
    """(recipe, settings, name, config, layout) of what a form sends. UserError for anything else."""
    if not isinstance(asked, dict) or len(json.dumps(asked, default=str)) > LARGEST_SETTINGS:
        raise UserError("not the settings of a form")
    settings = asked.get("arguments", {})
    words = [asked.get(key) or "" for key in ("recipe", "name", "config", "layout")]
    if not isinstance(settings, dict) or not all(isinstance(word, str) for word in words):
        raise UserError("not the settings of a form")
    recipe, name, config, layout = words
    return recipe, settings, name, config, layout
