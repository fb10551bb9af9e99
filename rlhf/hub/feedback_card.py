"""The card of a feedback data set: its origin, its counts, its columns, and how to train on it."""

import json
from collections import Counter

from huggingface_hub import DatasetCardData

from rlhf.feedback.agreement import Agreement, AgreementTally
from rlhf.feedback.counts import Counts, CountTally
from rlhf.feedback.events import Event, ModelUsed, Rating
from rlhf.markdown import fenced, markdown_table

NO_REPO = "USER/NAME"  # in the snippets of a card whose repository has no name yet
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
)
LARGEST = "n>1M"  # of the Hub's names of sizes
COLUMNS = (
    ("prompt", "the conversation before the answers: `role` and `content` of each message"),
    ("completions", "rankings: the different answers"),
    ("ranks", "rankings: 0 is the best, ties share a rank"),
    ("completion, label", "ratings: one answer, and true for a thumb up"),
    ("reason", "ratings: why, in the annotator's own words; may be empty"),
    ("models, model", "the names of the models; empty for an answer that the annotator wrote"),
    ("revisions, revision", "sha256 of the weights, or the commit of a model of the Hub"),
    ("judgement", "`ranking`, `comparison` or `rating`"),
    ("annotator", "16 digits that tell people apart in this data set alone; empty without a name"),
    ("day", "of the judgement"),
    ("source", "`app` for a person in the browser, `api` for a client, `import` for another tool"),
    ("id", "of the judgement, in this data set alone"),
)
LICENCE = (
    "No licence was chosen: `license: other` says only that. The answers were written by the models above, whose own "
    "licences may limit their use. The owner of this data set should choose a licence and write it into this card."
)
LIMITS = (
    "The judgements are opinions of few people about answers of few models. A reward model that learns from them learns "
    "these opinions. What people wrote was not checked: it may be wrong, rude or private. Do not use it to find out who "
    "the annotators are. Ask for the removal of a judgement by its `id`."
)


class CardTally:
    """Takes the events as they are published, one by one, and keeps the numbers of the card."""

    def __init__(self):
        self.events = 0
        self.counts = CountTally()
        self.agreement = AgreementTally()
        self.answers: Counter[tuple[str, str, str]] = Counter()  # by model
        self.sources: Counter[str] = Counter()
        self.days: set[str] = set()

    def add(self, event: Event) -> None:
        self.events += 1
        self.counts.add(event)
        self.agreement.add(event)
        self.sources[event.source] += 1
        # Days are all that is left of the times.
        self.days.add(event.time)
        # A rating has one answer, the others have several.
        shown = [event.model] if isinstance(event, Rating) else [a.model for a in event.answers]
        for model in shown:
            model = model or ModelUsed("(written by annotators)", "")
            self.answers[model.name, model.path, model.revision] += 1


def feedback_card(tally: CardTally, *, repo: str, counts: tuple[int, int], first: dict) -> str:
    """The README of the data set, with its metadata. The same events give the same text.

    tally: of all events that are published. counts: of rankings and of ratings. first: a row, shown as an example.
    """
    rankings, ratings = counts
    name = repo or NO_REPO
    numbers = tally.counts.result()
    parts = [
        f"---\n{metadata(rankings, ratings)}\n---",
        f"# {name.rpartition('/')[2]}",
        "What people said about answers of chat models, collected in a chat app: "
        "thumbs, blind comparisons and rankings. "
        "All of them agreed that it is published.",
        section("Numbers", numbers_table(numbers, tally.agreement.result(), counts)),
        section("Models", models_table(tally.answers)),
        section("Columns", markdown_table(("column", "meaning"), COLUMNS).replace("\\`", "`")),
        section("A row", fenced(json.dumps(first, ensure_ascii=False, indent=2), "json")),
        section("Use", use(name, rankings, ratings)),
        section("How it was made", origin(tally)),
        section("Licence", LICENCE),
        section("Limits", LIMITS),
    ]
    return "\n\n".join(parts) + "\n"


def section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}"


def metadata(rankings: int, ratings: int) -> str:
    """The YAML of the card. The viewer of the Hub and `load_dataset` read which file is which from it."""
    configs = []
    if rankings:
        configs.append({"config_name": "rankings", "data_files": "train.jsonl", "default": True})
    if ratings:
        config = {"config_name": "ratings", "data_files": "ratings.jsonl"}
        # A data set needs one that is loaded without a name.
        if not rankings:
            config["default"] = True
        configs.append(config)
    card = DatasetCardData(
        license="other",
        task_categories=["text-generation"],
        size_categories=[size_of(rankings + ratings)],
        tags=["rlhf", "human-feedback", "preference"],
        configs=configs,
    )
    return card.to_yaml()


def size_of(rows: int) -> str:
    """The Hub's name for a number of rows."""
    for most, name in SIZES:
        if rows < most:
            return name
    return LARGEST


def numbers_table(numbers: Counts, agreed: Agreement, counts: tuple[int, int]) -> str:
    """Counts of rows, people and prompts, ties, the bias of position and the agreement."""
    rankings, ratings = counts
    # Without a name two people look like one.
    people = len([name for name in numbers.annotators if name])
    rows = [("rows of rankings", rankings), ("rows of ratings", ratings)]
    for kind, total in sorted(numbers.kinds.items()):
        rows.append((f"judgements: {kind}", total))
    rows += [("people with a name", people), ("different prompts", numbers.prompts)]
    if numbers.annotators.get(""):
        rows.append(("judgements without a name", numbers.annotators[""]))
    if numbers.tie_rate is not None:
        rows.append(("ties among the pairs", f"{numbers.tie_rate:.1%} of {numbers.pairs}"))
    if numbers.left_rate is not None:
        share, low, high = numbers.left_rate
        interval = f"{share:.1%} ({low:.1%} to {high:.1%}), n = {numbers.decided}"
        rows.append(("decided comparisons that the left answer won, 95 % interval", interval))
    if agreed.alpha is not None:
        value = f"{agreed.alpha:.2f}"
        if agreed.low is not None:
            value += f" ({agreed.low:.2f} to {agreed.high:.2f})"
        name = f"agreement on {agreed.pairs} pairs (Krippendorff's alpha, 95 % interval)"
        rows.append((name, value))
    return markdown_table(("", "number"), rows, right=1)


def models_table(answers: Counter[tuple[str, str, str]]) -> str:
    """The models whose answers were shown, with the number of their answers."""
    rows = []
    for (name, path, revision), total in sorted(answers.items()):
        # Models of the Hub have a path, which is their id.
        rows.append((path or name, revision[:16] or "-", total))
    return markdown_table(("model", "revision", "answers"), rows, right=2)


def use(name: str, rankings: int, ratings: int) -> str:
    """The lines that load the data set, and those that train on it."""
    lines = ["from datasets import load_dataset", ""]
    if rankings:
        lines.append(f'rankings = load_dataset("{name}", "rankings", split="train")')
    if ratings:
        lines.append(f'ratings = load_dataset("{name}", "ratings", split="train")')
    text = fenced("\n".join(lines), "python")
    if rankings:
        train = (
            f"rlhf reward --dataset_name {name} --model_name_or_path MODEL --output_dir runs/reward"
        )
        text += f"\n\nA reward model learns from the rankings as they are:\n\n{fenced(train, 'sh')}"
    return text


def origin(tally: CardTally) -> str:
    """The paragraph about the time, the people and the way in which the judgements were made."""
    sources = tally.sources
    lines = [
        f"From {min(tally.days)} to {max(tally.days)}.",
        f"{sources['app']} judgements were made by people in the browser.",
    ]
    if sources["api"]:
        # A script has no opinion.
        lines.append(
            f"{sources['api']} came from clients of the API, which may be scripts and not people."
        )
    if sources["import"]:
        lines.append(f"{sources['import']} were imported from other tools.")
    lines.append(
        "In comparisons and rankings the names of the models were hidden and the answers were in a random order. Judgements "
        "without consent were left behind. Names are hashed with a secret that is not published."
    )
    return " ".join(lines)
