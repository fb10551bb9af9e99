"""The E2E NLG challenge with its human ratings, as the files the e2e configs read.

    python recipes/e2e.py --source FOLDER --output runs/e2e/data

FOLDER holds devel-fixed.no-ol.csv.gz (cleaned facts -> text, Dusek et al. 2019), kwise_quality.jsonl.gz and
kwise_naturalness.jsonl.gz (rankings by people of up to five systems per list of facts, Novikova et al. 2018; a row is
prompt, completions, ranks). Licence CC BY-SA 4.0.
    demonstrations.jsonl  prompt (facts), completion (text)
    prompts.jsonl         the facts of the training rankings, each once: PPO learns little from facts that SFT has memorised
    {quality,naturalness}_{train,heldout}.jsonl   rankings; both hold out the same facts
    heldout.jsonl         the facts that no other file holds, to evaluate every stage on
Demonstrations and training rankings are there several times: as they are, and with other names, kitchens and kinds of place.
"""

import argparse
import json
import random
import re
from pathlib import Path

from rlhf.data.load import load_rows
from rlhf.data.splits import split_rows
from rlhf.errors import UserError
from rlhf.runs.replacement import replacement

HELD_OUT = 0.2  # share of the ranked facts
SEED = 0  # the split is a hash of the facts and this, so it is the same in both files of rankings
RANKINGS = ("quality", "naturalness")
COPIES = {"demonstrations": 12, "rankings": 4}
SLOT = re.compile(r"(\w[\w ]*)\[(.*?)\]")  # name[Alimentum]
# The demonstrations know 21 names, mostly coffee shops, mostly Chinese or English; the ranked facts are of pubs and other
# kitchens. A model that sees the same text with other values learns to copy them instead of learning the names by heart.
VALUES = {
    "eatType": ["restaurant", "coffee shop", "pub"],
    "food": ["Chinese", "English", "French", "Indian", "Fast food", "Japanese", "Italian"],
}
FIRST = "Golden Silver Old Little Green Red Royal Crooked Happy Quiet Stone Copper Ivory Hidden Lucky Bella Casa".split()
SECOND = "Lantern Fern Harbour Oak Anchor Swan Kettle Garden Bridge Table Fox Olive Maple Bell Orchard Lotus Roma".split()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="data/e2e", help="folder with the three files above")
    parser.add_argument("--output", default="runs/e2e/data", help="folder for the files")
    parser.add_argument("--seed", type=int, default=SEED, help="of the split of the ranked facts")
    arguments = parser.parse_args()
    output = Path(arguments.output)
    files = make(Path(arguments.source), arguments.seed)
    output.mkdir(parents=True, exist_ok=True)
    with replacement(output) as folder:
        for name, rows in files.items():
            lines = [json.dumps(row, ensure_ascii=False) for row in rows]
            (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    for name, rows in files.items():
        print(f"{output}/{name}.jsonl: {len(rows)} rows")


def make(source: Path, seed: int = SEED) -> dict[str, list[dict]]:
    """Rows by file name."""
    demonstrations = load_rows(
        str(source / "devel-fixed.no-ol.csv.gz"),
        kinds=("prompt_completion",),
        columns={"prompt": "mr", "completion": "ref"},
    ).rows
    demonstrations = only(demonstrations, ("prompt", "completion"))
    files = {"demonstrations": with_other_values(demonstrations, COPIES["demonstrations"])}
    asked, held_out = {}, set()
    for name in RANKINGS:
        rows = load_rows(str(source / f"kwise_{name}.jsonl.gz"), kinds=("ranking",)).rows
        rows = only(rows, ("prompt", "completions", "ranks"))
        train, heldout = split_rows(rows, HELD_OUT, seed=seed)
        files[f"{name}_train"] = with_other_values(train, COPIES["rankings"])
        files[f"{name}_heldout"] = heldout
        asked[name] = prompts(train)
        held_out |= prompts(heldout)
    # The demonstrations are other facts; this makes sure of it.
    trained_on = prompts(files["demonstrations"])
    for name in RANKINGS:
        trained_on |= prompts(files[f"{name}_train"])
    both = held_out & trained_on
    if both:
        raise UserError(
            f"{len(both)} held-out prompts are also trained on: the two rankings were split differently"
        )
    files["prompts"] = [{"prompt": prompt} for prompt in sorted(asked["quality"])]
    files["heldout"] = [{"prompt": prompt} for prompt in sorted(held_out)]
    return files


def with_other_values(rows: list[dict], copies: int) -> list[dict]:
    """The rows, and copies - 1 times the same rows with other values in the facts and in the texts alike."""
    generator = random.Random(SEED)
    result = list(rows)
    for _ in range(copies - 1):
        for row in rows:
            texts = row.get("completions") or [row["completion"]]
            prompt, texts = other_values(row["prompt"], texts, generator)
            changed = {"completions": texts} if "completions" in row else {"completion": texts[0]}
            result.append({**row, "prompt": prompt, **changed})
    return result


def other_values(prompt: str, texts: list[str], generator: random.Random) -> tuple[str, list[str]]:
    """The facts and their texts with a new value in each slot whose value a text repeats word for word."""
    for slot, value in SLOT.findall(prompt):
        slot = slot.strip()
        if slot in ("name", "near"):
            new = invented_name(generator)
        elif slot in VALUES:
            new = generator.choice(VALUES[slot])
        else:
            continue
        pattern = re.compile(rf"\b{re.escape(value)}\b")
        if not any(pattern.search(text) for text in texts):
            continue
        texts = [with_article(pattern, new, text) for text in texts]
        prompt = prompt.replace(f"{slot}[{value}]", f"{slot}[{new}]")
    return prompt, texts


def with_article(pattern: re.Pattern, new: str, text: str) -> str:
    """The text with the new value, and "a" or "an" before it as its first letter wants it."""
    article = "an" if new[0] in "AEIOUaeiou" else "a"
    before = re.compile(rf"\b([Aa])n? (?={pattern.pattern})")
    text = before.sub(lambda match: match[1] + article[1:] + " ", text)
    text = pattern.sub(lambda match: new, text)
    return text.replace("ast food food", "ast food")  # "serves Fast food food"


def invented_name(generator: random.Random) -> str:
    """A name of two words, at times with The or Café before it."""
    first, second = generator.choice(FIRST), generator.choice(SECOND)
    return generator.choice(["", "", "The ", "Café "]) + f"{first} {second}"


def only(rows: list[dict], columns: tuple[str, ...]) -> list[dict]:
    """The rows with these columns and no others."""
    selected = []
    for row in rows:
        selected.append({column: row[column] for column in columns})
    return selected


def prompts(rows: list[dict]) -> set[str]:
    return {row["prompt"] for row in rows}


if __name__ == "__main__":
    main()
