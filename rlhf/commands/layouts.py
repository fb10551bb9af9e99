"""`rlhf layouts`: the process layouts that `accelerate launch --config_file` takes."""

import argparse
from pathlib import Path

from rlhf.commands.configs import print_purposes, unknown
from rlhf.errors import UserError
from rlhf.runs.folders import recipes_folder, short_path


def find_layouts() -> dict[str, Path]:
    """The YAMLs of recipes/accelerate: "ddp_cpu" -> its path."""
    paths = sorted((recipes_folder() / "accelerate").glob("*.yaml"))
    return {path.stem: path for path in paths}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a layout (ddp_cpu) to print it")


def main(args: argparse.Namespace) -> int:
    layouts = find_layouts()
    if args.name in layouts:
        print(layouts[args.name].read_text(encoding="utf-8"), end="")
        return 0
    if args.name:
        raise UserError(unknown("layout", args.name, layouts))
    folder = short_path(recipes_folder() / "accelerate")
    print(f"{folder}\n")
    print_purposes(layouts)
    # A line to paste: accelerate needs the path, which differs between a checkout and an installed package.
    example = Path(folder) / "ddp_cpu.yaml"
    print(f"\nUse one: accelerate launch --config_file {example} -m rlhf sft --config demo")
    return 0
