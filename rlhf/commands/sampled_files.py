"""The folder that `rlhf sample` writes: what was sampled, the rows to train on, the record and the plot.

answers.jsonl: every answer to every prompt, best first: what the other files are made of.
part-N.jsonl: the answers of process N, as long as it samples. A killed command keeps them, and the next one goes on.
best.jsonl: demonstrations for SFT. ranked.jsonl: rankings for a reward model or DPO.
sample.json: the record: models and data with their hashes, settings, counts, scores of the best of 1 to n.
best_of_n.png: that curve.
"""

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import torch

from rlhf.completions.best_of_n import (
    Answer,
    Answers,
    best_of_means,
    demonstrations,
    is_blank,
    kl_bound,
    ranking,
    usable,
)
from rlhf.digests import file_sha256
from rlhf.errors import UserError
from rlhf.runs.durable import write_text
from rlhf.runs.parents import SAMPLE_RECORD
from rlhf.runs.plots import saved_figure
from rlhf.runs.record import read_object, read_rows
from rlhf.statistics import Z

ANSWERS, BEST, RANKED = "answers.jsonl", "best.jsonl", "ranked.jsonl"
PLOT = "best_of_n.png"
PART = "part-{}.jsonl"
# Of the record: what a command that goes on must share with the one before.
SAME = ("settings", "models", "data")
IDENTITY = ("name", "revision", "sha256", "files")  # of a model's entry. Its card may change.
# The note on kl_bound in the record.
KL_SOURCE = (
    "log n - (n - 1) / n, in nats per answer: an upper bound of KL(best of n || what was sampled from) (arXiv 2401.01879). "
    "What is sampled from includes temperature, top_p and top_k. It is not the KL of a model that is trained on the "
    "answers, and min_score and dropped answers are another choice than the best of n."
)


# ---- what was sampled --------------------------------------------------------------------------------------------


def as_row(answers: Answers) -> dict:
    """One line of answers.jsonl."""
    return {
        "row": answers.number,
        "prompt": answers.prompt,
        "answers": [asdict(answer) for answer in answers.answers],
    }


def from_row(row: dict) -> Answers:
    return Answers(row["row"], row["prompt"], [Answer(**answer) for answer in row["answers"]])


def append(path: Path, answers: Iterable[Answers]) -> None:
    """Add prompts with their answers to a file, and wait until they are on the disk."""
    lines = [json.dumps(as_row(item), ensure_ascii=False) + "\n" for item in answers]
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(lines))
        file.flush()
        os.fsync(file.fileno())


def gather(folder: Path) -> list[Answers]:
    """All answers so far, in the order of the data. The files of the processes become answers.jsonl."""
    parts = sorted(folder.glob(PART.format("*")))
    rows = {}
    # A torn line is of a process that was killed. It is sampled again.
    for path in (folder / ANSWERS, *parts):
        for row in read_rows(path)[0]:
            rows[row["row"]] = row
    # Processes end their chunks in any order.
    ordered = [rows[number] for number in sorted(rows)]
    if parts:
        write_rows(folder / ANSWERS, ordered)
        for path in parts:
            path.unlink()
    return [from_row(row) for row in ordered]


def write_rows(path: Path, rows: list[dict]) -> None:
    """Write a file of rows in one step. Without rows there is no file: no recipe reads an empty one."""
    if not rows:
        path.unlink(missing_ok=True)
        return
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    write_text(path, "".join(lines))


def check_same(folder: Path, record: dict) -> dict:
    """The record in the folder, which the new one continues; {} for a new folder. UserError where the two differ."""
    before = read_object(folder / SAMPLE_RECORD)
    if not before:
        # A command that is killed as it writes its first record leaves a part of it.
        own = f"{SAMPLE_RECORD}.tmp"
        names = sorted(path.name for path in folder.iterdir())
        others = [name for name in names if not name.startswith(".") and name != own]
        # A folder of something else is not written into.
        if others:
            raise UserError(
                f"--output {folder} holds {', '.join(others[:3])} and no {SAMPLE_RECORD}: give a new folder"
            )
        return {}
    # A command that was refused, or killed before its first answer, binds nobody.
    if not (folder / ANSWERS).exists() and not any(folder.glob(PART.format("*"))):
        return {}
    # As it comes back from the file: a tuple is a list there.
    for part in SAME:
        old, new = before.get(part), json.loads(json.dumps(record[part]))
        if part == "models":
            old, new = identities(old), identities(new)
        if old != new:
            raise UserError(
                f"--output {folder} was sampled with other {part} ({difference(old, new)}): give a new folder, or the same "
                "command to go on"
            )
    return before


def identities(models) -> dict:
    """Of each model of a record, what another model would not share: it stays the same when it is shared on the Hub."""
    if not isinstance(models, dict):
        return {}
    facts = {}
    for role, entry in models.items():
        for name in IDENTITY:
            facts[f"{role} {name}"] = entry.get(name)
    return facts


def difference(old, new) -> str:
    """The first entry in which two values of a record differ."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return f"{old!r:.200}, now {new!r:.200}"
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            return f"{key}: {old.get(key)!r:.200}, now {new.get(key)!r:.200}"
    return ""


# ---- what is made of it ------------------------------------------------------------------------------------------


def write_results(folder: Path, record: dict, answers: list[Answers], *, rows: dict) -> dict:
    """Write best.jsonl, ranked.jsonl, the plot and sample.json. Returns the complete record.

    rows: keep, min_score, min_margin and keep_unended, which decide the rows to train on.
    """
    best, ranked, counts = rows_to_train_on(answers, **rows)
    write_rows(folder / BEST, best)
    write_rows(folder / RANKED, ranked)
    scores = torch.tensor([[answer.score for answer in item.answers] for item in answers])  # (P, n)
    curve = best_of_curve(scores)
    plot(curve, folder / PLOT)
    # A lineage knows by the digests that the rows are as they were written.
    files = {}
    for name, written in ((BEST, best), (RANKED, ranked)):
        if written:
            files[name] = {"rows": len(written), "sha256": file_sha256(folder / name)}
    record = record | {
        "status": "done",
        "rows": rows,
        "files": files,
        "counts": counts,
        "curve": curve,
        "kl_bound": KL_SOURCE,
    }
    save_record(folder, record)
    return record


def rows_to_train_on(
    answers: list[Answers],
    *,
    keep: int,
    min_score: float | None,
    min_margin: float,
    keep_unended: bool,
) -> tuple[list[dict], list[dict], dict[str, int]]:
    """(demonstrations, rankings, counts of what was sampled and dropped)."""
    best, ranked, counts = [], [], Counter()
    for item in answers:
        # Each count is of all answers: one may be cut off and repeated too.
        texts = [answer.completion for answer in item.answers]
        counts["answers"] += len(texts)
        counts["without end"] += sum(not answer.ended for answer in item.answers)
        counts["repeated"] += len(texts) - len(set(texts))
        counts["empty"] += sum(map(is_blank, texts))
        kept = usable(item, keep_unended=keep_unended)
        demonstrated = demonstrations(item.prompt, kept, keep=keep, min_score=min_score)
        best += demonstrated
        counts["prompts"] += 1
        counts["prompts without a demonstration"] += not demonstrated
        row = ranking(item.prompt, kept, min_margin=min_margin)
        if row is None:
            counts["prompts without a ranking"] += 1
        else:
            ranked.append(row)
    return best, ranked, dict(counts)


def best_of_curve(scores: torch.Tensor) -> list[dict]:
    """For each n up to that of the scores (P, n): the mean best score, its 95 % interval over prompts, and the KL bound."""
    means = best_of_means(scores)  # (P, n)
    count = len(means)
    curve = []
    for i, column in enumerate(means.T):
        mean = float(column.mean())
        point = {"n": i + 1, "score": mean, "kl_at_most": kl_bound(i + 1)}
        # One prompt has no spread.
        if count > 1:
            half = Z * float(column.std()) / count**0.5
            point |= {"low": mean - half, "high": mean + half}
        curve.append(point)
    return curve


def plot(curve: list[dict], path: Path) -> None:
    """Draw the mean best score against n, and against the bound of the KL."""
    means = [point["score"] for point in curve]
    # Score against KL is how policies are compared.
    with saved_figure(path, columns=2, figsize=(9, 3.5), sharey=True) as (_, axes):
        labels = {"n": "n", "kl_at_most": "KL to the sampling policy, at most (nats per answer)"}
        for axis, (key, label) in zip(axes, labels.items()):
            positions = [point[key] for point in curve]
            axis.plot(positions, means, marker="o", markersize=3)
            if "low" in curve[0]:
                low = [point["low"] for point in curve]
                high = [point["high"] for point in curve]
                axis.fill_between(positions, low, high, alpha=0.2)
            axis.set_xlabel(label)
        axes[0].set_xscale("log", base=2)
        axes[0].set_ylabel("mean score of the best of n")


def save_record(folder: Path, record: dict) -> None:
    text = json.dumps(record, indent=1, ensure_ascii=False)
    write_text(folder / SAMPLE_RECORD, text + "\n")
