"""Try finished runs in the browser, each by its kind: python app.py [--runs runs], or python app.py RUN [RUN ...]"""

import argparse
import os
import sys

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", nargs="*", help="run folders to serve; the first is the default")
    parser.add_argument(
        "--runs",
        default="runs",
        help="without RUN: serve every finished run below this folder [runs]",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="only this machine can be served [127.0.0.1]"
    )
    parser.add_argument("--port", type=int, default=7860, help="[7860]")
    parser.add_argument("--device", help="cpu or cuda [cuda where there is one]")
    args = parser.parse_args(argv)

    # After the flags, so that --help answers at once.
    import uvicorn

    from rlhf.errors import UserError
    from rlhf.runs.processes import best_device
    from rlhf.serving.catalogue import find_models, label_models
    from rlhf.serving.engine import Engine
    from rlhf.serving.predictors import Encoders
    from rlhf.serving.server import build_app, check_host

    try:
        check_host(args.host)
        models = label_models(args.run) if args.run else find_models(args.runs)
        if not models:
            raise UserError(
                f"no finished run below {args.runs}: run `make demo`, or give a folder: app.py RUN"
            )
        device = args.device or best_device()
        chat = models.pop("causal", {})
        app = build_app(Engine(chat, device), Encoders(models, device))
    except UserError as error:
        print(f"app.py: {error}", file=sys.stderr)
        return 2
    names = [name for named in (chat, *models.values()) for name in named]
    print(
        f"models: {', '.join(names)}\nhttp://{args.host}:{args.port}  (stop with Ctrl+C)",
        flush=True,
    )
    # Open pages keep a connection for ever: Ctrl+C does not wait for them.
    uvicorn.run(
        app, host=args.host, port=args.port, log_level="warning", timeout_graceful_shutdown=2
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
