"""`rlhf COMMAND ...` or `python -m rlhf COMMAND ...`: every recipe, and commands that look at data and runs."""

import argparse
import os
import shutil
import sys
import textwrap
from importlib import import_module

import rlhf
from rlhf.commands.configs import unknown
from rlhf.commands.recipes import find_scripts, run_script
from rlhf.errors import UserError

TRAIN = "Train. --config takes a name of `rlhf configs`, or a path; --help lists the keys"
PREPARE = "Prepare data"
LOOK = "Look at data and runs, and share them"
FIND = "Find the files that the recipes come with"
# name: (module, summary, group). The recipes are not listed here: see commands/recipes.py.
COMMANDS = {
    "demo": (
        "rlhf.commands.demo",
        "every stage from tokenizer to PPO on small talk, in a few minutes",
        TRAIN,
    ),
    "finish": (
        "rlhf.commands.finish",
        "evaluate a trained run whose evaluation failed or was cut off; writes its plots and card",
        TRAIN,
    ),
    "validate": (
        "rlhf.commands.validate",
        "check a file of rows: layout, counts, lengths, every bad row",
        LOOK,
    ),
    "predict": (
        "rlhf.commands.predict",
        "predictions of a trained encoder for each row of a file",
        LOOK,
    ),
    "sample": (
        "rlhf.commands.sample",
        "n scored answers to each prompt, best first: rows for SFT, reward models and DPO",
        PREPARE,
    ),
    "evaluate": (
        "rlhf.commands.evaluate",
        "zero- and few-shot accuracy of language models on rows with answers",
        LOOK,
    ),
    "report": ("rlhf.commands.report", "compare runs (base, SFT, PPO) on the same prompts", LOOK),
    "ladder": (
        "rlhf.commands.ladder",
        "every rung from n-gram to PPO side by side: numbers, answers, picture",
        LOOK,
    ),
    "export": (
        "rlhf.commands.export",
        "write a trained encoder as ONNX, and compare its logits",
        LOOK,
    ),
    "lineage": (
        "rlhf.commands.lineage",
        "everything that a run came from, with hashes; --verify computes them again",
        LOOK,
    ),
    "chat": ("rlhf.commands.chat", "try finished runs in the browser", LOOK),
    "share": (
        "rlhf.commands.share",
        "push a run, a feedback folder or a Space to the Hugging Face Hub",
        LOOK,
    ),
    "configs": ("rlhf.commands.configs", "list the settings files, or print one", FIND),
    "layouts": (
        "rlhf.commands.layouts",
        "list the process layouts of `accelerate launch --config_file`",
        FIND,
    ),
}
ALIASES = {"app": "chat"}


def main(argv: list[str] | None = None) -> int:
    """Run a command and return its exit code: 2 for what the user can repair."""
    if argv is None:
        argv = sys.argv[1:]
    try:
        code = answer(argv)
        if sys.stdout is not None:  # None in `rlhf configs >&-`
            sys.stdout.flush()  # a reader that left is noticed here, and not while Python exits
        return code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130  # 128 + SIGINT, as a shell counts
    except BrokenPipeError:  # `rlhf configs | head`
        # Python flushes stdout once more as it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def answer(argv: list[str]) -> int:
    """Print the list of commands or the version, or run a command."""
    if not argv or argv[0] in ("-h", "--help"):
        print(list_of_commands())
        return 0
    if argv[0] == "--version":
        print(f"rlhf {rlhf.__version__}")
        return 0
    try:
        return run(argv[0], argv[1:])
    except SystemExit as end:  # argparse and recipes leave this way, after --help for instance
        return end.code or 0


def run(name: str, argv: list[str]) -> int:
    """Run the recipe or the command of this name."""
    name = ALIASES.get(name, name)
    scripts = find_scripts()
    if name in scripts:
        return run_script(scripts[name], argv)
    if name not in COMMANDS:
        raise UserError(unknown("command", name, [*scripts, *COMMANDS]))
    module_name, summary, _ = COMMANDS[name]
    # Imported only now, so that the list and the error above need no torch.
    module = import_module(module_name)
    if name == "chat":  # reads its own flags, as `python app.py` does
        return module.main(argv, prog="rlhf chat")
    parser = argparse.ArgumentParser(prog=f"rlhf {name}", description=summary)
    module.add_arguments(parser)
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return module.main(parser.parse_args(argv))


def list_of_commands() -> str:
    """Every command with a line each, by group, cut to the width of the terminal."""
    groups = {group: [] for group in (TRAIN, PREPARE, LOOK, FIND)}
    # The scripts first, so that each group begins with them.
    for script in find_scripts().values():
        group = TRAIN if script.is_recipe else PREPARE
        groups[group].append((script.name, script.summary))
    for name, (_, summary, group) in COMMANDS.items():
        groups[group].append((name, summary))
    # A pipe has no width, and in a narrow terminal a line that wraps tells more than its beginning.
    width = max(100, shutil.get_terminal_size().columns)
    lines = ["usage: rlhf COMMAND ...    (or python -m rlhf COMMAND ...)"]
    for group, commands in groups.items():
        lines += ["", f"{group}:"]
        for name, summary in commands:
            summary = textwrap.shorten(summary, width - 23, placeholder=" ...")
            lines.append(f"  {name:<20} {summary}")
    lines += [
        "",
        "Several processes: accelerate launch --config_file LAYOUT -m rlhf sft --config ...",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
