"""`rlhf demo`: run the demo, whose stages are listed in recipes/demo.sh."""

import argparse
import os
import subprocess
import sys
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.folders import recipes_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--voice", default="caring", help="the voice the rankings put first")
    parser.add_argument("--output", metavar="FOLDER", help="[runs/demo-VOICE-DATE-TIME]")


def main(args: argparse.Namespace) -> int:
    # demo.sh calls `python`: let it find that of this environment, activated or not.
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join([programs, os.environ.get("PATH", "")])
    environment = os.environ | {"PATH": path, "VOICE": args.voice}
    if args.output:
        environment["RUN"] = args.output
    command = ["bash", str(recipes_folder() / "demo.sh")]
    try:
        return subprocess.run(command, env=environment).returncode
    except FileNotFoundError as error:
        raise UserError(
            f"the demo needs bash: install it, or run the stages of {command[1]} one by one"
        ) from error
