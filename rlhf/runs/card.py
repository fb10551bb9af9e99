"""README.md of a run folder: the model card, written from what the run left there and nothing else.

The same folder gives the same card. Only run.json is needed: without metrics.jsonl, samples.jsonl, a plot or a config, the
card has no section for it. TRL's card calls a local parent "None", so SFT -> reward model -> PPO loses its lineage. Here the
record keeps the history of each parent (`runs.parents`). The licence is copied from the base model's card and is `other`
otherwise: nothing is invented. Folders of this machine are shown by their last part, or by their Hub id.

card_metadata: the YAML for the Hub. card_tables: the tables. card_snippets: the code. What differs between encoder tasks
comes from `rlhf.task_table.TASKS`.
"""

import json
import os
import re
import shlex
from dataclasses import replace
from pathlib import Path

import yaml

from rlhf.errors import UserError
from rlhf.markdown import fenced, inline_code, markdown_cell
from rlhf.runs.ancestry import Node, base_model, lineage_of
from rlhf.runs.card_metadata import (
    VALUE_MODEL,
    Card,
    base_model_of,
    front_matter,
    kind_of,
    licence_of,
    metadata,
    shown_path,
)
from rlhf.runs.card_snippets import Use, is_adapter, snippet
from rlhf.runs.card_tables import (
    data_table,
    joined,
    lineage_section,
    making,
    mistakes,
    results,
    section,
    stages,
)
from rlhf.runs.durable import write_text
from rlhf.runs.known_secrets import without_secrets
from rlhf.runs.parents import load_record, model_digests
from rlhf.runs.public_names import PublicNames
from rlhf.runs.record import (
    DONE,
    EVALUATION_FAILED,
    RECORD,
    TRAINED,
    RunRecord,
    read_jsonl,
    read_object,
    read_rows,
)
from rlhf.task_table import TASKS

__all__ = ["base_model", "card_text", "front_matter", "write_card"]

# Recipe that is not a task of TASKS -> its summary.
SUMMARIES = {
    "tokenizer": "A tokenizer trained on your own text.",
    "word_vectors": "Word vectors trained on plain text.",
    "pretrain": "A language model trained on plain text.",
    "sft": "A chat model, fine-tuned on demonstrations (SFT).",
    "reward": "A reward model: it gives an answer to a prompt one score, learned from human rankings.",
    "dpo": "A chat model trained on rankings of answers, without a reward model (DPO).",
    "kto": "A chat model trained on answers that people found good or bad (KTO).",
    "ilql": "A chat model trained on scored answers, with values of its tokens that guide it in `rlhf chat`, `rlhf sample` "
    "and `rlhf report` (ILQL). Loaded by transformers alone it is the policy without them.",
    "ppo": "A chat model trained by {algorithm} to raise the score of its answers.",
    "seq2seq": "A model that reads a text and writes another one, trained on pairs of texts.",
}
MASKED_SUMMARY = "A language model trained on plain text by filling in masked words."
VALUE_SUMMARY = "The value function of a {algorithm} policy: the reward that is still to come, after each token."
# Kind of model -> (intended use, limits). Tasks that are not listed share the last entry.
USES = {
    "causal": (
        "Continuing text of the kind that it was trained on, and as the base of further training.",
        "It has not learned to follow instructions. It repeats what its training text says, true or not.",
    ),
    "chat": (
        "Conversation on the subjects of its training data, research on alignment, and further training.",
        "Its answers may be wrong and sound sure. It was not tested for safety: a person should read its answers before "
        "anything depends on them.",
    ),
    "masked": (
        "As the base of an encoder that is fine-tuned for a task, on text like its training text.",
        "On its own it only fills in masked words, with the habits of its training text.",
    ),
    "reward": (
        "Comparing answers to the same prompt, and as the reward of PPO and its relatives.",
        "A score means something only next to the score of another answer to the same prompt. It has learned the taste of "
        "the people who ranked. A policy that is trained on it for long learns its mistakes too.",
    ),
    "value": (
        "Continuing the training of the policy that it belongs to.",
        "Its values are of answers of that policy, and of no other. They are not a measure of quality.",
    ),
    "seq2seq": (
        "Sources of the kind, the length and the language of its training pairs.",
        "It writes fluent text whether it has understood the source or not, and longer sources come out worse. A person who "
        "reads both languages should check what anything depends on.",
    ),
    "tokenizer": (
        "Training a model from scratch on text like the text that it was trained on.",
        "A model that was trained with another tokenizer cannot use it. Other languages take many more tokens.",
    ),
    "word_vectors": (
        "Similarity of words, and as the first embeddings of a model that is trained from scratch.",
        "A word has one vector, whatever it means in its sentence. The vectors hold the prejudices of their text.",
    ),
    "": (
        "Texts like those of its training data.",
        "On other subjects, languages or lengths of text its results may be far below the numbers on this card. No decision "
        "about a person should rest on it alone.",
    ),
}

WEB_PAGE = re.compile(
    r"https?://[^\s()<>\[\]\\`\"']+"
)  # whose address is the target of a link as it is


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
    folder: str | os.PathLike,
    *,
    model_id: str | None = None,
    status: str | None = None,
    hub_ids: dict[str, str] | None = None,
    adapter: bool | None = None,
) -> str:
    """The card as Markdown with YAML front matter.

    folder: of a run, or `value_model/` or `adapter/` in it.
    model_id, status: as in write_card.
    hub_ids: parent as recorded -> Hub id, of parents that are shared with it. Those shared earlier are known.
    adapter: the card is for the LoRA matrices alone, without the merged model; None: if the folder holds nothing else.
    """
    card = _card(Path(folder), model_id, hub_ids, adapter)
    if status:
        card.record.status = status
    record, names = card.record, card.names
    # The use comes first: it is what most readers look for.
    sections = [
        f"# {markdown_cell(card.title)}",
        _summary(card),
        _incomplete(card.folder, record),
        section("Use", _use(card)),
        section("Intended use and limits", _limits(card)),
        section("Results", results(card.folder, record, card.kind, names)),
        section("Samples", stages(card.folder, names)),
        section("Errors", mistakes(card.folder, card.kind)),
        section("Lineage", lineage_section(card.root, names, card.title)),
        section("Data", data_table(record, names)),
        section("How it was made", making(record, names)),
        section("Licence", _licence_note(card.root)),
    ]
    # The Hub reads the order as it is: the same run gives the same bytes.
    front = yaml.safe_dump(metadata(card), sort_keys=False, allow_unicode=True)
    # A token that was given as a flag is in the command.
    text = without_secrets(f"---\n{front}---\n\n{joined(sections)}\n")
    # The name of a file may be no text: half a pair of UTF-16, which nothing can write.
    return text.encode(errors="replace").decode()


def _card(
    folder: Path, model_id: str | None, hub_ids: dict[str, str] | None, adapter: bool | None
) -> Card:
    """All that the sections read. UserError where there is no record."""
    # The parts of a run have the record of the run.
    home = folder
    if not (folder / RECORD).is_file() and folder.name in (VALUE_MODEL, "adapter"):
        home = folder.parent
    record = load_record(home)
    if record is None:
        raise UserError(
            f"{folder}: no readable {RECORD}: a card needs the folder of a recipe's run"
        )
    root = lineage_of(record, home)
    if home != folder:
        root = replace(root, name=str(folder), folder=folder, **_own_digests(folder))
    names = PublicNames(root, hub_ids)
    own = shown_path(folder, record) if home == folder else folder.name
    model_id = model_id or str(record.config.get("hub_model_id") or own)
    # Without the owner, who is in the address.
    title = model_id.rstrip("/").split("/")[-1]
    if adapter is None:
        adapter = is_adapter(folder)
    return Card(folder, record, root, names, kind_of(folder, record), title, model_id, adapter)


def _own_digests(folder: Path) -> dict:
    """The digests of a part of a run, which its record does not hold."""
    digests = model_digests(folder)
    return {"sha256": digests.get("sha256", ""), "files": digests.get("files", {})}


def _incomplete(folder: Path, record: RunRecord) -> str:
    """Sentences for the reader of a run that did not end well, or whose files are torn."""
    sentences = []
    if record.status in (TRAINED, EVALUATION_FAILED):
        sentences.append("**The model is trained, and not evaluated: `rlhf finish` does that.**")
    elif record.status != DONE:
        sentences.append(
            f"**This run is not complete: its status is {inline_code(record.status)}.**"
        )
    _, torn = read_rows(folder / "metrics.jsonl")
    if torn:
        sentences.append(f"Lines of metrics.jsonl that could not be read: {torn}.")
    return "\n\n".join(sentences)


def _summary(card: Card) -> str:
    """One sentence, and the model that the weights go back to."""
    record, kind = card.record, card.kind
    if kind == "masked":
        text = MASKED_SUMMARY
    elif kind == "value":
        text = VALUE_SUMMARY
    elif kind in TASKS:
        text = _task_summary(card.folder, kind)
    else:
        text = SUMMARIES.get(record.recipe, "A model made by the recipe {recipe}.")
    algorithm = markdown_cell(str(record.config.get("algorithm", "ppo")).upper())
    text = text.format(algorithm=algorithm, recipe=inline_code(record.recipe))
    if card.adapter:
        text += " This repository holds LoRA matrices alone, to be put on their base model."
    base = base_model_of(card)
    # A model from scratch has none.
    if base:
        text += f" It goes back to [{base}](https://huggingface.co/{base})."
    return text


def _task_summary(folder: Path, kind: str) -> str:
    """The task's summary, for the problem and the texts that the config names."""
    config, task = read_object(folder / "config.json"), TASKS[kind]
    summary = task.summaries.get(config.get("problem_type"), task.summary)
    texts = "a pair of texts" if config.get("trained_pairs") else "a text"
    return summary.format(texts=texts)


def _use(card: Card) -> str:
    """The snippet, and the commands of this project that run the model."""
    samples = read_jsonl(card.folder / "samples.jsonl")
    use = Use(card.kind, card.folder, card.record, card.model_id, card.adapter)
    parts = [fenced(snippet(use, samples), "python")]
    if card.kind == "seq2seq":
        model = shlex.quote(card.model_id)
        parts += [
            "On a file of sources, or on single ones, from a checkout of the project that made it:",
            fenced(
                f'python -m rlhf predict {model} FILE\npython -m rlhf predict {model} --text "..."',
                "bash",
            ),
        ]
    if card.kind in TASKS:
        model = shlex.quote(card.model_id)
        parts += [
            "On a file of rows, and in the browser, from a checkout of the project that made it:",
            fenced(f"python -m rlhf predict {model} FILE\npython app.py {model}", "bash"),
        ]
    if (card.folder / VALUE_MODEL / "config.json").is_file():
        name = json.dumps(card.model_id, ensure_ascii=False)
        code = (
            f'AutoModelForSequenceClassification.from_pretrained({name}, subfolder="{VALUE_MODEL}")'
        )
        parts.append(
            f"`{VALUE_MODEL}/` holds the value function, from which a training can go on: {inline_code(code)}."
        )
    return joined(parts)


def _limits(card: Card) -> str:
    """The intended use and the limits of this kind of model, and how much it reads."""
    use, limits = USES.get(card.kind, USES[""])
    parts = [f"For: {use}", f"Limits: {limits}"]
    config = read_object(card.folder / "config.json")
    # GPT-2's name of it, and that of the others.
    context = config.get("n_positions") or config.get("max_position_embeddings")
    if context:
        parts.append(f"It reads at most {context} tokens.")
    return joined(parts)


def _licence_note(root: Node) -> str:
    licence = licence_of(root)
    if not licence.source:
        return (
            "**`other`: the licence is not known.** No model that this one comes from states one. Before sharing, set the "
            "licence that the base model and the training data allow."
        )
    # Texts of the card of a model that anybody may have made.
    name = inline_code(licence.license_name or licence.license)
    if WEB_PAGE.fullmatch(licence.license_link or ""):
        name = f"[{name}]({licence.license_link})"
    return (
        f"{name}, copied from {markdown_cell(licence.source)}. The training data may ask for more."
    )
