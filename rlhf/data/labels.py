"""Labelled texts: the names of the labels, and texts -> tokens with the number of their label."""

from collections.abc import Sequence

from rlhf.errors import UserError


def label_names(rows: Sequence[dict]) -> list[str]:
    """The labels of the training rows as strings: whole numbers by size, everything else by the alphabet."""
    names = {str(row["label"]) for row in rows}
    if len(names) < 2:
        raise UserError(f"all {len(rows)} training rows have the label {names.pop()!r}: a classifier needs two or more")
    whole = all(name.removeprefix("-").isdecimal() for name in names)
    return sorted(names, key=lambda name: (int(name), name) if whole else name)


def check_labels(rows: Sequence[dict], labels: Sequence[str]) -> None:
    """UserError where evaluation rows have a label that no training row has."""
    unknown: dict[str, list[int]] = {}
    for place, row in enumerate(rows, start=1):
        if str(row["label"]) not in labels:
            unknown.setdefault(str(row["label"]), []).append(place)
    if not unknown:
        return
    shown = []
    for label, places in sorted(unknown.items())[:10]:
        more = f" and {len(places) - 5} more" if len(places) > 5 else ""
        shown.append(f"{label!r} in evaluation row{'s' * (len(places) > 1)} {', '.join(map(str, places[:5]))}{more}")
    others = f", and {len(unknown) - 10} labels more" if len(unknown) > 10 else ""
    known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    raise UserError(
        f"no training row has the label {'; '.join(shown)}{others}. Labels of the training rows: {known}. Give them "
        "rows with it, remove the evaluation rows, or, where one file is split, take another seed or eval_fraction"
    )


def encode(
    tokenizer, rows: Sequence[dict], labels: Sequence[str], *, pairs: bool, max_length: int
) -> tuple[list[dict], int]:
    """Rows of token ids with the number of their label, and how many were cut. No text can spell a special token."""
    if max_length <= tokenizer.num_special_tokens_to_add(pair=pairs) + pairs:
        raise UserError(f"max_length={max_length} leaves no room for a text: raise it, up to the model's context")
    texts = [[row[column] for row in rows] for column in ("text", "text_pair")[: 1 + pairs]]
    whole = tokenizer(*texts, split_special_tokens=True, verbose=False)["input_ids"]
    cut = tokenizer(*texts, split_special_tokens=True, truncation=True, max_length=max_length)
    number = {label: place for place, label in enumerate(labels)}
    columns = {**cut, "labels": [number[str(row["label"])] for row in rows]}
    encoded = [dict(zip(columns, values)) for values in zip(*columns.values())]
    return encoded, sum(len(ids) > max_length for ids in whole)
