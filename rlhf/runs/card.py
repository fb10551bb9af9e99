"""README.md of a run folder: the model card, written from what the run left there and nothing else.

The same folder gives the same card. Only run.json is needed: without metrics.jsonl, samples.jsonl, a plot, a config or
a parent, the card has no section for it. TRL's card calls a local parent "None", so SFT -> reward model -> PPO loses its
lineage. Here parents are followed through their own run.json. The licence is copied from a base model we know and is
`other` otherwise: nothing is invented. What differs between encoder tasks comes from `rlhf.tasks.TASKS`.
"""

import json
import os
import re
from pathlib import Path

import yaml

from rlhf.data.load import is_local
from rlhf.errors import UserError
from rlhf.markdown import _flat, fenced, markdown_cell, markdown_table
from rlhf.runs.durable import write_text
from rlhf.runs.record import (
    DONE,
    EVALUATION_FAILED,
    RECORD,
    TRAINED,
    RunRecord,
    model_kind,
    read_jsonl,
    read_object,
    read_rows,
    weights_sha256,
)
from rlhf.task_table import TASKS, RowList

SAMPLES = 5  # samples, and wrong predictions, in a card
TABLE_ROWS = 30  # rows of a table of results
# Characters of the longest sample that a snippet uses as its input.
LONGEST_PROMPT, LONGEST_TEXT, LONGEST_CONTEXT = 80, 200, 300

# Recipe that is not a task of TASKS -> (kind of model, its summary). The kind decides pipeline_tag and snippet.
RECIPES = {
    "tokenizer": ("tokenizer", "A tokenizer trained on your own text."),
    "pretrain": ("causal", "A language model trained on plain text."),
    "sft": ("causal", "A chat model, fine-tuned on demonstrations (SFT)."),
    "reward": (
        "reward",
        "A reward model: it gives an answer to a prompt one score, learned from human rankings.",
    ),
    "ppo": ("causal", "A chat model trained by {algorithm} to raise the score of its answers."),
}
MASKED_SUMMARY = "A language model trained on plain text by filling in masked words."
# Kind of model -> the Hub's name of its task.
PIPELINES = {
    "causal": "text-generation",
    "chat": "text-generation",
    "masked": "fill-mask",
    "reward": "text-classification",
} | {name: task.pipeline for name, task in TASKS.items()}
LICENCES = {
    "gpt2": "mit",
    "openai-community/gpt2": "mit",
    "openai-community/gpt2-medium": "mit",
    "openai-community/gpt2-large": "mit",
    "distilbert/distilgpt2": "apache-2.0",
    "distilgpt2": "apache-2.0",
    "bert-base-uncased": "apache-2.0",
    "bert-base-cased": "apache-2.0",
    "google-bert/bert-base-uncased": "apache-2.0",
    "google-bert/bert-base-cased": "apache-2.0",
    "google-bert/bert-base-multilingual-cased": "apache-2.0",
}
# Roles of parents whose weights this run did not start from.
NOT_THE_ORIGIN = ("reward", "value", "ref", "tokenizer")


# ---- snippets: {path}, {prompt}, ... are replaced by Python literals ----------------------------------------

_LOAD = """from transformers import {auto}, AutoTokenizer

path = {{path}}
tokenizer = AutoTokenizer.from_pretrained(path)
model = {auto}.from_pretrained(path)
"""
SNIPPETS = {
    "chat": _LOAD.format(auto="AutoModelForCausalLM")
    + """messages = [{{"role": "user", "content": {prompt}}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens={length}, do_sample=True)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
""",
    "causal": _LOAD.format(auto="AutoModelForCausalLM")
    + """inputs = tokenizer({prompt}, return_tensors="pt")
output = model.generate(
    input_ids=inputs["input_ids"],
    attention_mask=inputs["attention_mask"],
    max_new_tokens={length},
    do_sample=True,
)
print(tokenizer.decode(output[0], skip_special_tokens=True))
""",
    "masked": _LOAD.format(auto="AutoModelForMaskedLM")
    + """inputs = tokenizer("A " + tokenizer.mask_token + " day.", return_tensors="pt")
index = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
print(tokenizer.decode(model(**inputs).logits[0, index].argmax()))
""",
    "score": _LOAD.format(auto="AutoModelForSequenceClassification")
    + """print(model(**tokenizer({prompt}, return_tensors="pt")).logits[0, 0].item(){centre})
""",
    "reward": _LOAD.format(auto="AutoModelForSequenceClassification")
    + """messages = [{{"role": "user", "content": {prompt}}}, {{"role": "assistant", "content": "Hello!"}}]
inputs = tokenizer.apply_chat_template(
    messages, sanitize_control_tokens=True, return_dict=True, return_tensors="pt"
)
score = model(**inputs).logits[0, 0].item(){centre}  # higher is better; only differences between answers mean something
print(score)
""",
    # An encoder reads prompt and answer as a pair of texts.
    "reward_of_pair": _LOAD.format(auto="AutoModelForSequenceClassification")
    + """inputs = tokenizer({prompt}, "Hello!", return_tensors="pt")
score = model(**inputs).logits[0, 0].item(){centre}  # higher is better; only differences between answers mean something
print(score)
""",
    "tokenizer": """from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({path})
ids = tokenizer({prompt})["input_ids"]
print(tokenizer.convert_ids_to_tokens(ids), tokenizer.decode(ids))
""",
} | {name: task.snippet for name, task in TASKS.items()}


# ---- the card ----------------------------------------------------------------------------------------------------


def write_card(
    folder: str | os.PathLike, *, model_id: str | None = None, status: str | None = None
) -> Path:
    """Write README.md of a run folder, in one step, and return its path.

    model_id: the name in the snippet, for a shared model.
    status: that the record is about to have.
    """
    path = Path(folder) / "README.md"
    write_text(path, card_text(folder, model_id=model_id, status=status))
    return path


def card_text(
    folder: str | os.PathLike, *, model_id: str | None = None, status: str | None = None
) -> str:
    """The card as Markdown with YAML front matter."""
    folder = Path(folder)
    record = _record(folder)
    if record is None:
        raise UserError(
            f"{folder}: no readable {RECORD}: a card needs the folder of a recipe's run"
        )
    record.status = status or record.status
    kind, samples = kind_of(folder, record), read_jsonl(folder / "samples.jsonl")
    model_id = model_id or record.config.get("hub_model_id") or _shown_path(folder, record)
    sections = [
        f"# {markdown_cell(_title(folder, record, model_id))}",
        _summary(folder, record, kind),
        _incomplete(folder, record),
        _section("Results", _results(folder, record)),
        _section("Samples", _samples(samples)),
        _section("Errors", _mistakes(folder, kind)),
        _section("Use", _use(kind, folder, record, samples, model_id)),
        _section("Lineage", _lineage_table(folder, record)),
        _section("Data", _data_table(record)),
        _section("How it was made", _making(record)),
        _section("Licence", _licence_note(folder, record)),
    ]
    front = yaml.safe_dump(front_matter(folder, record), sort_keys=False, allow_unicode=True)
    text = f"---\n{front}---\n\n{_joined(sections)}\n"
    # A token that was given as a flag is in the command.
    return re.sub(r"\bhf_[A-Za-z0-9]{16,}", "hf_***", text)


def _title(folder: Path, record: RunRecord, model_id: str | None = None) -> str:
    name = model_id or record.config.get("hub_model_id") or _shown_path(folder, record)
    return name.rstrip("/").split("/")[-1]


def _incomplete(folder: Path, record: RunRecord) -> str:
    """Sentences for the reader of a run that did not end well, or whose files are torn."""
    sentences = []
    if record.status in (TRAINED, EVALUATION_FAILED):
        sentences.append("**The model is trained, and not evaluated: `rlhf finish` does that.**")
    elif record.status != DONE:
        sentences.append(f"**This run is not complete: its status is `{record.status}`.**")
    _, torn = read_rows(folder / "metrics.jsonl")
    if torn:
        sentences.append(f"Lines of metrics.jsonl that could not be read: {torn}.")
    return "\n\n".join(sentences)


def front_matter(folder: Path, record: RunRecord) -> dict:
    """The metadata that the Hub reads."""
    kind, base = kind_of(folder, record), base_model(folder, record)
    content = {"library_name": "transformers", "license": LICENCES.get(base, "other")}
    if base:
        is_adapter = (folder / "adapter_config.json").is_file()
        relation = "adapter" if is_adapter else "finetune"
        content |= {"base_model": base, "base_model_relation": relation}
    # Local files would be dead links.
    names = {str(entry.get("name", "")) for entry in record.data}
    datasets = sorted(name for name in names if _is_on_hub(name))
    if datasets:
        content["datasets"] = datasets
    if kind in PIPELINES:
        content["pipeline_tag"] = PIPELINES[kind]
    tags = ["rlhf", record.recipe, record.config.get("algorithm")]
    if kind == "reward":
        tags.append("reward-model")
    # A run of recipes/ppo.py with algorithm ppo has this tag once.
    content["tags"] = list(dict.fromkeys(str(tag) for tag in tags if tag))
    results = evaluations(record, kind)
    if results:
        content["model-index"] = [{"name": _title(folder, record), "results": [results]}]
    return content


def evaluations(record: RunRecord, kind: str) -> dict | None:
    """Final numbers in the form that the Hub lists; None where the model is not a task's or its data have no name."""
    if kind not in TASKS or not record.data:
        return None
    metrics = []
    for ours, theirs in TASKS[kind].hub_metrics.items():
        value = record.metrics.get(ours)
        # A run that failed has no numbers, and one of numbers has no accuracy.
        if isinstance(value, int | float):
            metrics.append({"type": theirs, "name": ours, "value": value})
    if not metrics:
        return None
    # The last data set is the one that was evaluated on.
    name = str(record.data[-1].get("name", ""))
    shown = name if _is_on_hub(name) else Path(name).name
    return {
        "task": {"type": PIPELINES[kind]},
        "dataset": {"name": shown, "type": shown},
        "metrics": metrics,
    }


def kind_of(folder: Path, record: RunRecord) -> str:
    """A key of SNIPPETS: by config.json, or by the recipe where there is none."""
    kind = model_kind(folder)
    if not kind:
        kind = _kind_by_recipe(record.recipe)
    # Only the template tells a chat model from a plain language model.
    if kind == "causal" and _has_chat_template(folder):
        return "chat"
    return kind


def _kind_by_recipe(recipe: str) -> str:
    if recipe in TASKS:
        return recipe
    if recipe in RECIPES:
        return RECIPES[recipe][0]
    return "causal"


# ---- lineage -----------------------------------------------------------------------------------------------------


def lineage(folder: Path, record: RunRecord) -> list[dict]:
    """This run and everything that it came from, depth first: depth, role, name, recipe, sha256, code."""
    weights = sorted(folder.glob("*.safetensors"))
    this_run = {
        "depth": 0,
        "role": "this run",
        "name": _shown_path(folder, record),
        "recipe": record.recipe,
        "sha256": weights_sha256(weights) if weights else "",
        "code": record.versions.get("code", ""),
    }
    return [this_run, *_ancestors(folder, record, 1, {folder.resolve()})]


def _ancestors(folder: Path, record: RunRecord, depth: int, seen: set[Path]) -> list[dict]:
    """seen: folders on the way here, because a record may name a run that came from this one."""
    rows = []
    for role, entry in record.parents.items():
        if not _names_a_model(entry):
            continue
        home = _home(entry["name"], folder)
        parent = _record(home) if home else None
        row = {
            "depth": depth,
            "role": role,
            "name": entry["name"],
            "recipe": entry.get("recipe", ""),
            "sha256": entry.get("sha256", ""),
            "code": parent.versions.get("code", "") if parent else "",
        }
        rows.append(row)
        if parent and home.resolve() not in seen:
            rows += _ancestors(home, parent, depth + 1, seen | {home.resolve()})
    return rows


def _names_a_model(entry) -> bool:
    return isinstance(entry, dict) and bool(entry.get("name"))


def base_model(folder: Path, record: RunRecord) -> str | None:
    """The Hub model whose weights this run goes back to, through local runs; None for one trained from scratch."""
    seen: set[Path] = set()
    while folder.resolve() not in seen:
        seen.add(folder.resolve())
        origin = _origin(record)
        name = origin.get("name", "")
        home = _home(name, folder)
        parent = _record(home) if home else None
        if parent is None:
            # A folder that is gone looks like a Hub id. Its checksum or recipe shows that it was local.
            was_local = home or origin.get("sha256") or origin.get("recipe")
            return None if was_local or not _is_hub_id(name) else name
        folder, record = home, parent
    return None


def _origin(record: RunRecord) -> dict:
    """The entry of the first parent whose weights this run started from; {} where there is none."""
    for role, entry in record.parents.items():
        is_other = any(name in role for name in NOT_THE_ORIGIN)
        if not is_other and _names_a_model(entry):
            return entry
    return {}


def _home(name: str, child: Path) -> Path | None:
    """The folder of a parent: where it was, or moved together with its child."""
    if not name:
        return None
    for folder in (Path(name), child.parent / Path(name).name):
        if folder.is_dir() and folder.resolve() != child.resolve():
            return folder
    return None


# ---- sections ----------------------------------------------------------------------------------------------------


def _summary(folder: Path, record: RunRecord, kind: str) -> str:
    """One sentence, and the model that the weights go back to."""
    if kind == "masked":
        text = MASKED_SUMMARY
    elif kind in TASKS:
        text = _task_summary(folder, kind)
    else:
        unknown = f"A model made by the recipe `{record.recipe}`."
        text = RECIPES.get(record.recipe, ("", unknown))[1]
    text = text.format(algorithm=str(record.config.get("algorithm", "ppo")).upper())
    base = base_model(folder, record)
    if base:
        text += f" It goes back to [{base}](https://huggingface.co/{base})."
    return text


def _task_summary(folder: Path, kind: str) -> str:
    """The task's summary, for the problem and the texts that the config names."""
    config, task = read_object(folder / "config.json"), TASKS[kind]
    summary = task.summaries.get(config.get("problem_type"), task.summary)
    texts = "a pair of texts" if config.get("trained_pairs") else "a text"
    return summary.format(texts=texts)


def _results(folder: Path, record: RunRecord) -> str:
    metrics, origin = record.metrics, ""
    # A run that did not finish has no final numbers.
    if not metrics:
        rows = read_jsonl(folder / "metrics.jsonl")
        if rows:
            metrics, origin = rows[-1], "The last line of metrics.jsonl:\n\n"
    parts = []
    numbers = [(name, _number(value)) for name, value in _flat(metrics)]
    if numbers:
        parts.append(origin + markdown_table(["metric", "value"], numbers, right=1))
    parts.append(_report_table(folder, kind_of(folder, record)))
    # The curves come first, then the other pictures by name.
    plots = sorted((folder / "plots").glob("*.png"))
    plots.sort(key=lambda path: path.name != "curves.png")
    parts += [f"![{path.stem}](plots/{path.name})" for path in plots]
    return _joined(parts)


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
        cells.append([_number(row.get(column, "")) for column in report.columns])
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


def _mistakes(folder: Path, kind: str) -> str:
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
        return _number(value)
    glue = " " if column == "tokens" else "; "
    return glue.join(map(str, value))


def _samples(samples: list[dict]) -> str:
    samples = [sample for sample in samples if isinstance(sample, dict)]
    if not samples:
        return ""
    # Samples during the training have a step, those at its end have none.
    last_step = samples[-1].get("step")
    last = [sample for sample in samples if sample.get("step") == last_step][:SAMPLES]
    columns = [name for name in last[0] if name != "step"]
    cells = []
    for sample in last:
        cells.append([_number(sample.get(name, "")) for name in columns])
    return markdown_table(columns, cells)


def _use(kind: str, folder: Path, record: RunRecord, samples: list[dict], path: str) -> str:
    parts = [fenced(_snippet(kind, folder, record, samples, path), "python")]
    if kind in TASKS:
        parts += [
            "On a file of rows, and in the browser, from a checkout of the project that made it:",
            fenced(f"python -m rlhf predict {path} FILE\npython app.py {path}", "bash"),
        ]
    return _joined(parts)


# The pipeline gives what the head gives.
CENTRED_NUMBER = "# The number is this score minus classify.model.config.score_centre.\n"


def _snippet(kind: str, folder: Path, record: RunRecord, samples: list[dict], path: str) -> str:
    """Python code that loads the model and runs it on a sample."""
    config = read_object(folder / "config.json")
    snippet = kind
    if kind == "reward" and config.get("trained_pairs"):
        snippet = "reward_of_pair"
    elif kind == "reward" and not _has_chat_template(folder):
        snippet = "score"
    literals = {"prompt": _example(samples, "prompt", LONGEST_PROMPT) or "Hello, how are you?"}
    if kind in TASKS:
        literals |= _task_inputs(kind, config, samples)
    values = {name: repr(value) for name, value in literals.items()}
    values |= {"path": json.dumps(path, ensure_ascii=False), "length": _new_tokens(config, record)}
    # Words are tagged by their first token; where characters were tagged, each is a word of its own.
    tags_characters = config.get("trained_units") == "characters"
    values["aggregation"] = "simple" if tags_characters else "first"
    # tril(n) keeps spans of at most n + 1 tokens.
    windows = config.get("reader_windows") or {}
    values["longest"] = windows.get("max_answer_length", 30) - 1
    # Set where no weight of the model could hold the centre of its scores.
    has_centre = bool(config.get("score_centre"))
    values["centre"] = " - model.config.score_centre" if has_centre else ""
    code = SNIPPETS[snippet].format(**values)
    if kind in TASKS and has_centre:
        code += CENTRED_NUMBER
    return code.rstrip()


def _task_inputs(kind: str, config: dict, samples: list[dict]) -> dict:
    """column -> a short sample or the task's example; texts: the text, or both where the model reads pairs."""
    inputs = {}
    for column, example in TASKS[kind].snippet_example.items():
        longest = LONGEST_CONTEXT if column == "context" else LONGEST_TEXT
        inputs[column] = _example(samples, column, longest) or example
    if config.get("trained_pairs"):
        texts = {"text": inputs["text"], "text_pair": inputs["text_pair"]}
    else:
        texts = inputs.get("text")
    return inputs | {"texts": texts}


def _new_tokens(config: dict, record: RunRecord) -> int:
    """Tokens that a snippet generates: as many as in training, and at most half of the context."""
    context = config.get("n_positions") or config.get("max_position_embeddings") or 1024
    trained = int(record.config.get("max_completion_length") or 64)
    return min(trained, max(1, context // 2))


def _example(samples: list[dict], column: str, longest: int):
    """The first short text, or list of short texts, of a column of the samples; "" where there is none."""
    for sample in samples:
        value = sample.get(column) if isinstance(sample, dict) else None
        texts = value if isinstance(value, list) else [value]
        if texts and all(_is_short(text, longest) for text in texts):
            return value
    return ""


def _is_short(text, longest: int) -> bool:
    return isinstance(text, str) and 0 < len(text) <= longest


def _lineage_table(folder: Path, record: RunRecord) -> str:
    rows = []
    for row in lineage(folder, record):
        role = "↳ " * row["depth"] + row["role"]
        rows.append((role, row["name"], row["recipe"], row["code"], row["sha256"]))
    return markdown_table(["role", "model", "recipe", "code", "sha256 of the weights"], rows)


def _data_table(record: RunRecord) -> str:
    rows = []
    for entry in record.data:
        rows.append(
            (entry.get("name", ""), _number(entry.get("rows", "")), entry.get("sha256", ""))
        )
    if not rows:
        return ""
    return markdown_table(["name", "rows", "sha256 of the rows"], rows)


def _making(record: RunRecord) -> str:
    """The command, the facts, the settings and the versions."""
    parts = []
    if record.command:
        parts.append(fenced(record.command, "bash"))
    parts.append(", ".join(_facts(record)) + ".")
    config = {name: value for name, value in sorted(record.config.items()) if name != "hub_token"}
    if config:
        # width: a prompt stays on one line.
        text = yaml.safe_dump(config, allow_unicode=True, width=1000).rstrip()
        parts.append("Settings that differ from their defaults:\n\n" + fenced(text, "yaml"))
    if record.versions:
        parts.append(markdown_table(["package", "version"], sorted(record.versions.items())))
    return _joined(parts)


def _facts(record: RunRecord) -> list[str]:
    facts = [f"seed {record.seed}"]
    if record.seconds:
        facts.append(f"{record.seconds:.0f} s")
    if record.peak_memory_gb:
        facts.append(f"{record.peak_memory_gb:.2f} GB of memory at most")
    if record.machine.get("cores"):
        facts.append(f"{record.machine['cores']} cores")
    if record.started:
        facts.append(f"begun {record.started}")
    return facts


def _licence_note(folder: Path, record: RunRecord) -> str:
    base = base_model(folder, record)
    if base in LICENCES:
        return f"`{LICENCES[base]}`, the licence of {base}. The training data may ask for more."
    return "`other`: not known. Before sharing, set the licence that the base model and the training data allow."


# ---- Markdown and files ------------------------------------------------------------------------------------------


def _joined(parts: list[str]) -> str:
    return "\n\n".join(part for part in parts if part)


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _number(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name or "") is not None


def _is_on_hub(name: str) -> bool:
    return _is_hub_id(name) and not is_local(name)


def _shown_path(folder: Path, record: RunRecord) -> str:
    """The folder as the command named it; of an absolute path only the last part, which says enough."""
    # A folder that was moved is named as it is now.
    path = Path(record.config.get("output_dir") or folder)
    name = folder.resolve().name
    if path.is_absolute() or path.name != name:
        return name
    return path.as_posix()


def _record(folder: Path) -> RunRecord | None:
    try:
        return RunRecord.load(folder)
    except (OSError, ValueError, TypeError):
        return None


def _has_chat_template(folder: Path) -> bool:
    # transformers 5 writes a file of its own, older versions wrote into the config.
    if (folder / "chat_template.jinja").is_file():
        return True
    return "chat_template" in read_object(folder / "tokenizer_config.json")
