"""The Data tab: look at a file of rows as `rlhf validate` does, and at what people have said in the app.

The functions of `DataView` are plain; `build` wires them.
"""

from collections.abc import Iterator
from pathlib import Path

import gradio as gr

from rlhf.errors import UserError
from rlhf.serving import data_look, feedback_view
from rlhf.serving.jobs.allowed import Allowed, existing_run
from rlhf.serving.run_files import list_runs
from rlhf.serving.service import Service
from rlhf.serving.ui import texts
from rlhf.serving.ui.refusals import told
from rlhf.serving.ui.run_actions import data_files
from rlhf.serving.ui.run_view import escape
from rlhf.serving.ui.texts import label, language_of, said, tab_line, text

PROBLEMS_SHOWN = 50  # of those that the report has

CSS = """
#data-look, #data-refresh {width: auto; align-self: flex-start; min-width: 120px;}
.data-report h3 {margin: 0 0 6px; font-size: 1.05rem; overflow-wrap: anywhere;}
.data-report .counts {display: flex; flex-wrap: wrap; gap: 8px 26px; margin: 8px 0 14px;}
.data-report .counts div {min-width: 0;} .data-report .counts b {display: block; font-size: 1.15rem;
  font-variant-numeric: tabular-nums;}
.data-report .counts small, .data-report .note {color: var(--body-text-color-subdued); font-size: 0.85rem;}
.data-report .bad b {color: #dc2626;} .dark .data-report .bad b {color: #fca5a5;}
.data-report table {border-collapse: collapse; font-size: 0.85rem; margin: 6px 0 14px; display: block; overflow-x: auto;
  border: none !important; padding: 0 !important; width: fit-content; max-width: 100%;}
.data-report td, .data-report th {border: 1px solid var(--border-color-primary); padding: 3px 10px; text-align: right;}
.data-report td:first-child, .data-report th:first-child {text-align: left; overflow-wrap: anywhere;
  min-width: 5.5em;}
.data-report article {border: 1px solid var(--border-color-primary); border-radius: 10px; padding: 9px 12px;
  margin: 0 0 8px; white-space: pre-wrap; overflow-wrap: anywhere;}
.data-report mark {background: #ccfbf1; color: #134e4a; border-radius: 4px; padding: 0 2px;}
.dark .data-report mark {background: #134e4a; color: #ccfbf1;}
.data-report ol.problems {margin: 0 0 12px; padding-left: 0; list-style: none; font-size: 0.84rem;
  font-family: var(--font-mono); overflow-wrap: anywhere;}
.data-report ol.problems li {padding: 3px 0; border-bottom: 1px solid var(--border-color-primary);}
.data-report h4 {margin: 14px 0 6px; font-size: 0.92rem;}
.exports {display: flex; flex-wrap: wrap; gap: 8px; margin-top: 8px; align-items: center;}
.exports button {margin: 0;}
.exports button {min-height: 36px; padding: 4px 14px; border-radius: 9px; cursor: pointer; color: var(--body-text-color);
  border: 1px solid var(--border-color-primary); background: var(--button-secondary-background-fill);}
.exports button:focus-visible {outline: 2px solid var(--primary-500); outline-offset: 1px;}
"""

TEXTS = {
    "data.title": ("Data", "데이터"),
    "data.line": (
        "Look at a file before you train on it: its kind, its bad rows, and what will be learned.",
        "학습하기 전에 파일을 살펴보세요. 종류, 잘못된 행, 학습되는 내용을 보여 줍니다.",
    ),
    "data.line_both": (
        "Look at a file before you train on it. Feedback shows what people said in Chat, Compare and Rank.",
        "학습하기 전에 파일을 살펴보세요. 피드백에는 채팅, 비교, 순위에서 받은 평가가 있습니다.",
    ),
    "data.rows": ("Files of rows", "데이터 파일"),
    "data.feedback": ("Feedback", "피드백"),
    "data.file": ("File", "파일"),
    "data.file.help": ("Choose one, or type a path", "선택하거나 경로를 입력하세요"),
    "data.tokenizer": ("Tokenizer of a run", "학습의 토크나이저"),
    "data.tokenizer.help": ("Counts tokens, too", "토큰 수도 셉니다"),
    "data.tokenizer.none": ("(none: lengths in words)", "(없음: 단어 수로 표시)"),
    "data.columns": ("Columns", "열 이름"),
    "data.columns.help": ("ours=theirs: text=review", "이름=파일의 이름: text=review"),
    "data.look": ("Look at it", "살펴보기"),
    "data.reading": ("Reading: {rows} good rows, {seconds} s", "읽는 중: 정상 행 {rows}개, {seconds}초"),
    "data.hint": (
        "Choose a file to see its kind, counts, bad rows by line, and what will be learned from it.",
        "파일을 고르면 종류, 개수, 잘못된 행, 학습되는 내용을 보여 줍니다.",
    ),
    "data.kind": ("{kind} rows", "{kind} 행"),
    "data.no_rows": ("no row could be read", "읽을 수 있는 행이 없습니다"),
    "data.total": ("rows", "전체 행"),
    "data.good": ("good", "정상"),
    "data.bad": ("bad", "오류"),
    "data.duplicates": ("repeated rows", "중복 행"),
    "data.prompts": ("repeated prompts or texts", "중복 프롬프트"),
    "data.recipes": ("For the recipes: {recipes}", "사용할 레시피: {recipes}"),
    "data.learned": ("Learned", "학습 내용"),
    "data.shown": ("The first rows, with what is learned marked", "첫 행들 (학습되는 부분 표시)"),
    "data.lengths": ("Lengths", "길이"),
    "data.longest": ("longest", "최대"),
    "data.unit.characters": ("characters", "글자"),
    "data.unit.words": ("words", "단어"),
    "data.unit.tokens": ("tokens", "토큰"),
    "data.labels": ("Labels", "레이블"),
    "data.problems": ("Bad rows", "잘못된 행"),
    "data.more": ("and {n} more", "외 {n}개"),
    "data.ties": ("{tied} of {pairs} pairs tie ({share})", "{pairs}쌍 중 {tied}쌍 동점 ({share})"),
    "data.refresh": ("Refresh", "새로 고침"),
    "data.no_feedback": (
        "Nobody has said anything yet: rate, compare or rank some answers first.",
        "아직 피드백이 없습니다. 먼저 답변을 평가하세요.",
    ),
    "data.events": ("judgements", "평가"),
    "data.of.rating": ("thumbs: {count}", "좋아요/싫어요 {count}개"),
    "data.of.comparison": ("comparisons: {count}", "비교 {count}개"),
    "data.of.ranking": ("rankings: {count}", "순위 {count}개"),
    "data.people": ("people", "평가자"),
    "data.all_prompts": ("prompts", "프롬프트"),
    "data.tie_rate": ("ties", "동점 비율"),
    "data.left": ("wins of the left answer", "왼쪽 답변 승률"),
    "data.alpha": ("agreement (Krippendorff's alpha)", "일치도 (크리펜도르프 알파)"),
    "data.strengths": ("Strengths of the compared models", "비교한 모델의 강도"),
    "data.model": ("model", "모델"),
    "data.strength": ("strength", "강도"),
    "data.interval": ("95 % interval", "95 % 구간"),
    "data.wins": ("win rate", "승률"),
    "data.comparisons": ("comparisons", "비교 수"),
    "data.export": ("Download", "내려받기"),
    "data.export.rankings": ("Rankings (reward model)", "순위 (보상 모델)"),
    "data.export.pairs": ("Pairs (DPO)", "쌍 (DPO)"),
    "data.export.labels": ("Thumbs (KTO)", "좋아요/싫어요 (KTO)"),
    "data.export.demonstrations": ("Demonstrations (SFT)", "시연 (SFT)"),
    "data.export.table": ("Table (CSV)", "표 (CSV)"),
    "data.export.events": ("All events", "전체 기록"),
}  # fmt: skip

DOWNLOAD = """
element.addEventListener('click', async (event) => {
  const button = event.target.closest('[data-export]');
  if (!button) return;
  const answer = await server.export_rows(button.dataset.export);
  if (answer.problem) { element.querySelector('.export-problem').textContent = answer.problem; return; }
  element.querySelector('.export-problem').textContent = '';
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([answer.content], {type: 'application/octet-stream'}));
  link.download = answer.name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
});
"""


class DataView:
    """The contents of the tab, without a page."""

    def __init__(self, service: Service):
        self.root = Path(service.runs)
        self.store = getattr(service, "feedback", None)
        jobs = getattr(service, "jobs", None)
        # Without jobs nobody has said which files are open: those of the runs are.
        self.allowed: Allowed = jobs.allowed if jobs else Allowed(roots=(self.root,))

    def files(self) -> list[str]:
        """Files of rows to choose from."""
        folders = [self.root, *self.allowed.roots]
        if self.store is not None:
            folders.append(Path(self.store.folder))
        return data_files(list(dict.fromkeys(folders)))

    def tokenizers(self) -> list[str]:
        """Names of the runs that hold a tokenizer."""
        names = [run.name for run in list_runs(self.root)]
        return [name for name in names if (self.root / name / "tokenizer.json").is_file()]

    def look(self, file: str, tokenizer: str = "", columns: str = "") -> Iterator[dict]:
        """Progress, and at last the report of a file."""
        if not file or not file.strip():
            raise UserError("file: choose a file, or type its path")
        path = self.allowed.check_input(file.strip())
        # A tokenizer is that of a run, never a path that somebody types.
        request = {"file": str(path), "columns": columns}
        if tokenizer:
            request["tokenizer"] = str(existing_run(self.root, tokenizer))
        yield from data_look.look(request)

    def report(self, file: str, tokenizer: str = "", columns: str = "") -> dict:
        """The report of a file, as soon as it is read."""
        # The progress is for people; a client waits for the end.
        answers = list(self.look(file, tokenizer, columns))
        return answers[-1]["report"]

    def numbers(self) -> dict:
        """Numbers of the feedback."""
        if self.store is None:
            raise UserError("this server keeps no feedback")
        return feedback_view.numbers(self.store)

    def export(self, form: str) -> tuple[str, str]:
        """(file name, content) of an export of the feedback."""
        if self.store is None:
            raise UserError("this server keeps no feedback")
        return feedback_view.export(self.store, form)

    def export_rows(self, form: str, language: str = "en") -> dict:
        """An export for the page, or the problem with it."""
        try:
            name, content = self.export(str(form))
        except UserError as error:
            return {"problem": texts.told(error, language)}
        return {"name": name, "content": content}


# ---- HTML ------------------------------------------------------------------------------------------------------------


def count_html(name: str, value, kind: str = "") -> str:
    """A number with its name below."""
    return f"<div class='{kind}'><b>{escape(value)}</b><small>{escape(name)}</small></div>"


def report_html(report: dict, language: str) -> str:
    """The report of a file."""

    def say(key: str, **values) -> str:
        return escape(text(f"data.{key}", language, **values))

    title = say("kind", kind=report["kind"]) if report["kind"] else say("no_rows")
    parts = [f"<h3>{title}</h3>", f"<p class='note'>{escape(report['name'])}</p>"]
    bad = "bad" if report["bad"] else ""
    counts = [
        count_html(text("data.total", language), f"{report['total']:,}"),
        count_html(text("data.good", language), f"{report['good']:,}"),
        count_html(text("data.bad", language), f"{report['bad']:,}", bad),
        count_html(text("data.duplicates", language), f"{report['duplicates']:,}"),
        count_html(text("data.prompts", language), f"{report['prompt_duplicates']:,}"),
    ]
    parts.append(f"<div class='counts'>{''.join(counts)}</div>")
    if report["learned"]:
        parts.append(f"<p><b>{say('learned')}</b> {escape(said(report['learned'], language))}</p>")
    if report["recipes"]:
        parts.append(f"<p class='note'>{say('recipes', recipes=', '.join(report['recipes']))}</p>")
    for note in report["notes"]:
        parts.append(f"<p class='note'>{escape(note)}</p>")
    if report["pairs"]:
        share = f"{report['tied'] / report['pairs']:.1%}"
        ties = say("ties", tied=report["tied"], pairs=report["pairs"], share=share)
        parts.append(f"<p class='note'>{ties}</p>")
    parts.append(problems_html(report, language))
    if report["shown"]:
        parts.append(f"<h4>{say('shown')}</h4>")
        parts += [f"<article>{marked(lines)}</article>" for lines in report["shown"]]
    if report["lengths"]:
        rows = []
        for row in report["lengths"]:
            unit = text(f"data.unit.{row['unit']}", language)
            rows.append([f"{row['column']}, {unit}", *list(row.values())[2:]])
        parts.append(f"<h4>{say('lengths')}</h4>")
        parts.append(table_html(["", "5 %", "50 %", "95 %", text("data.longest", language)], rows))
    for name in ("labels", "tags"):
        if report[name]:
            rows = list(report[name].items())
            parts.append(
                f"<h4>{say('labels')} ({report[f'{name}_count']})</h4>{table_html(['', ''], rows)}"
            )
    return f"<div class='data-report'>{''.join(parts)}</div>"


def problems_html(report: dict, language: str) -> str:
    """The bad rows by line."""
    if not report["problems"]:
        return ""
    items = [f"<li>{escape(problem)}</li>" for problem in report["problems"][:PROBLEMS_SHOWN]]
    more = report["problem_count"] - len(items)
    if more > 0:
        items.append(f"<li>{escape(text('data.more', language, n=more))}</li>")
    title = escape(text("data.problems", language))
    return f"<h4>{title}</h4><ol class='problems'>{''.join(items)}</ol>"


def marked(lines: list[str]) -> str:
    """The lines of a row, with [[what is learned]] marked."""
    # Escaped first: only our own marks become tags.
    shown = escape("\n".join(lines))
    return shown.replace("[[", "<mark>").replace("]]", "</mark>")


def table_html(header: list[str], rows: list) -> str:
    """A table of plain values."""
    head = "".join(f"<th scope='col'>{escape(cell)}</th>" for cell in header)
    body = []
    for row in rows:
        cells = "".join(f"<td>{escape(cell)}</td>" for cell in row)
        body.append(f"<tr>{cells}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def numbers_html(facts: dict, language: str) -> str:
    """The numbers of the feedback."""
    if not facts["total"]:
        return f"<p class='quiet'>{escape(text('data.no_feedback', language))}</p>"
    kinds = []
    for kind, count in facts["kinds"].items():
        kinds.append(text(f"data.of.{kind}", language, count=count))
    agreement = facts["agreement"]
    counts = [
        count_html(text("data.events", language), f"{facts['total']:,}"),
        count_html(text("data.people", language), facts["people"]),
        count_html(text("data.all_prompts", language), f"{facts['prompts']:,}"),
        count_html(text("data.tie_rate", language), share_text(facts["tie_rate"])),
    ]
    if facts["left_rate"]:
        counts.append(count_html(text("data.left", language), share_text(facts["left_rate"][0])))
    if agreement["alpha"] is not None:
        counts.append(count_html(text("data.alpha", language), f"{agreement['alpha']:.2f}"))
    parts = [
        f"<div class='counts'>{''.join(counts)}</div>",
        f"<p class='note'>{escape(', '.join(kinds))}</p>",
    ]
    if facts["strengths"]:
        names = ("model", "strength", "interval", "wins", "comparisons")
        header = [text(f"data.{name}", language) for name in names]
        parts.append(f"<h4>{escape(text('data.strengths', language))}</h4>")
        parts.append(table_html(header, [strength_row(row) for row in facts["strengths"]]))
    for problem in facts["problems"][:PROBLEMS_SHOWN]:
        parts.append(f"<p class='note'>{escape(problem)}</p>")
    return f"<div class='data-report'>{''.join(parts)}</div>"


def share_text(share: float | None) -> str:
    """A share in per cent, or a dash."""
    return "-" if share is None else f"{share:.1%}"


def strength_row(row: dict) -> list[str]:
    """The cells of one model's strength."""
    interval = f"{row['low']:.2f} – {row['high']:.2f}"
    return [
        row["model"],
        f"{row['strength']:.2f}",
        interval,
        share_text(row["win_rate"]),
        row["comparisons"],
    ]


def exports_html(language: str) -> str:
    """A button per export."""
    buttons = []
    for form in feedback_view.FORMS:
        name = escape(text(f"data.export.{form}", language))
        buttons.append(f"<button type='button' data-export='{form}'>{name}</button>")
    title = escape(text("data.export", language))
    return (
        f"<h4>{title}</h4><div class='exports' role='group' aria-label='{title}'>{''.join(buttons)}</div>"
        "<p class='export-problem wrong' role='status'></p>"
    )


# ---- the page --------------------------------------------------------------------------------------------------------


def build(service: Service, page: gr.Blocks) -> None:
    """Build the tab in the open block."""
    view = DataView(service)
    tab_line("data.line" if view.store is None else "data.line_both")
    if view.store is None:
        files_of_rows(view, page)
    else:
        with gr.Tabs():
            with gr.Tab(label("data.rows")):
                files_of_rows(view, page)
            with gr.Tab(label("data.feedback")) as tab:
                feedback_numbers(view, tab)
    endpoints(view)


def files_of_rows(view: DataView, page: gr.Blocks) -> None:
    """The choice of a file, and its report."""
    with gr.Row(equal_height=True):
        file = gr.Dropdown(
            [], label=label("data.file"), info=label("data.file.help"), allow_custom_value=True, scale=3,
            elem_id="data-file", min_width=260,
        )  # fmt: skip
        tokenizer = gr.Dropdown(
            [],
            label=label("data.tokenizer"),
            info=label("data.tokenizer.help"),
            scale=2,
            elem_id="data-tokenizer",
        )
        columns = gr.Textbox(
            "",
            label=label("data.columns"),
            info=label("data.columns.help"),
            scale=1,
            elem_id="data-columns",
        )
    button = gr.Button(label("data.look"), variant="primary", elem_id="data-look")
    shown = gr.HTML("", elem_id="data-report")

    def opened(request: gr.Request):
        language = language_of(request)
        names = view.tokenizers()
        choices = [(text("data.tokenizer.none", language), ""), *zip(names, names, strict=True)]
        files = view.files()
        hint = f"<p class='quiet'>{escape(text('data.hint', language))}</p>"
        return [
            gr.Dropdown(choices=files, value=files[0] if files else None),
            gr.Dropdown(choices=choices, value=""),
            hint,
        ]

    def look(file: str | None, tokenizer: str | None, columns: str, request: gr.Request):
        language = language_of(request)
        try:
            for answer in view.look(file or "", tokenizer or "", columns):
                if "report" in answer:
                    yield report_html(answer["report"], language)
                    return
                seconds = f"{answer['seconds']:.0f}"
                reading = text(
                    "data.reading", language, rows=f"{answer['rows']:,}", seconds=seconds
                )
                yield f"<p class='quiet' role='status'>{escape(reading)}</p>"
        except UserError as error:
            # It stays on the page: a list of bad rows is longer than a notice.
            problem = texts.told(error, language)
            yield f"<div class='data-report'><p class='wrong' role='alert'>{escape(problem)}</p></div>"

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    page.load(opened, None, [file, tokenizer, shown], **quiet)
    button.click(
        look, [file, tokenizer, columns], shown, concurrency_limit=data_look.AT_ONCE, **quiet
    )


def feedback_numbers(view: DataView, tab: gr.Tab) -> None:
    """The numbers of the feedback, and its exports."""
    refresh = gr.Button(label("data.refresh"), size="sm", elem_id="data-refresh")
    shown = gr.HTML("", elem_id="feedback-numbers")

    # Gradio marks the function, which a method does not allow.
    def export_rows(form: str, request: gr.Request) -> dict:
        return view.export_rows(form, language_of(request))

    exports = gr.HTML(
        "", js_on_load=DOWNLOAD, server_functions=[export_rows], elem_id="feedback-exports"
    )

    def opened(request: gr.Request):
        language = language_of(request)
        return [numbers_html(view.numbers(), language), exports_html(language)]

    quiet = {"api_visibility": "private", "show_progress": "hidden"}
    tab.select(told(opened), None, [shown, exports], **quiet)
    refresh.click(told(opened), None, [shown, exports], **quiet)


def endpoints(view: DataView) -> None:
    """The actions of the tab for clients, with named parameters."""

    def data_files() -> list:
        return view.files()

    def data_look(file: str, tokenizer: str = "", columns: str = "") -> dict:
        return view.report(file, tokenizer, columns)

    def data_feedback() -> dict:
        return view.numbers()

    def data_export(form: str) -> dict:
        name, content = view.export(form)
        return {"name": name, "content": content}

    actions = [data_files, data_look]
    if view.store is not None:
        actions += [data_feedback, data_export]
    for action in actions:
        gr.api(told(action), api_name=action.__name__)
