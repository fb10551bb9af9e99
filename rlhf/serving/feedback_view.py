"""Numbers and exports of a feedback store, as plain data for the app."""

import csv
import io
from dataclasses import asdict

from rlhf.errors import UserError

FORMS = ("rankings", "pairs", "labels", "demonstrations", "table", "events")
LARGEST_EXPORT = 50_000_000  # characters


def numbers(store) -> dict:
    """Counts, tie rate, position bias, agreement and strengths of a store; lists of problems where there are some."""
    from rlhf.feedback.agreement import agreement
    from rlhf.feedback.counts import count
    from rlhf.feedback.strengths import strengths

    events = list(store.events())
    counts = count(events)
    facts = asdict(counts) | {
        "total": counts.total,
        "tie_rate": counts.tie_rate,
        "left_rate": counts.left_rate,
        "people": len([name for name in counts.annotators if name]),
        "agreement": asdict(agreement(events)),
        "problems": list(store.problems),
    }
    facts.pop("annotators")
    try:
        facts["strengths"] = [asdict(row) for row in strengths(events)]
    except UserError as error:  # too few comparisons
        facts["strengths"], facts["strengths_problem"] = [], str(error)
    return facts


def export(store, form: str) -> tuple[str, str]:
    """(file name, content) of an export; form: of FORMS. UserError where there is nothing to export."""
    if form not in FORMS:
        raise UserError(f"no export {form!r}: one of {', '.join(FORMS)}")
    from rlhf.feedback import export as forms
    from rlhf.feedback.events import to_row

    events = list(store.events())
    if form == "table":
        name, content = "feedback.csv", forms.table(events)
    elif form == "events":
        name, content = "events.jsonl", forms.jsonl(to_row(event) for event in events)
    else:
        name, content = f"{form}.jsonl", forms.jsonl(getattr(forms, form)(events))
    if not content.strip() or (form == "table" and is_only_a_header(content)):
        raise UserError(f"the feedback has no {form} yet")
    if len(content) > LARGEST_EXPORT:
        raise UserError(f"the export has {len(content):,} characters: take {store.folder} itself")
    return name, content


def is_only_a_header(table: str) -> bool:
    """True for a CSV table without a row."""
    return sum(1 for _ in csv.reader(io.StringIO(table))) < 2
