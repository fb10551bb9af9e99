"""A scripted annotator, which ranks and compares through the endpoints of a running `rlhf chat` as a person would.

    rlhf annotator rank http://127.0.0.1:7860 --prompts runs/demo/data/prompts.jsonl --count 300
    rlhf annotator compare http://127.0.0.1:7860 --prompts runs/demo/data/heldout.jsonl --count 200

Its rule is that of the demo's rankings: a right answer in the preferred voice is best, then a right answer in another voice,
and every other text is last. It sees letters and texts only, and learns which model wrote what after it has decided.
`rank` has the served model answer each prompt several times. `compare` asks the first two served models, and prints how
often the first one wins. See docs/feedback.md.
"""

import argparse
import json
import sys
from itertools import islice
from pathlib import Path

from rlhf.completions.functions import FunctionScorer
from rlhf.errors import UserError
from rlhf.statistics import wilson_interval

BEST, RIGHT, WRONG = 1, 2, 3  # tiers


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["rank", "compare"])
    parser.add_argument("url", help="of the running app")
    parser.add_argument("--prompts", required=True, help="JSON lines {prompt, answers, voice}")
    parser.add_argument("--count", type=int, default=300, help="prompts [%(default)s]")
    parser.add_argument("--answers", type=int, default=4, help="to each prompt [%(default)s]")
    parser.add_argument("--temperature", type=float, default=1.0, help="[%(default)s]")
    parser.add_argument("--name", default="scripted", help="of the annotator [%(default)s]")
    args = parser.parse_args(argv)
    try:
        rows = read_rows(Path(args.prompts), args.count)
        client = connect(args.url)
        if args.action == "rank":
            rank(client, rows, args)
        else:
            compare(client, rows, args)
    except UserError as error:
        print(f"annotator: {error}", file=sys.stderr)
        return 2
    except refusal() as error:
        print(f"annotator: the app refuses: {error}", file=sys.stderr)
        return 2
    return 0


def refusal() -> type[Exception]:
    """The error of an endpoint, with the app's reason."""
    from gradio_client.exceptions import AppError

    return AppError


def read_rows(path: Path, count: int) -> dict[str, dict]:
    """prompt -> its row, of the first `count` different ones. Not dialogues: Compare asks single questions."""
    rows: dict[str, dict] = {}
    try:
        with open(path, encoding="utf-8") as file:
            for line in file:
                row = json.loads(line)
                # Needed by the rule.
                row = {name: row[name] for name in ("prompt", "answers", "voice")}
                if isinstance(row["prompt"], list):
                    continue
                # The queue holds each prompt once.
                rows.setdefault(row["prompt"], row)
                if len(rows) == count:
                    break
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"--prompts {path}: {error}: give a file of `rlhf smalltalk`, such as prompts.jsonl"
        ) from error
    if not rows:
        raise UserError(f"--prompts {path}: no rows: give a file of `rlhf smalltalk`")
    return rows


def connect(url: str):
    """The client of a running app. UserError if none listens."""
    from gradio_client import Client

    try:
        return Client(url, verbose=False)
    except Exception as error:
        raise UserError(
            f"{url}: no app answers ({type(error).__name__}): start `rlhf chat`"
        ) from error


# The same functions by which the demo's report counts.
on_topic = FunctionScorer.load("rlhf.recipes.rewards:on_topic").function
preferred_voice = FunctionScorer.load("rlhf.recipes.rewards:preferred_voice").function


def tier(answer: str, row: dict) -> int:
    """The rule: 1 is a right answer in the preferred voice, 2 a right one in another voice, 3 the rest."""
    texts = ([row["prompt"]], [answer])
    if not on_topic(*texts, answers=[row["answers"]])[0]:
        return WRONG
    if preferred_voice(*texts, answers=[row["answers"]], voice=[row["voice"]])[0]:
        return BEST
    return RIGHT


def rank(client, rows: dict[str, dict], args) -> None:
    """Fill the queue with the prompts, and rank the answers of the served model until it is empty."""
    content = "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in rows)
    client.predict(content=content, name="prompts.jsonl", api_name="/rank_add")
    client.predict(share=0.0, api_name="/rank_overlap")  # one annotator
    model = client.predict(api_name="/compare_models")["models"][0]
    ordered = skipped = 0
    for number in range(1, len(rows) + 1):
        settings = {"count": args.answers, "temperature": args.temperature, "max_new_tokens": 40}
        # A seed of its own for each prompt, so that the same model gives the same answers again.
        settings["seed"] = 1000 * number
        try:
            asked = client.predict(
                annotator=args.name, models=[model], **settings, api_name="/rank_next"
            )
        except Exception as error:
            if "different ones" not in str(error):
                raise UserError(f"prompt {number}: {error}") from error
            # The model has one answer to this prompt, so there is nothing to rank. Else it would be given again.
            client.predict(annotator=args.name, api_name="/rank_skip")
            skipped += 1
            continue
        row = rows.get(asked["messages"][-1]["content"])
        if row is None:
            raise UserError("the queue holds prompts of another file: use a new --feedback folder")
        tiers = [tier(answer, row) for answer in asked["answers"].values()]
        client.predict(
            ranking=asked["ranking"], tiers=tiers, annotator=args.name, api_name="/rank_submit"
        )
        # A tie of all answers teaches nothing.
        ordered += len(set(tiers)) > 1
        if number % 25 == 0:
            print(f"{number} of {len(rows)} prompts, {ordered} with an order", flush=True)
    print(
        f"ranked {len(rows) - skipped} prompts, {ordered} with an order, {skipped} with one answer"
    )


def compare(client, rows: dict[str, dict], args) -> None:
    """Compare the first two served models blindly, and print how often the first one wins."""
    served = client.predict(api_name="/compare_models")["models"]
    if len(served) < 2:
        raise UserError("compare needs two served models: rlhf chat NEW OLD")
    new, old = served[:2]
    wins = losses = ties = 0
    for number, row in enumerate(islice(rows.values(), args.count), start=1):
        asked = client.predict(
            prompt=row["prompt"],
            models=[new, old],
            temperature=args.temperature,
            max_new_tokens=40,
            seed=number,
            api_name="/compare_ask",
        )
        # Decided before it is told which model is which.
        tiers = {letter: tier(answer, row) for letter, answer in asked["answers"].items()}
        verdict = verdict_of(tiers)
        told = client.predict(
            comparison=asked["comparison"],
            verdict=verdict,
            annotator=args.name,
            api_name="/compare_vote",
        )
        # None after a tie.
        winner = told["models"].get(verdict, {}).get("model")
        wins += winner == new
        losses += winner == old
        ties += winner is None
        if number % 25 == 0:
            print(f"{number} of {len(rows)}: {wins} wins, {losses} losses, {ties} ties", flush=True)
    print(report(new, old, wins, losses, ties))


def verdict_of(tiers: dict[str, int]) -> str:
    """The better letter; "both bad" where both are wrong, else "tie" where both are alike."""
    if tiers["A"] != tiers["B"]:
        return min(tiers, key=tiers.get)
    if tiers["A"] == WRONG:
        return "both bad"
    return "tie"


def report(new: str, old: str, wins: int, losses: int, ties: int) -> str:
    """The win rate of the new model, twice: with ties as half a win, and of the decided comparisons alone."""
    lines = [f"{new} against {old}: {wins} wins, {losses} losses, {ties} ties"]
    total, decided = wins + losses + ties, wins + losses
    for name, share, n in (
        ("ties count half", (wins + ties / 2) / total, total),
        ("decided only", wins / max(decided, 1), decided),
    ):
        if n:
            low, high = wilson_interval(share, n)
            lines.append(
                f"win rate, {name}: {share:.1%}, 95 % interval {low:.1%} to {high:.1%}, n = {n}"
            )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
