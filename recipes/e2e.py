"""The E2E NLG challenge with its human ratings, as the files the e2e configs read.

    python recipes/e2e.py --source FOLDER --output runs/e2e/data

FOLDER holds devel-fixed.no-ol.csv.gz (cleaned facts -> text, Dusek et al. 2019), kwise_quality.jsonl.gz and
kwise_naturalness.jsonl.gz (rankings by people of up to five systems per list of facts, Novikova et al. 2018; a row is
prompt, completions, ranks). Licence CC BY-SA 4.0.
    demonstrations.jsonl  prompt (facts), completion (text)
    prompts.jsonl         the facts of the training rankings, each once: PPO learns little from facts that SFT knows by heart
    {quality,naturalness}_{train,heldout}.jsonl   rankings; both hold out the same facts
    heldout.jsonl         the facts that no other file holds, to judge every stage on
"""

import argparse
import json
from pathlib import Path

from rlhf.data.load import load_rows
from rlhf.data.splits import split_rows
from rlhf.errors import UserError

HELD_OUT, SEED = (
    0.2,
    0,
)  # share of the ranked facts; the split is a hash of the facts, so it is the same in both files


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--source", default="data/e2e", help="folder with the three files above")
    parser.add_argument("--output", default="runs/e2e/data", help="folder for the files")
    arguments = parser.parse_args()
    source, output = Path(arguments.source), Path(arguments.output)
    demonstrations = load_rows(
        str(source / "devel-fixed.no-ol.csv.gz"),
        kinds=("prompt_completion",),
        columns={"prompt": "mr", "completion": "ref"},
    ).rows
    files = {
        "demonstrations": [
            {"prompt": row["prompt"], "completion": row["completion"]} for row in demonstrations
        ]
    }
    held_out: dict[str, set[str]] = {}
    for name in ("quality", "naturalness"):
        rows = load_rows(str(source / f"kwise_{name}.jsonl.gz"), kinds=("ranking",)).rows
        rows = [{key: row[key] for key in ("prompt", "completions", "ranks")} for row in rows]
        files[f"{name}_train"], files[f"{name}_heldout"] = split_rows(rows, HELD_OUT, seed=SEED)
        held_out[name] = {row["prompt"] for row in files[f"{name}_heldout"]}
    facts = set().union(*held_out.values())
    seen = {
        row["prompt"]
        for name in ("demonstrations", "quality_train", "naturalness_train")
        for row in files[name]
    }
    if facts & seen:
        raise UserError(
            f"{len(facts & seen)} held-out prompts are also trained on: the two rankings were split apart"
        )
    files["prompts"] = [
        {"prompt": prompt} for prompt in sorted({row["prompt"] for row in files["quality_train"]})
    ]
    files["heldout"] = [{"prompt": prompt} for prompt in sorted(facts)]
    output.mkdir(parents=True, exist_ok=True)
    for name, rows in files.items():
        lines = (json.dumps(row, ensure_ascii=False) for row in rows)
        (output / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{output}/{name}.jsonl: {len(rows)} rows")


if __name__ == "__main__":
    main()
