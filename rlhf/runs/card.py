"""README.md of a run folder: the model card, written from what the run left there and nothing else.

The same folder gives the same card. Only run.json is needed; a missing metrics.jsonl, samples.jsonl, plot, config or
parent leaves its section out. TRL's card calls a local parent "None", so SFT -> reward model -> PPO loses its lineage;
here parents are followed through their own run.json. The licence is copied from a base model we know, and is `other`
otherwise: nothing is invented.
"""

import json
import os
import re
from pathlib import Path

import yaml

from rlhf.data.load import is_local
from rlhf.errors import UserError
from rlhf.markdown import _flat, fenced, markdown_cell, markdown_table
from rlhf.runs.record import RECORD, RunRecord, file_sha256, model_kind, read_jsonl, read_object

SAMPLES, ROWS = 5, 30  # samples in a card; rows of a table

# recipe -> (kind of model, what it is). A kind decides pipeline_tag and snippet.
RECIPES = {
    "tokenizer": ("tokenizer", "A tokenizer trained on one's own text."),
    "pretrain": ("causal", "A language model trained on plain text."),
    "classification": ("classifier", "A text classifier."),
    "ner": ("tagger", "A model that labels each word (named entity recognition)."),
    "question_answering": ("reader", "A model that marks the answer to a question in a text."),
    "sft": ("causal", "A chat model, fine-tuned on demonstrations (SFT)."),
    "reward": (
        "reward",
        "A reward model: it gives an answer to a prompt one score, learned from human rankings.",
    ),
    "ppo": ("causal", "A chat model trained by {algorithm} to raise the score of its answers."),
    "dpo": (
        "causal",
        "A chat model trained on pairs of answers by direct preference optimisation (DPO).",
    ),
}
# kind -> (file of its report, the list in it that becomes a table, columns, what a row is)
REPORTS = {
    "classifier": (
        "classification.json",
        "classes",
        ("label", "rows", "precision", "recall", "f1"),
        "labels",
    ),
    "tagger": ("ner.json", "types", ("type", "entities", "precision", "recall", "f1"), "types"),
    "reader": (
        "question_answering.json",
        "kinds",
        ("question", "rows", "exact", "f1"),
        "kinds of questions",
    ),
}
# metric of a record -> what the Hub calls it
EVALUATIONS = {
    "accuracy": "accuracy",
    "f1": "f1",
    "precision": "precision",
    "recall": "recall",
    "exact": "exact_match",
    "mse": "mse",
    "mae": "mae",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
PIPELINES = {
    "causal": "text-generation",
    "chat": "text-generation",
    "masked": "fill-mask",
    "classifier": "text-classification",
    "reward": "text-classification",
    "tagger": "token-classification",
    "reader": "question-answering",
}
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
NOT_THE_ORIGIN = (
    "reward",
    "value",
    "ref",
    "tokenizer",
)  # parents by whose weights this run did not start

# ---- snippets; {path} and {prompt} are Python literals -----------------------------------------------------------

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
place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
print(tokenizer.decode(model(**inputs).logits[0, place].argmax()))
""",
    "classifier": """from transformers import pipeline

path = {path}
classify = pipeline("text-classification", model=path, top_k=None)
print(classify({texts}, truncation=True))
""",
    "tagger": """from transformers import pipeline

path = {path}
tag = pipeline("token-classification", model=path, aggregation_strategy="{aggregation}")
for entity in tag({prompt}):
    print(entity["entity_group"], entity["word"], entity["start"], entity["end"], entity["score"])
""",
    "reader": """import torch
"""
    + _LOAD.format(auto="AutoModelForQuestionAnswering")
    + """question, context = {question}, {context}
inputs = tokenizer(question, context, truncation="only_second", return_offsets_mapping=True, return_tensors="pt")
offsets = inputs.pop("offset_mapping")[0].tolist()
output = model(**inputs)
inside = torch.tensor([part == 1 for part in inputs.sequence_ids()])
spans = torch.ones(len(inside), len(inside)).triu().tril({longest}).bool() & inside & inside[:, None]
scores = (output.start_logits[0][:, None] + output.end_logits[0]).masked_fill(~spans, -1e9)
start, end = divmod(scores.argmax().item(), len(inside))
answer = context[offsets[start][0] : offsets[end][1]]  # a text that holds no answer gets one too; Reader knows better
print(answer)
""",
    "score": _LOAD.format(auto="AutoModelForSequenceClassification")
    + """print(model(**tokenizer({prompt}, return_tensors="pt")).logits[0, 0].item())
""",
    "reward": _LOAD.format(auto="AutoModelForSequenceClassification")
    + """messages = [{{"role": "user", "content": {prompt}}}, {{"role": "assistant", "content": "Hello!"}}]
inputs = tokenizer.apply_chat_template(
    messages, sanitize_control_tokens=True, return_dict=True, return_tensors="pt"
)
score = model(**inputs).logits[0, 0].item()  # higher is better; only differences between answers mean something
print(score)
""",
    "tokenizer": """from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({path})
ids = tokenizer({prompt})["input_ids"]
print(tokenizer.convert_ids_to_tokens(ids), tokenizer.decode(ids))
""",
}

# ---- the card ----------------------------------------------------------------------------------------------------


def write_card(folder: str | os.PathLike, *, model_id: str | None = None) -> Path:
    """Write README.md of a run folder and return its path. model_id: the name in the snippet, for a shared model."""
    folder = Path(folder)
    path = folder / "README.md"
    path.write_text(card_text(folder, model_id=model_id), encoding="utf-8")
    return path


def card_text(folder: str | os.PathLike, *, model_id: str | None = None) -> str:
    """The card as Markdown with YAML front matter."""
    folder = Path(folder)
    record = _record(folder)
    if record is None:
        raise UserError(
            f"{folder}: no readable {RECORD}: a card needs the folder of a recipe's run"
        )
    kind, samples = kind_of(folder, record), read_jsonl(folder / "samples.jsonl")
    model_id = model_id or record.config.get("hub_model_id") or _shown_path(folder, record)
    title = _title(folder, record, model_id)
    sections = [
        f"# {markdown_cell(title)}",
        _sentence(folder, record, kind),
        ""
        if record.status == "done"
        else f"**This run is not complete: its status is `{record.status}`.**",
        _section("Results", _results(folder, record)),
        _section("Samples", _samples(samples)),
        _section("Errors", _errors(folder, kind)),
        _section("Use", _use(kind, folder, record, samples, model_id)),
        _section("Lineage", _lineage_table(folder, record)),
        _section("Data", _data_table(record)),
        _section("How it was made", _making(record)),
        _section("Licence", _licence_note(folder, record)),
    ]
    front = yaml.safe_dump(front_matter(folder, record), sort_keys=False, allow_unicode=True)
    text = f"---\n{front}---\n\n" + "\n\n".join(section for section in sections if section) + "\n"
    return re.sub(
        r"\bhf_[A-Za-z0-9]{16,}", "hf_***", text
    )  # a token given as a flag is in the command


def _title(folder: Path, record: RunRecord, model_id: str | None = None) -> str:
    name = model_id or record.config.get("hub_model_id") or _shown_path(folder, record)
    return name.rstrip("/").split("/")[-1]


def front_matter(folder: Path, record: RunRecord) -> dict:
    """What the Hub reads."""
    kind, base = kind_of(folder, record), base_model(folder, record)
    content = {"library_name": "transformers", "license": LICENCES.get(base, "other")}
    if base:
        adapter = (folder / "adapter_config.json").is_file()
        content |= {"base_model": base, "base_model_relation": "adapter" if adapter else "finetune"}
    names = [str(entry.get("name", "")) for entry in record.data]
    datasets = sorted({name for name in names if _is_hub_id(name) and not is_local(name)})
    if datasets:
        content["datasets"] = datasets
    if kind in PIPELINES:
        content["pipeline_tag"] = PIPELINES[kind]
    tags = [
        "rlhf",
        record.recipe,
        record.config.get("algorithm"),
        "reward-model" if kind == "reward" else None,
    ]
    content["tags"] = list(dict.fromkeys(str(tag) for tag in tags if tag))
    if results := evaluations(folder, record, kind):
        content["model-index"] = [{"name": _title(folder, record), "results": [results]}]
    return content


def evaluations(folder: Path, record: RunRecord, kind: str) -> dict | None:
    """Final numbers in the form that the Hub lists; of an encoder whose evaluation rows have a name."""
    metrics = [
        {"type": theirs, "name": ours, "value": value}
        for ours, theirs in EVALUATIONS.items()
        if isinstance(value := record.metrics.get(ours), int | float)
    ]
    if kind not in REPORTS or not metrics or not record.data:
        return None
    name = str(record.data[-1].get("name", ""))
    known = _is_hub_id(name) and not is_local(name)
    shown = name if known else Path(name).name
    return {
        "task": {"type": PIPELINES[kind]},
        "dataset": {"name": shown, "type": shown},
        "metrics": metrics,
    }


def kind_of(folder: Path, record: RunRecord) -> str:
    """A key of SNIPPETS: what config.json says, or the recipe where there is none."""
    kind = model_kind(folder) or RECIPES.get(record.recipe, ("causal",))[0]
    return "chat" if kind == "causal" and _has_chat_template(folder) else kind


# ---- lineage -----------------------------------------------------------------------------------------------------


def lineage(folder: Path, record: RunRecord) -> list[dict]:
    """This run and all it came from, depth first: depth, role, name, recipe, sha256, code."""
    weights = sorted(folder.glob("*.safetensors"))
    own = {
        "depth": 0,
        "role": "this run",
        "name": _shown_path(folder, record),
        "recipe": record.recipe,
    }
    own |= {
        "sha256": file_sha256(weights[0]) if weights else "",
        "code": record.versions.get("code", ""),
    }
    return [own, *_ancestors(folder, record, 1, {folder.resolve()})]


def _ancestors(folder: Path, record: RunRecord, depth: int, seen: set[Path]) -> list[dict]:
    found = []
    for role, entry in record.parents.items():
        if not (isinstance(entry, dict) and entry.get("name")):
            continue
        home = _home(entry["name"], folder)
        above = _record(home) if home else None
        row = {
            "depth": depth,
            "role": role,
            "name": entry["name"],
            "recipe": entry.get("recipe", ""),
        }
        row |= {
            "sha256": entry.get("sha256", ""),
            "code": above.versions.get("code", "") if above else "",
        }
        found.append(row)
        if above and home.resolve() not in seen:
            found += _ancestors(home, above, depth + 1, seen | {home.resolve()})
    return found


def base_model(folder: Path, record: RunRecord) -> str | None:
    """The Hub model whose weights this run goes back to, through local runs; None for one trained from scratch."""
    seen: set[Path] = set()
    while folder.resolve() not in seen:
        seen.add(folder.resolve())
        origins = [
            entry
            for role, entry in record.parents.items()
            if not any(n in role for n in NOT_THE_ORIGIN)
        ]
        origin = next(
            (entry for entry in origins if isinstance(entry, dict) and entry.get("name")), {}
        )
        home = _home(origin.get("name", ""), folder)
        above = _record(home) if home else None
        if above is None:
            local = (
                home
                or not _is_hub_id(origin.get("name", ""))
                or origin.get("sha256")
                or origin.get("recipe")
            )
            return None if local else origin["name"]
        folder, record = home, above
    return None


def _home(name: str, child: Path) -> Path | None:
    """The folder of a parent: as it was named, or moved together with its child."""
    if not name:
        return None
    places = [Path(name), child.parent / Path(name).name]
    return next(
        (place for place in places if place.is_dir() and place.resolve() != child.resolve()), None
    )


# ---- sections ----------------------------------------------------------------------------------------------------


def _sentence(folder: Path, record: RunRecord, kind: str) -> str:
    text = RECIPES.get(record.recipe, ("", f"A model made by the recipe `{record.recipe}`."))[1]
    if kind == "masked":
        text = "A language model trained on plain text by filling in masked words."
    if kind == "classifier":
        text = _task(folder)
    text = text.format(algorithm=str(record.config.get("algorithm", "ppo")).upper())
    base = base_model(folder, record)
    return text + (f" It goes back to [{base}](https://huggingface.co/{base})." if base else "")


def _task(folder: Path) -> str:
    """What a classifier is asked for, by its config."""
    config = read_object(folder / "config.json")
    what = {
        "multi_label_classification": "A classifier that gives {a} any number of labels.",
        "regression": "A model that gives {a} a number.",
    }.get(config.get("problem_type"), "A classifier that gives {a} one label.")
    return what.format(a="a pair of texts" if config.get("trained_pairs") else "a text")


def _results(folder: Path, record: RunRecord) -> str:
    metrics, origin = record.metrics, ""
    if not metrics:
        rows = read_jsonl(folder / "metrics.jsonl")
        metrics, origin = (rows[-1], "The last line of metrics.jsonl:\n\n") if rows else ({}, "")
    numbers = [(name, _number(value)) for name, value in _flat(metrics)]
    kind = kind_of(folder, record)
    pictures = sorted(
        (folder / "plots").glob("*.png"), key=lambda path: (path.name != "curves.png", path.name)
    )
    parts = [origin + markdown_table(["metric", "value"], numbers, right=1)] if numbers else []
    parts += [_report_table(folder, kind)] if kind in REPORTS else []
    parts += [f"![{path.stem}](plots/{path.name})" for path in pictures]
    return "\n\n".join(part for part in parts if part)


def _report_table(folder: Path, kind: str) -> str:
    """A row for each label, type or kind of question, the most frequent first."""
    name, part, columns, what = REPORTS[kind]
    rows = [row for row in read_object(folder / name).get(part) or [] if isinstance(row, dict)]
    if not rows:
        return ""
    rows.sort(key=lambda row: -row.get(columns[1], 0))
    table = markdown_table(
        columns, [[_number(row.get(column, "")) for column in columns] for row in rows[:ROWS]]
    )
    return table + (
        f"\n\nThe {ROWS} most frequent of {len(rows)} {what}; `{name}` has all."
        if len(rows) > ROWS
        else ""
    )


def _errors(folder: Path, kind: str) -> str:
    """Held-out rows that the model gets wrong, as its recipe sorted them."""
    if kind == "reader":
        rows = read_object(folder / REPORTS[kind][0]).get("mistakes") or []
        columns = ("question", "gold", "predicted", "f1")
    else:
        rows = read_jsonl(folder / "errors.jsonl")
        columns = ("tokens", "errors") if kind == "tagger" else tuple(rows[0]) if rows else ()
    rows = [row for row in rows if isinstance(row, dict)][:SAMPLES]
    if not rows:
        return ""
    cells = [
        [_cell(row.get(column, ""), " " if column == "tokens" else "; ") for column in columns]
        for row in rows
    ]
    return "Held-out rows that the model gets wrong:\n\n" + markdown_table(columns, cells)


def _cell(value, glue: str) -> str:
    return glue.join(map(str, value)) if isinstance(value, list) else _number(value)


def _samples(samples: list[dict]) -> str:
    samples = [sample for sample in samples if isinstance(sample, dict)]
    if not samples:
        return ""
    last = [sample for sample in samples if sample.get("step") == samples[-1].get("step")][:SAMPLES]
    columns = [name for name in last[0] if name != "step"]
    return markdown_table(
        columns, [[_number(sample.get(name, "")) for name in columns] for sample in last]
    )


def _use(kind: str, folder: Path, record: RunRecord, samples: list[dict], path: str) -> str:
    parts = [fenced(_snippet(kind, folder, record, samples, path), "python")]
    if kind in REPORTS:
        parts += [
            "On a file of rows, and in the browser, from a checkout of the project that made it:",
            fenced(f"python -m rlhf predict {path} FILE\npython app.py {path}", "bash"),
        ]
    return "\n\n".join(parts)


def _snippet(kind: str, folder: Path, record: RunRecord, samples: list[dict], path: str) -> str:
    config = read_object(folder / "config.json")
    context = config.get("n_positions") or config.get("max_position_embeddings") or 1024
    length = min(int(record.config.get("max_completion_length") or 64), max(1, context // 2))
    if kind == "reward" and not _has_chat_template(folder):
        kind = "score"
    text = _example(samples, "text", 200) or "The letter was written by Ada."
    prompt = text if kind == "tagger" else _example(samples, "prompt", 80) or "Hello, how are you?"
    texts = {"text": text} | (
        {"text_pair": _example(samples, "text_pair", 200) or "Ada wrote the letter."}
    )
    literals = {
        "prompt": prompt,
        "texts": texts if config.get("trained_pairs") else text,
        "question": _example(samples, "question", 200) or "Who wrote the letter?",
        "context": _example(samples, "context", 300) or "The letter was written by Ada.",
    }
    return (
        SNIPPETS[kind]
        .format(
            path=json.dumps(path, ensure_ascii=False),
            length=length,
            aggregation="simple" if config.get("trained_units") == "characters" else "first",
            longest=(config.get("reader_windows") or {}).get("max_answer_length", 30) - 1,
            **{name: repr(value) for name, value in literals.items()},
        )
        .rstrip()
    )


def _example(samples: list[dict], column: str, longest: int) -> str:
    """The first short text of a column of the samples."""
    texts = (sample.get(column) for sample in samples if isinstance(sample, dict))
    return next((text for text in texts if isinstance(text, str) and 0 < len(text) <= longest), "")


def _lineage_table(folder: Path, record: RunRecord) -> str:
    rows = [
        ("↳ " * row["depth"] + row["role"], row["name"], row["recipe"], row["code"], row["sha256"])
        for row in lineage(folder, record)
    ]
    return markdown_table(["role", "model", "recipe", "code", "sha256 of the weights"], rows)


def _data_table(record: RunRecord) -> str:
    rows = [
        (entry.get("name", ""), _number(entry.get("rows", "")), entry.get("sha256", ""))
        for entry in record.data
    ]
    return markdown_table(["name", "rows", "sha256 of the rows"], rows) if rows else ""


def _making(record: RunRecord) -> str:
    config = {name: value for name, value in sorted(record.config.items()) if name != "hub_token"}
    facts = [
        f"seed {record.seed}",
        f"{record.seconds:.0f} s" if record.seconds else "",
        f"{record.peak_memory_gb:.2f} GB of memory at most" if record.peak_memory_gb else "",
        f"{record.machine['cores']} cores" if record.machine.get("cores") else "",
        f"begun {record.started}" if record.started else "",
    ]
    parts = [
        fenced(record.command, "bash") if record.command else "",
        ", ".join(fact for fact in facts if fact) + ".",
        "Settings that differ from their defaults:\n\n"
        + fenced(yaml.safe_dump(config, allow_unicode=True, width=1000).rstrip(), "yaml")
        if config
        else "",
        markdown_table(["package", "version"], sorted(record.versions.items()))
        if record.versions
        else "",
    ]
    return "\n\n".join(part for part in parts if part)


def _licence_note(folder: Path, record: RunRecord) -> str:
    base = base_model(folder, record)
    if base in LICENCES:
        return f"`{LICENCES[base]}`, the licence of {base}. The training data may ask for more."
    return "`other`: not known. Before sharing, set the licence that the base model and the training data allow."


# ---- Markdown and files ------------------------------------------------------------------------------------------


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _number(value) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _is_hub_id(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", name or "") is not None


def _shown_path(folder: Path, record: RunRecord) -> str:
    """The folder as the command named it; of an absolute path only its name, which tells a reader enough."""
    path = Path(record.config.get("output_dir") or folder)
    return (
        folder.resolve().name
        if path.is_absolute() or path.name != folder.resolve().name
        else path.as_posix()
    )


def _record(folder: Path) -> RunRecord | None:
    try:
        return RunRecord.load(folder)
    except (OSError, ValueError, TypeError):
        return None


def _has_chat_template(folder: Path) -> bool:
    return (folder / "chat_template.jinja").is_file() or "chat_template" in read_object(
        folder / "tokenizer_config.json"
    )
