"""`rlhf export RUN --format onnx`: a trained encoder for programs without PyTorch, checked by running it."""

import argparse
from pathlib import Path

from rlhf.errors import UserError
from rlhf.hub.export import FORMATS, export_onnx


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", metavar="RUN", help="the folder of a run of an encoder task or of a reward model")
    add("--format", choices=FORMATS, default=FORMATS[0], help="of the result [%(default)s]")
    add("--output", metavar="FOLDER", help="a new folder for the result [RUN/onnx]")


def main(args: argparse.Namespace) -> int:
    run = Path(args.run)
    if not run.is_dir():
        raise UserError(f"{run}: no such run folder: give the output_dir of a finished run")
    # Next to the model, where the card and the record say what it is.
    exported = export_onnx(run, args.output or run / args.format)
    print(
        f"{exported.folder / 'model.onnx'}: {exported.size / 1e6:.1f} MB, inputs {', '.join(exported.inputs)}, outputs "
        f"{', '.join(exported.outputs)}"
    )
    print(
        f"its logits differ from the model's by at most {exported.difference:.0e} of the largest one, in {exported.tried} "
        "batches of random tokens"
    )
    return 0
