"""Try finished runs in the browser: `rlhf chat [RUN ...]`, or python app.py [RUN ...]."""

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by Gradio when it is imported


def main(argv: list[str] | None = None, prog: str = "app.py") -> int:
    """prog: the command, for the usage line and for errors."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__)
    parser.add_argument("run", nargs="*", help="run folders to serve; the first is the default")
    parser.add_argument(
        "--runs",
        default="runs",
        help="without RUN, serve every finished run in this folder [%(default)s]",
    )
    parser.add_argument("--host", default="127.0.0.1", help="127.0.0.1 or localhost [%(default)s]")
    parser.add_argument("--port", type=int, default=7860, help="[%(default)s]")
    parser.add_argument("--device", help="cpu, cuda or mps [the accelerator if there is one]")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16"],
        help="of the chat models: auto takes bf16 where it answers clearly faster [%(default)s]",
    )
    args = parser.parse_args(argv)

    # Imported after the flags are parsed, so that --help is fast.
    import uvicorn

    from rlhf.errors import UserError
    from rlhf.runs.processes import best_device
    from rlhf.serving.catalogue import find_models, label_models
    from rlhf.serving.engine import Engine
    from rlhf.serving.predictors import Encoders
    from rlhf.serving.server import build_app, check_host
    from rlhf.serving.service import Service

    try:
        check_host(args.host)
        if args.run:
            models = label_models(args.run)
        else:
            models = find_models(args.runs)
        if not models:
            raise UserError(
                f"no finished run in {args.runs}: run `make demo`, or give a folder: {prog} RUN"
            )
        device = args.device or best_device()
        names = []
        for runs in models.values():
            names += runs
        chat_runs = models.pop("causal", {})
        engine = Engine(chat_runs, device, precision=args.precision)
        app = build_app(Service(engine, Encoders(models, device), Path(args.runs)))
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    print(f"models: {', '.join(names)}")
    print(f"http://{args.host}:{args.port}  (stop with Ctrl+C)", flush=True)
    # Open pages keep their connections, so Ctrl+C must not wait for them.
    uvicorn.run(
        app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=2
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
