"""Named entities are scored as a whole: an entity is right only if its type and both of its ends are.

Precision, recall and F1 are seqeval's (strict, IOB2), micro-averaged over all entities.
"""

import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rlhf.runs.plots import saved_figure
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
    """precision, recall and f1 over all entities, and token_accuracy. truth, predicted: sentences of BIO tags."""
    # seqeval loads scikit-learn, which takes a second
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    # seqeval takes lists only
    truth = [list(tags) for tags in truth]
    predicted = [list(tags) for tags in predicted]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # seqeval warns if a model marks nothing; the score of 0 says so
        precision, recall, f1, _ = precision_recall_fscore_support(
            truth, predicted, average="micro", scheme=IOB2, zero_division=0
        )
    right = total = 0
    for true_tags, predicted_tags in zip(truth, predicted, strict=True):
        pairs = zip(true_tags, predicted_tags, strict=True)
        right += sum(true == marked for true, marked in pairs)
        total += len(true_tags)
    return {
        "precision": float(precision),
        "recall": float(recall),
        "f1": float(f1),
        "token_accuracy": right / total,
    }


@dataclass
class _TypeCounts:
    """The number of entities, of marks, and of marks that are right, by type."""

    entities: Counter[str] = field(default_factory=Counter)
    marked: Counter[str] = field(default_factory=Counter)
    right: Counter[str] = field(default_factory=Counter)

    def add(self, true: Sequence[Entity], marked: Sequence[Entity]) -> None:
        self.entities.update(_types(true))
        self.marked.update(_types(marked))
        self.right.update(_types(set(true) & set(marked)))

    def scores(self) -> list[dict]:
        """precision, recall, f1 and counts of each type, in alphabetical order."""
        return [self._scores_of(kind) for kind in sorted(self.entities | self.marked)]

    def _scores_of(self, kind: str) -> dict:
        entities, marked, right = self.entities[kind], self.marked[kind], self.right[kind]
        return {
            "type": kind,
            # 0 where the quotient has no meaning: then nothing is right
            "precision": right / max(marked, 1),
            "recall": right / max(entities, 1),
            "f1": 2 * right / (entities + marked),
            "entities": entities,
            "marked": marked,
        }


def _types(spans: Iterable[Entity]) -> list[str]:
    return [kind for kind, _, _ in spans]


def tagging_report(
    truth: Sequence[Sequence[str]],
    predicted: Sequence[Sequence[str]],
    sentences: Sequence[Sequence[str]],
) -> dict:
    """Scores of the marked entities: `entity_scores`, and

    types: precision, recall, F1, entities and marks of each type.
    errors: how many there are of each of ERROR_KINDS.
    confusions: error, type, marked type, count and an example, the most frequent first.

    truth, predicted: BIO tags of each sentence. sentences: their tokens.
    """
    counts = _TypeCounts()
    # (error, type, marked type) -> the words of each
    examples: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for true_tags, predicted_tags, tokens in zip(truth, predicted, sentences, strict=True):
        true, marked = entities(true_tags), entities(predicted_tags)
        counts.add(true, marked)
        for error in find_errors(true, marked, tokens):
            examples[error[:3]].append(error.example)

    errors = dict.fromkeys(ERROR_KINDS, 0)
    confusions = []
    # sorted() is stable: of equally frequent confusions the one that occurred first comes first
    for key in sorted(examples, key=lambda key: -len(examples[key])):
        kind, true_type, marked_type = key
        count = len(examples[key])
        errors[kind] += count
        confusions.append(
            {
                "error": kind,
                "entity": true_type,
                "marked": marked_type,
                "count": count,
                "example": examples[key][0],
            }
        )
    return {
        **entity_scores(truth, predicted),
        "sentences": len(truth),
        "entities": counts.entities.total(),
        "types": counts.scores(),
        "errors": errors,
        "confusions": confusions,
    }


class EntityError(NamedTuple):
    """kind: one of ERROR_KINDS. entity, marked: the types, "" where there is none. example: the words."""

    kind: str
    entity: str
    marked: str
    example: str


def find_errors(
    true: Sequence[Entity], marked: Sequence[Entity], tokens: Sequence[str]
) -> list[EntityError]:
    """An error for each entity that is not marked exactly, and for each mark that touches no entity.

    A mark that touches a missed entity belongs to that entity's error.
    """
    errors = []
    # sorted, so that the order is the same in every run
    for entity in sorted(set(true) - set(marked)):
        entity_type = entity[0]
        words = _words(entity, tokens)
        touching = _touching(entity, marked)
        if not touching:
            errors.append(EntityError("missed", entity_type, "", words))
            continue
        same_place = [mark for mark in touching if mark[1:] == entity[1:]]
        same_type = [mark for mark in touching if mark[0] == entity_type]
        # Of several marks that touch the entity, the most similar one names the error.
        if same_place:
            kind, mark = "type", same_place[0]
        elif same_type:
            kind, mark = "boundary", same_type[0]
        else:
            kind, mark = "type and boundary", touching[0]
        example = f"{words} → {_words(mark, tokens)}"
        errors.append(EntityError(kind, entity_type, mark[0], example))
    for mark in marked:
        if not _touching(mark, true):
            errors.append(EntityError("invented", "", mark[0], _words(mark, tokens)))
    return errors


def _touching(entity: Entity, others: Sequence[Entity]) -> list[Entity]:
    """Those of the others that share a unit with the entity."""
    _, first, last = entity
    return [other for other in others if other[1] <= last and first <= other[2]]


def _words(entity: Entity, tokens: Sequence[str]) -> str:
    _, first, last = entity
    return " ".join(tokens[first : last + 1])


def wrong_sentences(rows: Sequence[dict], predicted: Sequence[Sequence[str]]) -> list[dict]:
    """The rows with an error, the most errors first: tokens, tags, predicted tags, and the errors in words."""
    wrong = []
    for row, predicted_tags in zip(rows, predicted, strict=True):
        errors = find_errors(entities(row["tags"]), entities(predicted_tags), row["tokens"])
        if not errors:
            continue
        described = [
            f"{error.kind}: {error.example} ({error.entity or error.marked})" for error in errors
        ]
        wrong.append(
            {
                "tokens": row["tokens"],
                "tags": row["tags"],
                "predicted": list(predicted_tags),
                "errors": described,
            }
        )
    return sorted(wrong, key=lambda row: -len(row["errors"]))


def plot_entities(report: dict, path) -> None:
    """F1 of each type as a bar, with the number of its entities; at most READABLE types, the most frequent."""
    # the most frequent type last, which barh draws at the top
    by_frequency = sorted(report["types"], key=lambda entry: entry["entities"])
    types = by_frequency[-READABLE:]
    title = (
        f"{report['entities']} entities in {report['sentences']} held-out sentences, "
        f"F1 {report['f1']:.3f}"
    )
    omitted = len(by_frequency) - len(types)
    if omitted:
        title += f"; the {READABLE} most frequent types, {omitted} more"
    # 0.35 inches for each bar
    with saved_figure(path, figsize=(7, 1.4 + 0.35 * len(types))) as (figure, axis):
        positions = range(len(types))
        bars = axis.barh(positions, [entry["f1"] for entry in types])
        captions = [f"{entry['f1']:.3f}  ({entry['entities']})" for entry in types]
        axis.bar_label(bars, captions, padding=3, fontsize=8)
        axis.set_yticks(positions, [shortened(entry["type"]) for entry in types])
        # room for the captions of bars that reach 1
        axis.set(xlim=(0, 1.2), xlabel="F1 (entities)")
        axis.set_xticks([0, 0.2, 0.4, 0.6, 0.8, 1])
        figure.suptitle(title, fontsize=10)
