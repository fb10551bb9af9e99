"""The tables of a model card: results, samples of each stage, wrong predictions, lineage, data, and how it was made."""

import re
from pathlib import Path

import yaml

from rlhf.markdown import _flat, fenced, inline_code, markdown_cell, markdown_table
from rlhf.runs.ancestry import Node, lines, mermaid
from rlhf.runs.public_names import PublicNames
from rlhf.runs.record import RunRecord, read_jsonl, read_object
from rlhf.task_table import TASKS, RowList

SAMPLES = 5  # samples, and wrong predictions, in a card
TABLE_ROWS = 30  # rows of a table of results
# Recipe -> (the metric with the number of held-out examples, their name).
COUNTED = {
    "pretrain": ("eval_rows", "held-out texts"),
    "sft": ("eval_rows", "held-out demonstrations"),
    "reward": ("pairs", "pairs of ranked answers to held-out prompts"),
    "dpo": ("pairs", "pairs of ranked answers to held-out prompts"),
    "kto": ("answers", "rated answers to held-out prompts"),
    "ilql": ("answers", "scored answers to held-out prompts"),
    "ppo": ("", "held-out prompts"),  # counted in samples.jsonl
    "seq2seq": ("eval_rows", "held-out pairs"),
    "tokenizer": ("eval_rows", "held-out texts"),
    "word_vectors": ("eval_rows", "held-out texts"),
} | {name: ("eval_rows", "held-out rows") for name in TASKS}


# ---- results -----------------------------------------------------------------------------------------------------


def results(folder: Path, record: RunRecord, kind: str, names: PublicNames) -> str:
    """The final numbers with their intervals, n and seed, the report of the task, and the pictures."""
    metrics, origin = record.metrics, ""
    # A run that did not finish has no final numbers.
    if not metrics:
        rows = read_jsonl(folder / "metrics.jsonl")
        if rows:
            metrics, origin = rows[-1], "The last line of metrics.jsonl:\n\n"
    parts = []
    numbers = _numbers(names.value(metrics))
    if numbers:
        parts.append(origin + markdown_table(["metric", "value"], numbers, right=1))
    if record.metrics:
        parts.append(counted(folder, record))
    parts.append(_report_table(folder, kind))
    # The curves come first, then the other pictures by name.
    plots = sorted((folder / "plots").glob("*.png"))
    plots.sort(key=lambda path: path.name != "curves.png")
    parts += [f"![{path.stem}](plots/{path.name})" for path in plots]
    return joined(parts)


def _numbers(metrics: dict) -> list[tuple[str, str]]:
    """(name, value) of each metric. An interval is behind its number, and not in lines of its own."""
    flat = dict(_flat(metrics))  # nested ones by name.inner
    rows = []
    for name, value in flat.items():
        owner = re.sub(r"_(low|high)$", "", name)
        if owner != name and owner in flat:
            continue
        text = number(value)
        low, high = flat.get(f"{name}_low"), flat.get(f"{name}_high")
        if low is not None and high is not None:
            text += f" ({number(low)} to {number(high)})"
        rows.append((name, text))
    return rows


def number_of_examples(folder: Path, record: RunRecord) -> int | None:
    """The number of held-out examples that the final numbers are a mean of; None where the run does not say."""
    name, _ = COUNTED.get(record.recipe, ("", ""))
    value = record.metrics.get(name)
    if isinstance(value, int):
        return value
    if record.recipe != "ppo":
        return None
    # Each evaluation of a policy leaves one sample for each prompt. The last one may be there twice.
    samples = read_jsonl(folder / "samples.jsonl")
    steps = [sample.get("step") for sample in samples]
    return steps.count(steps[0]) if steps else None


def counted(folder: Path, record: RunRecord) -> str:
    """A sentence with n and the seed of the final numbers."""
    sentences = []
    n = number_of_examples(folder, record)
    if n is not None:
        sentences.append(f"Measured on {n} {COUNTED[record.recipe][1]}.")
    if any(name.endswith("_low") for name in record.metrics):
        sentences.append("In brackets: the 95 % interval.")
    sentences.append(f"One run with seed {record.seed}: the spread over seeds was not measured.")
    return " ".join(sentences)


def _report_table(folder: Path, kind: str) -> str:
    """The task's report by label, type or kind of question, the most frequent first; "" for other models."""
    if kind not in TASKS:
        return ""
    report, noun = TASKS[kind].report, TASKS[kind].report_rows
    rows = _rows_of(folder, report)
    if not rows:
        return ""
    count = report.columns[1]  # rows or entities
    rows.sort(key=lambda row: -row.get(count, 0))
    cells = []
    for row in rows[:TABLE_ROWS]:
        cells.append([number(row.get(column, "")) for column in report.columns])
    table = markdown_table(report.columns, cells)
    if len(rows) <= TABLE_ROWS:
        return table
    note = f"The {TABLE_ROWS} most frequent of {len(rows)} {noun}; `{report.file}` has all."
    return f"{table}\n\n{note}"


def _rows_of(folder: Path, rows: RowList) -> list[dict]:
    """The rows that a run left in a file; [] where the file or the list is not there."""
    if rows.key:
        content = read_object(folder / rows.file).get(rows.key) or []
    else:
        content = read_jsonl(folder / rows.file)
    return [row for row in content if isinstance(row, dict)]


def mistakes(folder: Path, kind: str) -> str:
    """Held-out rows that the model gets wrong, as its recipe sorted them."""
    if kind not in TASKS:
        return ""
    rows = _rows_of(folder, TASKS[kind].mistakes)[:SAMPLES]
    if not rows:
        return ""
    # Recipes whose columns depend on the data leave the choice to the first row.
    columns = TASKS[kind].mistakes.columns or tuple(rows[0])
    cells = []
    for row in rows:
        cells.append([_cell(column, row.get(column, "")) for column in columns])
    return "Held-out rows that the model gets wrong:\n\n" + markdown_table(columns, cells)


def _cell(column: str, value) -> str:
    if not isinstance(value, list):
        return number(value)
    glue = " " if column == "tokens" else "; "
    return glue.join(map(str, value))


# ---- samples of each stage ---------------------------------------------------------------------------------------


def stages(folder: Path, names: PublicNames) -> str:
    """Answers of each stage to the same prompts: of the report that compares runs, else from before and after training."""
    return _of_report(folder, names) or _of_steps(read_jsonl(folder / "samples.jsonl"), names)


def _of_report(folder: Path, names: PublicNames) -> str:
    """The sampled answers of base, SFT and PPO, where `rlhf report` has compared them."""
    report = read_object(folder / "report" / "report.json")
    rows = [row for row in report.get("samples") or [] if isinstance(row, dict)][:SAMPLES]
    if not rows or not isinstance(rows[0].get("completions"), dict):
        return ""
    # Greedy answers would double the columns.
    labels = [name for name in rows[0]["completions"] if not name.endswith("(greedy)")]
    cells = []
    for row in rows:
        answers = [row.get("completions", {}).get(label, "") for label in labels]
        cells.append([row.get("prompt", ""), *answers])
    settings = report.get("settings", {})
    note = f"Each model's answer to the same held-out prompts, sampled with seed {settings.get('seed', '?')}"
    if "temperature" in settings:
        note += f" at temperature {settings['temperature']}"
    columns = ["prompt", *(names(label) for label in labels)]
    return f"{note}:\n\n{markdown_table(columns, cells)}"


def _of_steps(samples: list[dict], names: PublicNames) -> str:
    """The samples of the last step, next to the first answers to the same prompts."""
    samples = [names.value(sample) for sample in samples if isinstance(sample, dict)]
    if not samples:
        return ""
    # Samples during the training have a step, those at its end have none.
    first_step, last_step = samples[0].get("step"), samples[-1].get("step")
    last = [sample for sample in samples if sample.get("step") == last_step][:SAMPLES]
    columns = [name for name in last[0] if name != "step"]
    # The same prompts are evaluated each time.
    before: dict[str, str] = {}
    if first_step != last_step and "completion" in columns:
        for sample in samples:
            if sample.get("step") == first_step:
                before[str(sample.get("prompt"))] = sample.get("completion", "")
    cells = []
    for sample in last:
        row = {name: number(sample.get(name, "")) for name in columns}
        if before:
            row[f"step {first_step}"] = before.get(str(sample.get("prompt")), "")
            row[f"step {last_step}"] = row.pop("completion")
        cells.append(row)
    # The answers come first, numbers behind them.
    order = sorted(cells[0], key=lambda name: name != "prompt" and not name.startswith("step "))
    table = markdown_table(order, [[row[name] for name in order] for row in cells])
    if not before:
        return table
    return f"Answers to the same held-out prompts, before and after this training:\n\n{table}"


# ---- where it came from ------------------------------------------------------------------------------------------


def lineage_section(root: Node, names: PublicNames, title: str) -> str:
    """The lineage as a picture, and as a table with whole hashes."""

    def shown(name: str) -> str:
        return title if name == root.name else names(name)

    rows = []
    for line in lines(root):
        role = "↳ " * line.depth + line.stage
        made_by = f"{line.made_by}, as above" if line.again else line.made_by
        rows.append((role, shown(line.name), made_by, line.code, line.revision, line.sha256))
    columns = ["role", "name", "made by", "code", "revision", "sha256 of all weights or rows"]
    if not any(row[4] for row in rows):
        columns.pop(4)
        rows = [(*row[:4], row[5]) for row in rows]
    parts = [markdown_table(columns, rows)]
    has_history = root.parents or root.data
    if has_history:
        # The Hub draws it.
        parts.insert(0, fenced(mermaid(root, shown), "mermaid"))
    return joined(parts)


def data_table(record: RunRecord, names: PublicNames) -> str:
    """The data that the run read, with counts and hashes; "" where it read none."""
    rows = []
    for entry in record.data:
        row = {"name": names(str(entry.get("name", ""))), "rows": number(entry.get("rows", ""))}
        row["revision"] = entry.get("revision", "")
        row["licence"] = _licence_of_data(entry)
        row["sha256 of the rows"] = entry.get("sha256", "")
        rows.append(row)
    if not rows:
        return ""
    # Files here have neither a revision nor a stated licence.
    columns = list(rows[0])
    for column in ("revision", "licence"):
        if not any(row[column] for row in rows):
            columns.remove(column)
    cells = [[row[column] for column in columns] for row in rows]
    return joined([markdown_table(columns, cells), *_feedback_lines(record, names)])


def _licence_of_data(entry: dict) -> str:
    """The licence that the card of a data set states; "" where the record does not say."""
    if "license" not in entry:
        return ""
    return str(entry.get("license_name") or entry["license"] or "not stated")


def _feedback_lines(record: RunRecord, names: PublicNames) -> list[str]:
    """A sentence for each feedback store: its events, and the models whose answers people ranked."""
    lines = []
    for entry in record.parents.values():
        if not isinstance(entry, dict) or "events" not in entry:
            continue
        kinds = [f"{count} {kind}s" for kind, count in entry.get("kinds", {}).items()]
        text = (
            f"{inline_code(names(entry['name']))} holds {entry['events']} events of human feedback"
        )
        if kinds:
            text += f" ({', '.join(kinds)})"
        models = [names(model) for model in entry.get("models", {})]
        if models:
            text += f", about answers of {', '.join(map(inline_code, models))}"
        lines.append(f"{text}.")
    return lines


# ---- how it was made ---------------------------------------------------------------------------------------------


def making(record: RunRecord, names: PublicNames) -> str:
    """The command, the facts, the settings and the versions."""
    parts = []
    if record.command:
        parts.append(fenced(names.command(record.command), "bash"))
    parts.append(", ".join(map(markdown_cell, _facts(record))) + ".")
    config = {name: value for name, value in sorted(record.config.items()) if name != "hub_token"}
    if config:
        # width: a prompt stays on one line.
        text = yaml.safe_dump(names.value(config), allow_unicode=True, width=1000).rstrip()
        parts.append("Settings that differ from their defaults:\n\n" + fenced(text, "yaml"))
    if record.versions:
        parts.append(markdown_table(["package", "version"], sorted(record.versions.items())))
    return joined(parts)


def _facts(record: RunRecord) -> list[str]:
    """Seed, time and memory. Memory of a GPU goes by the name of the GPU, that of the main process by the CPU's."""
    facts = [f"seed {record.seed}"]
    machine = record.machine
    if record.seconds:
        facts.append(f"{record.seconds:.0f} s")
    # None without a GPU.
    if record.peak_gpu_memory_gb is not None:
        gpu = machine.get("gpu") or "the GPU"
        facts.append(f"{record.peak_gpu_memory_gb:.2f} GB of memory of {gpu} at most")
    if record.peak_memory_gb:
        facts.append(f"{record.peak_memory_gb:.2f} GB of main memory at most")
    if machine.get("cores"):
        facts.append(f"{machine['cores']} cores of {machine.get('cpu') or 'a CPU'}")
    if record.started:
        facts.append(f"begun {record.started}")
    return facts


# ---- Markdown ----------------------------------------------------------------------------------------------------


def joined(parts: list[str]) -> str:
    """Paragraphs with an empty line between them. Empty ones are dropped."""
    return "\n\n".join(part for part in parts if part)


def section(title: str, body: str) -> str:
    """A section with its title; "" without a body."""
    return f"## {title}\n\n{body}" if body else ""


def number(value) -> str:
    """A value as text; of a float four digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
