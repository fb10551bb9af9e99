"""The YAML that the Hub reads at the top of a model card: base model, data, licence, languages, task, tags and results.

Nothing is invented: the licence and the languages are copied from the base model's card, and an unknown licence is `other`.
"""

import math
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

from rlhf.runs.ancestry import Node, base_of, is_hub_data, lineage_of, origins
from rlhf.runs.card_snippets import has_chat_template, is_adapter
from rlhf.runs.card_tables import number_of_examples
from rlhf.runs.public_names import PublicNames
from rlhf.runs.record import RunRecord, model_kind
from rlhf.task_table import TASKS

# Recipe that is not a task of TASKS -> kind of model. The kind decides pipeline_tag, snippet and limits.
KINDS = {
    "tokenizer": "tokenizer",
    "word_vectors": "word_vectors",
    "pretrain": "causal",
    "sft": "causal",
    "reward": "reward",
    "dpo": "causal",
    "kto": "causal",
    "ilql": "causal",
    "ppo": "causal",
    "seq2seq": "seq2seq",
}
# Kind of model -> the Hub's name of its task.
PIPELINES = {
    "causal": "text-generation",
    "chat": "text-generation",
    "masked": "fill-mask",
    "reward": "text-classification",
    "word_vectors": "feature-extraction",
    "seq2seq": "text2text-generation",
} | {name: task.pipeline for name, task in TASKS.items()}
# Licences of models whose card was not read, as after a start offline.
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
# Recipe -> metric of its record -> (the Hub's name of it, its name for people).
HUB_METRICS = {
    "pretrain": {"perplexity": ("perplexity", "Perplexity of held-out text")},
    "sft": {
        "token_accuracy": ("accuracy", "Accuracy of the next token of held-out answers"),
        "eval_loss": ("loss", "Loss on held-out answers"),
    },
    "reward": {"accuracy": ("accuracy", "Accuracy on pairs of ranked answers")},
    "dpo": {"accuracy": ("accuracy", "Accuracy of the implicit reward on pairs of ranked answers")},
    "ilql": {"q_correlation": ("spearmanr", "Rank correlation of Q and score on held-out answers")},
    "kto": {"auc": ("roc_auc", "Area under the curve of the implicit reward")},
    "ppo": {"score": ("reward", "Mean score of the reward model")},
    "seq2seq": {
        "chrf": ("chrf", "chrF of texts that were written for held-out sources"),
        "bleu": ("bleu", "BLEU of texts that were written for held-out sources"),
    },
}
VALUE_MODEL = "value_model"  # the folder of a policy's value function


@dataclass
class Card:
    """All that the sections of a card are made from.

    folder: of the model. record: of its run. kind: a key of SNIPPETS. title: the model's name without its owner.
    model_id: the name that the snippet loads. adapter: True for LoRA matrices alone.
    """

    folder: Path
    record: RunRecord
    root: Node
    names: PublicNames
    kind: str
    title: str
    model_id: str
    adapter: bool = False


@dataclass
class Licence:
    """A licence as the Hub names it. source: the model that it is copied from, "" where it is not known."""

    license: str = "other"
    license_name: str | None = None
    license_link: str | None = None
    source: str = ""


def front_matter(folder: Path, record: RunRecord) -> dict:
    """The metadata of a run, as a dictionary."""
    root = lineage_of(record, folder)
    names = PublicNames(root)
    title = shown_path(folder, record).split("/")[-1]
    kind = kind_of(folder, record)
    card = Card(folder, record, root, names, kind, title, title, is_adapter(folder))
    return metadata(card)


def metadata(card: Card) -> dict:
    """The metadata that the Hub reads, as a dictionary. Its results are in `model-index`."""
    record, kind = card.record, card.kind
    licence = licence_of(card.root)
    base = base_model_of(card)
    relation = None
    if base:
        relation = "adapter" if card.adapter else "finetune"
    # Local files would be dead links.
    sources = set()
    for entry in record.data:
        name = str(entry.get("name", ""))
        if is_hub_data(entry) or name in card.names.hub_ids:
            sources.add(card.names(name))
    tags = ["rlhf", record.recipe, record.config.get("algorithm")]
    if kind == "reward":
        tags.append("reward-model")
    if kind == "value":
        tags.append("value-model")
    if card.adapter:
        tags.append("lora")
    results = evaluations(card)
    data = ModelCardData(
        library_name="peft" if card.adapter else "transformers",
        license=licence.license,
        license_name=licence.license_name,
        license_link=licence.license_link,
        language=language_of(card.root),
        base_model=base,
        datasets=sorted(sources) or None,
        pipeline_tag=PIPELINES.get(kind),
        # A run of recipes/ppo.py with algorithm ppo has this tag once.
        tags=list(dict.fromkeys(str(tag) for tag in tags if tag)),
        eval_results=results or None,
        model_name=card.title if results else None,
        base_model_relation=relation,
    )
    return data.to_dict()


def base_model_of(card: Card) -> str | None:
    """The Hub id of the nearest model whose weights this one goes back to; None for one from scratch."""
    for origin in origins(card.root):
        if origin.name in card.names.hub_ids:
            return card.names.hub_ids[origin.name]
        if origin.is_on_hub:
            break
    return base_of(card.root)


def licence_of(root: Node) -> Licence:
    """The licence that the nearest model with one states on its card; `other` where none does."""
    for origin in origins(root):
        stated = origin.entry.get("license")
        if isinstance(stated, str):
            # A local run has it from its own base.
            name = origin.name if origin.is_on_hub else base_of(root) or Path(origin.name).name
            facts = {key: origin.entry.get(key) for key in ("license_name", "license_link")}
            return Licence(stated, **facts, source=name)
        if origin.is_on_hub and origin.name in LICENCES:
            return Licence(LICENCES[origin.name], source=origin.name)
    return Licence()


def language_of(root: Node) -> str | list[str] | None:
    """The languages that the nearest model with some states on its card."""
    for origin in origins(root):
        if origin.entry.get("language"):
            return origin.entry["language"]
    return None


# ---- results -----------------------------------------------------------------------------------------------------


def evaluations(card: Card) -> list[EvalResult]:
    """Final numbers in the form that the Hub lists, with n and seed; [] where the record holds none, or no data."""
    record, kind = card.record, card.kind
    if not record.data or kind not in PIPELINES:
        return []
    if kind in TASKS:
        listed = {ours: (theirs, ours) for ours, theirs in TASKS[kind].hub_metrics.items()}
    else:
        listed = HUB_METRICS.get(record.recipe, {})
    arguments = {"seed": record.seed}
    n = number_of_examples(card.folder, record)
    if n is not None:
        arguments["n"] = n
    # The last data set is the one that was evaluated on.
    source = record.data[-1]
    name = str(source.get("name", ""))
    shown = card.names(name)
    if shown == name and not is_hub_data(source):
        shown = Path(name).name
    results = []
    for ours, (theirs, title) in listed.items():
        value = record.metrics.get(ours)
        # A run that failed has no numbers, and one of numbers has no accuracy.
        if not isinstance(value, int | float) or not math.isfinite(value):
            continue
        result = EvalResult(
            task_type=PIPELINES[kind],
            dataset_type=shown,
            dataset_name=shown,
            dataset_revision=source.get("revision") or None,
            metric_type=theirs,
            metric_name=title,
            metric_value=value,
            metric_args=arguments,
        )
        results.append(result)
    return results


# ---- kinds and names ---------------------------------------------------------------------------------------------


def kind_of(folder: Path, record: RunRecord) -> str:
    """A key of SNIPPETS: by config.json, or by the recipe where there is none."""
    if folder.name == VALUE_MODEL:
        return "value"
    kind = model_kind(folder)
    if not kind:
        kind = record.recipe if record.recipe in TASKS else KINDS.get(record.recipe, "causal")
    # Only the template tells a chat model from a plain language model.
    if kind == "causal" and has_chat_template(folder):
        return "chat"
    return kind


def shown_path(folder: Path, record: RunRecord) -> str:
    """The folder as the command named it; of an absolute path only the last part, which says enough."""
    # A folder that was moved is named as it is now.
    path = Path(record.config.get("output_dir") or folder)
    name = folder.resolve().name
    if path.is_absolute() or path.name != name:
        return name
    return path.as_posix()
