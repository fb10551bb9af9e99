"""Numbers and exports of a feedback store, as plain data for the app."""

from dataclasses import asdict

from rlhf.errors import UserError

FORMS = ("rankings", "pairs", "labels", "demonstrations", "table", "events")
LARGEST_EXPORT = 50_000_000  # characters


def numbers(store) -> dict:
    """Counts, tie rate, position bias, agreement and strengths of a store; lists of problems where there are some."""
    from rlhf.feedback.agreement import AgreementTally
    from rlhf.feedback.counts import CountTally
    from rlhf.feedback.strengths import WinTally, strengths_of

    counting, agreeing, winning = CountTally(), AgreementTally(), WinTally()
    for event in store.events():
        for tally in (counting, agreeing, winning):
            tally.add(event)
    counts = counting.result()
    facts = asdict(counts) | {
        "total": counts.total,
        "tie_rate": counts.tie_rate,
        "left_rate": counts.left_rate,
        "people": len([name for name in counts.annotators if name]),
        "agreement": asdict(agreeing.result()),
        "problems": list(store.problems),
    }
    facts.pop("annotators")
    try:
        facts["strengths"] = [asdict(row) for row in strengths_of(*winning.result())]
    except UserError as error:  # too few comparisons
        facts["strengths"], facts["strengths_problem"] = [], str(error)
    return facts


def export(store, form: str) -> tuple[str, str]:
    """(file name, content) of an export; form: of FORMS. UserError where there is nothing to export."""
    if form not in FORMS:
        raise UserError(f"no export {form!r}: one of {', '.join(FORMS)}")
    from rlhf.feedback import export as forms
    from rlhf.feedback.events import to_row

    events = store.events()
    if form == "table":
        name, lines = "feedback.csv", forms.table_lines(events)
    elif form == "events":
        name, lines = "events.jsonl", forms.json_lines(to_row(event) for event in events)
    else:
        name, lines = f"{form}.jsonl", forms.json_lines(getattr(forms, form)(events))
    taken = []
    characters = 0
    for line in lines:
        taken.append(line)
        characters += len(line)
        # Known before all of it is in memory.
        if characters > LARGEST_EXPORT:
            raise UserError(
                f"the export has more than {LARGEST_EXPORT:,} characters: take {store.folder} itself, which the recipes read"
            )
    # The first line of a table is its header.
    if len(taken) < (2 if form == "table" else 1):
        raise UserError(f"the feedback has no {form} yet")
    return name, "".join(taken)
