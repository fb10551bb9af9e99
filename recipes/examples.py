"""Rates of right answers of the demo's models, and the examples that the chat shows.

    python recipes/examples.py runs/demo/sft runs/demo/ppo --data runs/demo/data

Each model answers every held-out prompt once, and each prompt of recipes/data/examples.jsonl with ten seeds. Those
it answers right with nine of them become examples.json in the folder of its run, which the chat shows. The rates are
printed, written to small_talk.json in the last run's folder, and followed by what to try first.
"""

import argparse
import json
from pathlib import Path

from rlhf.comparison.compare import ChatRun, generate, load_runs
from rlhf.completions.functions import FunctionScorer
from rlhf.runs.replacement import replacement
from rlhf.statistics import wilson_interval

on_topic, honest, preferred_voice = (
    FunctionScorer.load(f"rlhf.recipes.rewards:{name}").function
    for name in ("on_topic", "honest", "preferred_voice")
)

DATA = Path(__file__).parent / "data"
SEEDS = 10
ENOUGH = 9  # right answers among them
SHOWN = 6  # examples in the chat
MAX_COMPLETION_LENGTH = 32
IN_SCOPE = "heldout"
BEYOND = "heldout_beyond"
DIALOGUES = "heldout_dialogues"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders, such as SFT and PPO")
    parser.add_argument("--data", required=True, type=Path, help="folder that smalltalk.py wrote")
    parser.add_argument("--temperature", type=float, default=0.7, help="of sampling [%(default)s]")
    parser.add_argument("--seed", type=int, default=0, help="of sampling [%(default)s]")
    arguments = parser.parse_args()
    held_out = {
        name: read(arguments.data / f"{name}.jsonl") for name in (IN_SCOPE, BEYOND, DIALOGUES)
    }
    runs = load_runs(arguments.runs)
    rates, good = {}, {}
    for run in runs:
        rates[run.label] = measure(run, held_out, arguments.temperature, arguments.seed)
        good[run.label] = write_examples(run, held_out, arguments.temperature)
    settings = {"temperature": arguments.temperature, "seed": arguments.seed}
    content = {"settings": settings, "rates": rates, "examples": good}
    write_json(Path(arguments.runs[-1]) / "small_talk.json", content)
    print(table(rates))
    voice = held_out[IN_SCOPE][0]["voice"]
    print(try_first(good[runs[-1].label], Path(arguments.runs[-1]), voice))


def read(path: Path) -> list[dict]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def write_json(path: Path, content) -> None:
    """Write a file, the whole of it or nothing."""
    with replacement(path.parent) as temporary:
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (temporary / path.name).write_text(text, encoding="utf-8")


# ---- rates -------------------------------------------------------------------------------------------------------


def measure(run: ChatRun, held_out: dict[str, list[dict]], temperature: float, seed: int) -> dict:
    """Shares of right answers, each {mean, low, high, n}: in scope, beyond it, and in dialogues."""
    # The refusals are those of any row that is beyond the small talk.
    refusals = held_out[BEYOND][0]["answers"]
    shares: dict[str, list[float]] = {}
    everywhere = [row for rows in held_out.values() for row in rows]
    for name, rows in held_out.items():
        completions = answers_of(run, rows, temperature=temperature, seed=seed)
        columns = {key: [row[key] for row in rows] for key in ("answers", "voice")}
        right = on_topic(None, completions, **columns)
        refused = honest(None, completions, refusals=[refusals] * len(rows))
        if name == IN_SCOPE:
            shares["on topic"] = right
            shares["refused in scope"] = refused
        elif name == BEYOND:
            shares["honest refusals"] = right
        else:
            shares["right in dialogues"] = right
        shares[f"preferred voice, {name}"] = in_voice(completions, rows, everywhere)
    return {name: share(values) for name, values in shares.items()}


def answers_of(run: ChatRun, rows: list[dict], *, temperature: float, seed: int) -> list[str]:
    """One sampled answer to each row's prompt."""
    completions = generate(
        run, rows, seed=seed, temperature=temperature, max_completion_length=MAX_COMPLETION_LENGTH
    )
    return completions.texts


def in_voice(completions: list[str], rows: list[dict], everywhere: list[dict]) -> list[float]:
    """1 where the completion is an answer in the preferred voice to a prompt of any file."""
    columns = {key: [row[key] for row in everywhere] for key in ("answers", "voice")}
    padded = completions + [""] * (len(everywhere) - len(rows))
    return preferred_voice(None, padded, **columns)[: len(rows)]


def share(values: list[float]) -> dict:
    """The mean of zeros and ones with its 95 % interval."""
    mean = sum(values) / len(values)
    low, high = wilson_interval(mean, len(values))
    return {"mean": mean, "low": low, "high": high, "n": len(values)}


def table(rates: dict[str, dict]) -> str:
    """One line per rate, one column per run."""
    names = list(next(iter(rates.values())))
    width = max(map(len, names))
    lines = ["".ljust(width) + "".join(f"{label:>8}" for label in rates)]
    for name in names:
        cells = [f"{run[name]['mean']:8.1%}" for run in rates.values()]
        lines.append(name.ljust(width) + "".join(cells))
    return "\n".join(lines)


# ---- examples ----------------------------------------------------------------------------------------------------


def write_examples(run: ChatRun, held_out: dict[str, list[dict]], temperature: float) -> list[dict]:
    """Write examples.json: prompts that the run answers right with nine of ten seeds. Returns them with that number."""
    by_topic = {
        row["topic"]: row["answers"] for rows in list(held_out.values())[:2] for row in rows
    }
    asked = read(DATA / "examples.jsonl")
    counts = [0] * len(asked)
    rows = [{"prompt": row["prompt"]} for row in asked]
    for seed in range(1, SEEDS + 1):
        completions = answers_of(run, rows, temperature=temperature, seed=seed)
        answers = [by_topic[row["topic"]] for row in asked]
        for i, right in enumerate(on_topic(None, completions, answers=answers)):
            counts[i] += int(right)
    results = [{**row, "right": count} for row, count in zip(asked, counts, strict=True)]
    good = [row["prompt"] for row in results if row["right"] >= ENOUGH][:SHOWN]
    write_json(Path(run.path) / "examples.json", good)
    return results


def try_first(results: list[dict], folder: Path, voice: str) -> str:
    """Three lines: what to do now. voice: the preferred one, so that another is proposed."""
    other = "caring" if voice == "witty" else "witty"
    good = [row["prompt"] for row in results if row["right"] >= ENOUGH]
    ask = "; ".join(good[:3]) or "hello"
    return (
        f"\nChat:     rlhf chat --runs {folder.parent}   ask: {ask}\n"
        f"Compare:  choose sft and then ppo in the menu, and ask the same again\n"
        f"Change:   VOICE={other} make demo   the rankings prefer another voice, and the answers follow"
    )


if __name__ == "__main__":
    main()
