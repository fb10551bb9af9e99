"""`python -m rlhf COMMAND ...`: look at data and runs without writing code."""

import argparse
import os
import sys
from importlib import import_module

from rlhf.errors import UserError

COMMANDS = {
    "validate": (
        "rlhf.commands.validate",
        "check a file of rows: layout, counts, lengths, every bad row",
    ),
    "predict": (
        "rlhf.commands.predict",
        "predictions of a trained encoder for each row of a file",
    ),
    "report": ("rlhf.commands.report", "compare runs (base, SFT, PPO) on the same prompts"),
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in COMMANDS:
        print("usage: python -m rlhf COMMAND ...\n")
        for name, (_, summary) in COMMANDS.items():
            print(f"  {name:<10} {summary}")
        return 0 if argv[:1] in (["-h"], ["--help"]) else 2
    module = import_module(COMMANDS[argv[0]][0])
    parser = argparse.ArgumentParser(
        prog=f"python -m rlhf {argv[0]}", description=COMMANDS[argv[0]][1]
    )
    module.add_arguments(parser)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    try:
        return module.main(parser.parse_args(argv[1:]))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
