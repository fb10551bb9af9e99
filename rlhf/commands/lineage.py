"""`rlhf lineage RUN`: everything that a run came from, as a tree or as Mermaid; `--verify` computes the hashes again.

rlhf lineage runs/ppo
rlhf lineage runs/ppo --verify
rlhf lineage someone/model@v1 --mermaid
"""

import argparse
from collections import Counter

from rlhf.hub.lineage import BAD, SAME, lineage, mermaid, run_folder, tree, verify

WIDE = 1000  # columns


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", help="the folder of a run, or a Hub id, with @revision if wanted")
    parser.add_argument(
        "--verify",
        action="store_true",
        help="compute every hash again, and say which file differs, is missing or was moved",
    )
    parser.add_argument("--mermaid", action="store_true", help="print a Mermaid flow chart")


def main(args: argparse.Namespace) -> int:
    """Exit code 1 where --verify meets a file that differs or is missing."""
    if args.verify:
        return print_checks(args.run)
    root = lineage(run_folder(args.run))
    if args.mermaid:
        print(mermaid(root))
        return 0
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = WIDE  # a pipe has no width of its own, and cuts nothing
    console.print(tree(root))
    return 0


def print_checks(run: str) -> int:
    """Print what is not as recorded, and the counts."""
    checks = verify(run)
    for check in checks:
        if check.state != SAME:
            print(check)
    counts = Counter(check.state for check in checks)
    print(", ".join(f"{count} {state}" for state, count in counts.items()))
    return 1 if any(counts[state] for state in BAD) else 0
