"""The demo's data: the embedded small talk (recipes/data/smalltalk.jsonl) as the files a user would bring.

    python recipes/smalltalk.py --voice caring --output runs/demo/data

60 topics, about 240 phrasings each, and one right answer per topic in each of five voices, written for this project.
    text.txt         plain text to pretrain on: small talk overheard, the lines of one topic together, so that words of one
                     meaning meet
    sft.jsonl        prompt, completion: the voices mixed evenly; each phrasing twice, once carelessly typed
    rankings.jsonl   prompt, completions, ranks: the preferred voice, another voice, and last two answers to other topics,
                     one of them in the preferred voice, so that the voice alone never wins
    prompts.jsonl    prompts for PPO
    heldout.jsonl    prompts whose wording no other file holds, with the closed list of right answers
    topics.jsonl, topics_heldout.jsonl    text, label: the same phrasings with their topic, for classification
"""

import argparse
import json
import random
import sys
from pathlib import Path

VOICES = ("plain", "friendly", "witty", "caring", "enthusiastic")
SOURCE = Path(__file__).parent / "data" / "smalltalk.jsonl"
HELD_OUT, RANKED = 12, 48  # phrasings per topic


def make(voice: str, *, seed: int = 0) -> dict[str, list[dict]]:
    """Rows by file name."""
    topics = [json.loads(line) for line in SOURCE.read_text(encoding="utf-8").splitlines()]
    rng = random.Random(seed)
    names = ("text", "sft", "rankings", "prompts", "heldout", "topics", "topics_heldout")
    files: dict[str, list[dict]] = {name: [] for name in names}
    for topic in topics:
        answers, phrasings = topic["answers"], list(topic["phrasings"])
        rng.shuffle(phrasings)
        others = [other["answers"] for other in topics if other is not topic]
        for place, prompt in enumerate(phrasings[:HELD_OUT]):
            row = {
                "prompt": prompt,
                "completion": answers[VOICES[place % len(VOICES)]],
                "topic": topic["topic"],
            }
            files["heldout"].append(row | {"voice": voice, "answers": answers})
        known = phrasings[HELD_OUT:]
        files["topics"] += [{"text": prompt, "label": topic["topic"]} for prompt in known]
        files["topics_heldout"] += [
            {"text": prompt, "label": topic["topic"]} for prompt in phrasings[:HELD_OUT]
        ]
        files["prompts"] += [
            {"prompt": prompt, "voice": voice, "answers": answers} for prompt in known
        ]
        for shift, written in enumerate((str, careless)):
            spoken = [answers[VOICES[(place + shift) % len(VOICES)]] for place in range(len(known))]
            pairs = zip(known, spoken, strict=True)
            files["sft"] += [
                {"prompt": written(prompt), "completion": answer} for prompt, answer in pairs
            ]
        for prompt in known[:RANKED]:
            other = rng.choice([name for name in VOICES if name != voice])
            wrong = [rng.choice(others)[voice], rng.choice(others)[rng.choice(VOICES)]]
            candidates = [(answers[voice], 0), (answers[other], 1), (wrong[0], 2), (wrong[1], 2)]
            rng.shuffle(candidates)
            completions, ranks = zip(*candidates, strict=True)
            files["rankings"].append({"prompt": prompt, "completions": completions, "ranks": ranks})
        for written in (str, careless):
            rng.shuffle(known)
            said = [f"{written(prompt)} {answers[rng.choice(VOICES)]}" for prompt in known]
            files["text"] += [{"text": " ".join(said[i : i + 5])} for i in range(0, len(said), 5)]
    for rows in files.values():
        rng.shuffle(rows)
    return files


def careless(prompt: str) -> str:
    """As people type: no capitals, no stop at the end."""
    return prompt.lower().rstrip(".?!")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--voice", choices=VOICES, default="caring", help="the voice the rankings put first"
    )
    parser.add_argument("--output", default="runs/demo/data", help="folder for the files")
    arguments = parser.parse_args()
    folder = Path(arguments.output)
    if folder.exists() and any(folder.iterdir()):
        sys.exit(f"error: {folder} is not empty: choose another --output")
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in make(arguments.voice).items():
        path = folder / ("text.txt" if name == "text" else f"{name}.jsonl")
        lines = (row["text"] if name == "text" else json.dumps(row) for row in rows)
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"{path}: {len(rows)} rows")


if __name__ == "__main__":
    main()
