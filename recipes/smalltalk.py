"""The demo's data: the embedded small talk (recipes/data/smalltalk.jsonl) as the files a user would bring.

    python recipes/smalltalk.py --voice caring --output runs/demo/data

60 topics, about 240 phrasings each, and one right answer per topic in each of five voices, written for this project.
    text.txt         plain text to pretrain on: prompts with answers, five of one topic in a line, so that words of similar
                     meaning occur together
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

from rlhf.runs.replacement import replacement

VOICES = ("plain", "friendly", "witty", "caring", "enthusiastic")
SOURCE = Path(__file__).parent / "data" / "smalltalk.jsonl"
# Phrasings per topic:
HELD_OUT = 12
RANKED = 48
PER_LINE = 5  # prompts with answers in a line of text.txt
NAMES = ("text", "sft", "rankings", "prompts", "heldout", "topics", "topics_heldout")


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
    files = make(arguments.voice)
    # All files or none: half of the data would be trained on as if it were whole.
    with replacement(folder) as temporary:
        for name, rows in files.items():
            write(temporary, name, rows)
    for name, rows in files.items():
        print(f"{folder / file_name(name)}: {len(rows)} rows")


def write(folder: Path, name: str, rows: list[dict]) -> None:
    """Write the rows as JSON lines, the text as it is."""
    if name == "text":
        lines = [row["text"] for row in rows]
    else:
        lines = [json.dumps(row) for row in rows]
    (folder / file_name(name)).write_text("\n".join(lines) + "\n", encoding="utf-8")


def file_name(name: str) -> str:
    return "text.txt" if name == "text" else f"{name}.jsonl"


def make(voice: str, *, seed: int = 0) -> dict[str, list[dict]]:
    """Rows by file name."""
    lines = SOURCE.read_text(encoding="utf-8").splitlines()
    topics = [json.loads(line) for line in lines]
    rng = random.Random(seed)
    files: dict[str, list[dict]] = {name: [] for name in NAMES}
    for topic in topics:
        phrasings = list(topic["phrasings"])
        rng.shuffle(phrasings)
        held_out, known = phrasings[:HELD_OUT], phrasings[HELD_OUT:]
        add_prompts(files, topic, known, held_out, voice)
        add_demonstrations(files, topic["answers"], known)
        # Their answers are wrong for this topic.
        others = [other["answers"] for other in topics if other is not topic]
        for prompt in known[:RANKED]:
            files["rankings"].append(ranking(prompt, topic["answers"], others, voice, rng))
        add_text(files, topic["answers"], known, rng)
    for rows in files.values():
        rng.shuffle(rows)
    return files


def add_prompts(
    files: dict, topic: dict, known: list[str], held_out: list[str], voice: str
) -> None:
    """Rows for PPO, for the report, and for classification."""
    answers = topic["answers"]
    for prompt in known:
        files["prompts"].append({"prompt": prompt, "voice": voice, "answers": answers})
        files["topics"].append({"text": prompt, "label": topic["topic"]})
    for i, prompt in enumerate(held_out):
        row = {
            "prompt": prompt,
            "completion": answers[VOICES[i % len(VOICES)]],
            "topic": topic["topic"],
            "voice": voice,
            "answers": answers,
        }
        files["heldout"].append(row)
        files["topics_heldout"].append({"text": prompt, "label": topic["topic"]})


def add_demonstrations(files: dict, answers: dict[str, str], known: list[str]) -> None:
    """Each phrasing twice, as it is and carelessly typed, answered in two different voices."""
    for shift, written in enumerate((str, careless)):
        for i, prompt in enumerate(known):
            voice = VOICES[(i + shift) % len(VOICES)]  # all voices equally often
            answer = answers[voice]
            files["sft"].append({"prompt": written(prompt), "completion": answer})


def ranking(prompt: str, answers: dict, others: list[dict], voice: str, rng: random.Random) -> dict:
    """Four answers: in the preferred voice, in another voice, and two to other topics, which tie for last."""
    other = rng.choice([name for name in VOICES if name != voice])
    in_voice = rng.choice(others)[voice]  # wrong, so that the voice alone never wins
    in_any_voice = rng.choice(others)[rng.choice(VOICES)]
    candidates = [
        (answers[voice], 0),
        (answers[other], 1),
        (in_voice, 2),
        (in_any_voice, 2),
    ]
    rng.shuffle(candidates)
    completions, ranks = zip(*candidates, strict=True)
    return {"prompt": prompt, "completions": completions, "ranks": ranks}


def add_text(files: dict, answers: dict, known: list[str], rng: random.Random) -> None:
    """Lines of several prompts with answers in any voice, all prompts twice: as they are, and carelessly typed.

    Shuffles `known`.
    """
    for written in (str, careless):
        rng.shuffle(known)
        spoken = [f"{written(prompt)} {answers[rng.choice(VOICES)]}" for prompt in known]
        for i in range(0, len(spoken), PER_LINE):
            line = " ".join(spoken[i : i + PER_LINE])
            files["text"].append({"text": line})


def careless(prompt: str) -> str:
    """As people type: no capitals, no full stop at the end."""
    return prompt.lower().rstrip(".?!")


if __name__ == "__main__":
    main()
