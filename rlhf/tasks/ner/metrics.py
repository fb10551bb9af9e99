"""Judging a tagger by entities: right is only what has the right type and both ends in the right place.

Precision, recall and F1 are seqeval's (strict, IOB2), micro-averaged over all entities.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Sequence

from rlhf.tasks.classification.metrics import READABLE, shortened
from rlhf.tasks.ner.encode import Entity, entities

ERROR_KINDS = {
    "missed": "an entity where nothing was marked",
    "invented": "marked where no entity is",
    "boundary": "the right type with a wrong end",
    "type": "both ends right, the type wrong",
    "type and boundary": "an entity of another type that only overlaps",
}


def entity_scores(
    truth: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]
) -> dict[str, float]:
    """precision, recall and f1 over all entities, and token_accuracy; sentences of BIO tags."""
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    truth, predicted = [list(tags) for tags in truth], [list(tags) for tags in predicted]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # seqeval warns of a model that marks nothing; 0 says it
        scores = precision_recall_fscore_support(
            truth, predicted, average="micro", scheme=IOB2, zero_division=0
        )
    pairs = [
        pair for tags in zip(truth, predicted, strict=True) for pair in zip(*tags, strict=True)
    ]
    names = ("precision", "recall", "f1")
    return {name: float(score) for name, score in zip(names, scores)} | {
        "token_accuracy": sum(right == said for right, said in pairs) / len(pairs)
    }


def tagging_report(
    truth: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    sentences: Sequence[Sequence[str]],
) -> dict:
    """How well entities are marked: entity_scores, and

    types: precision, recall, F1, entities, marked of each; errors: how many of each kind of ERROR_KINDS; confusions: kind,
    type, what was marked, how often, an example, the most frequent first. sentences: their tokens.
    """
    of_type = {"entities": Counter(), "marked": Counter(), "right": Counter()}
    mistakes: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for right, said, tokens in zip(truth, predicted, sentences, strict=True):
        true, marked = entities(right), entities(said)
        for name, found in (
            ("entities", true),
            ("marked", marked),
            ("right", set(true) & set(marked)),
        ):
            of_type[name].update(kind for kind, _, _ in found)
        for kind, wanted, got, example in find_errors(true, marked, tokens):
            mistakes[kind, wanted, got].append(example)
    kinds = Counter()
    for (kind, _, _), examples in mistakes.items():
        kinds[kind] += len(examples)
    return {
        **entity_scores(truth, predicted),
        "sentences": len(truth),
        "entities": of_type["entities"].total(),
        "types": [
            _type_scores(kind, of_type) for kind in sorted(of_type["entities"] | of_type["marked"])
        ],
        "errors": {kind: kinds[kind] for kind in ERROR_KINDS},
        "confusions": [
            {
                "error": kind,
                "entity": wanted,
                "marked": got,
                "count": len(examples),
                "example": examples[0],
            }
            for (kind, wanted, got), examples in sorted(
                mistakes.items(), key=lambda item: -len(item[1])
            )
        ],
    }


def _type_scores(kind: str, of_type: dict[str, Counter]) -> dict:
    entities, marked, right = (of_type[name][kind] for name in ("entities", "marked", "right"))
    return {
        "type": kind,
        "precision": right / marked if marked else 0.0,
        "recall": right / entities if entities else 0.0,
        "f1": 2 * right / (entities + marked),
        "entities": entities,
        "marked": marked,
    }


def find_errors(
    true: Sequence[Entity], marked: Sequence[Entity], tokens: Sequence[str]
) -> list[tuple[str, str, str, str]]:
    """(kind of ERROR_KINDS, type of the entity, type that was marked, example) for each entity that is not marked exactly,

    and for each mark that touches no entity. A mark that touches a missed entity belongs to that entity's error.
    """

    def touching(one: Entity, others: Sequence[Entity]) -> list[Entity]:
        return [other for other in others if other[1] <= one[2] and one[1] <= other[2]]

    def text(entity: Entity) -> str:
        return " ".join(tokens[entity[1] : entity[2] + 1])

    errors = []
    for entity in sorted(set(true) - set(marked)):
        touched = touching(entity, marked)
        same_type = [mark for mark in touched if mark[0] == entity[0]]
        same_place = [mark for mark in touched if mark[1:] == entity[1:]]
        if not touched:
            errors.append(("missed", entity[0], "", text(entity)))
            continue
        mark = (same_place or same_type or touched)[0]
        kind = "type" if same_place else "boundary" if same_type else "type and boundary"
        errors.append((kind, entity[0], mark[0], f"{text(entity)} → {text(mark)}"))
    for mark in marked:
        if not touching(mark, true):
            errors.append(("invented", "", mark[0], text(mark)))
    return errors


def wrong_sentences(rows: Sequence[dict], predicted: Sequence[Sequence[str]]) -> list[dict]:
    """The rows with an error, the most errors first: their tokens, tags, predicted tags, and errors as sentences."""
    wrong = []
    for row, said in zip(rows, predicted, strict=True):
        errors = find_errors(entities(row["tags"]), entities(said), row["tokens"])
        if errors:
            named = [
                f"{kind}: {example} ({wanted or marked})"
                for kind, wanted, marked, example in errors
            ]
            wrong.append(
                {
                    "tokens": row["tokens"],
                    "tags": row["tags"],
                    "predicted": list(said),
                    "errors": named,
                }
            )
    return sorted(wrong, key=lambda row: -len(row["errors"]))


def plot_entities(report: dict, path) -> None:
    """F1 of each type as a bar, with the number of its entities."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    types = sorted(report["types"], key=lambda entry: entry["entities"])[-READABLE:]
    figure, axis = plt.subplots(figsize=(7, 1.4 + 0.35 * len(types)), layout="constrained")
    bars = axis.barh(range(len(types)), [entry["f1"] for entry in types])
    axis.bar_label(
        bars,
        [f"{entry['f1']:.3f}  ({entry['entities']})" for entry in types],
        padding=3,
        fontsize=8,
    )
    axis.set_yticks(range(len(types)), [shortened(entry["type"]) for entry in types])
    axis.set(xlim=(0, 1.2), xlabel="F1 (entities)")
    axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
    more = len(report["types"]) - len(types)
    figure.suptitle(
        f"{report['entities']} entities in {report['sentences']} held-out sentences, F1 {report['f1']:.3f}"
        + (f"; the {READABLE} most frequent types, {more} more" if more else ""),
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    plt.close(figure)
