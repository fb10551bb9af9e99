"""Try finished runs in the browser, and serve them to programs: `rlhf chat [RUN ...]`, or python app.py [RUN ...].

A key or an account is needed to serve other machines: see docs/serving.md.
"""

import argparse
import getpass
import logging
import os
import re
import socket
import sys
import warnings
from dataclasses import replace
from pathlib import Path

from rlhf.errors import UserError

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read by Gradio when it is imported

LOOPBACK = ("127.0.0.1", "localhost", "::1")
DEVICE = re.compile(r"(cpu|cuda|mps|xpu)(:\d+)?")
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?(@[\w./-]+)?")  # with its revision
KEYS_VARIABLE = "RLHF_API_KEYS"


def main(argv: list[str] | None = None, prog: str = "app.py") -> int:
    """prog: the command, for the usage line and for errors. Returns the exit code."""
    args = make_parser(prog).parse_args(argv)
    try:
        if args.add_key or args.add_account:
            return add_access(args)
        check(args)
        return run(args, prog)
    except UserError as error:
        print(f"{prog}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # before the server listens
        return 130


def make_parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "run", nargs="*", help="run folders or Hub ids to serve; the first is the default"
    )
    parser.add_argument(
        "--runs",
        default="runs",
        help="without RUN, serve every finished run in this folder [%(default)s]",
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on [%(default)s]")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one [%(default)s]")
    parser.add_argument("--device", help="cpu, cuda, mps or xpu [the accelerator if there is one]")
    parser.add_argument(
        "--precision",
        default="auto",
        choices=["auto", "fp32", "bf16"],
        help="of the chat models: auto takes bf16 where it answers clearly faster [%(default)s]",
    )
    parser.add_argument(
        "--allow-hub",
        metavar="ID",
        action="append",
        default=[],
        help="also serve this chat model of the Hub; may be given several times",
    )
    parser.add_argument(
        "--allow-push",
        metavar="OWNER",
        action="append",
        default=[],
        help="where others use the app too: open the tab Share for repositories of this user or organisation",
    )
    parser.add_argument(
        "--data",
        metavar="FOLDER",
        action="append",
        default=[],
        help="a folder with files that may be looked at and trained on in the app; may be given several times",
    )
    parser.add_argument(
        "--feedback",
        metavar="FOLDER",
        default="feedback",
        help="where ratings and rankings are kept; '' keeps none [%(default)s]",
    )
    add_access_arguments(parser)
    return parser


def add_access_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("who may use it")
    group.add_argument(
        "--keys",
        metavar="FILE",
        help=f"API keys, a line for each; {KEYS_VARIABLE} in the environment adds some",
    )
    group.add_argument(
        "--accounts", metavar="FILE", help="names and password hashes, a line for each"
    )
    group.add_argument(
        "--add-key", metavar="NAME", help="write a new key to --keys, print it, and end"
    )
    group.add_argument(
        "--add-account", metavar="NAME", help="ask for a password, write it to --accounts, and end"
    )
    group.add_argument(
        "--allowed-host",
        metavar="NAME",
        action="append",
        default=[],
        help="a name under which browsers reach the service, e.g. chat.example.org",
    )
    group.add_argument(
        "--allow-origin",
        metavar="URL",
        action="append",
        default=[],
        help="a site whose pages may call the API, e.g. https://app.example.org",
    )
    group.add_argument(
        "--access-log",
        metavar="FILE",
        help="a line per request without its texts; - is the terminal [- with keys or accounts, else none]",
    )


# ---- before anything slow --------------------------------------------------------------------------------------------


def add_access(args: argparse.Namespace) -> int:
    """Add a key or an account to its file."""
    from rlhf.serving.web import access

    if args.add_key:
        if not args.keys:
            raise UserError("--add-key needs the file: --keys FILE")
        key = access.add_key(args.keys, args.add_key)
        print(f"{key}\nThis key is shown once. {args.keys} holds only its hash.")
        return 0
    if not args.accounts:
        raise UserError("--add-account needs the file: --accounts FILE")
    password = getpass.getpass(f"password of {args.add_account}: ")
    if getpass.getpass("again: ") != password:
        raise UserError("the two passwords differ: nothing was written")
    access.add_account(args.accounts, args.add_account, password)
    print(f"{args.accounts} holds the account {args.add_account}")
    return 0


def check(args: argparse.Namespace) -> None:
    """Raise UserError for a flag that cannot be right. Needs no torch, so that the answer comes at once."""
    if not 0 <= args.port <= 65535:
        raise UserError(f"--port {args.port}: give a number from 0 to 65535")
    if args.device and not DEVICE.fullmatch(args.device):
        raise UserError(f"--device {args.device}: use cpu, cuda, cuda:0, mps or xpu")
    check_folders(args)
    for name in args.allow_hub:
        if not HUB_ID.fullmatch(name):
            raise UserError(f"--allow-hub {name}: give an id such as openai-community/gpt2")
    for origin in args.allow_origin:
        if not re.fullmatch(r"https?://[^/\s]+", origin):
            raise UserError(f"--allow-origin {origin}: give it as https://app.example.org")
    has_keys = args.keys or args.accounts or os.environ.get(KEYS_VARIABLE)
    if args.host not in LOOPBACK and not has_keys:
        raise UserError(
            f"--host {args.host}: other machines can reach it, so it needs --accounts FILE or --keys FILE; "
            "or stay on 127.0.0.1 and use a tunnel: ssh -L 7860:127.0.0.1:7860 MACHINE"
        )


def check_folders(args: argparse.Namespace) -> None:
    """Raise UserError for a folder that is not there. That of the runs is made."""
    if not args.run:
        make_runs(args.runs)
    for folder in args.run:
        is_id = not Path(folder).exists() and HUB_ID.fullmatch(folder)
        if not Path(folder).is_dir() and not is_id:
            raise UserError(no_folder(folder))
    for folder in args.data:
        if not Path(folder).is_dir():
            raise UserError(f"--data: no such folder: {folder}")


def no_folder(folder: str) -> str:
    if Path(folder).exists():
        return f"{folder} is a file: give the folder of a run"
    return f"no such folder: {folder}"


def make_runs(folder: str) -> None:
    """Make the folder of the runs, where the app may train the first one. UserError where that cannot be."""
    if Path(folder).is_file():
        raise UserError(no_folder(folder))
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--runs {folder}: cannot be made ({error.strerror})") from error


def find(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The models that exist now, by kind."""
    from rlhf.serving.catalogue import CHAT, find_models, label_models

    # Named folders never change; a folder of runs is looked through again while the server runs.
    models = label_models(args.run) if args.run else find_models(args.runs)
    for name in args.allow_hub:
        models.setdefault(CHAT, {})[name] = name
    return models


def find_first(args: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The models at the start. UserError if single runs were given, and none of them can be tried.

    A folder of runs may be empty: the app trains the first one.
    """
    models = find(args)
    if args.run and list(models) == ["reward"]:
        raise UserError("only reward models were given: give a model that answers, too")
    return models


# ---- the server ------------------------------------------------------------------------------------------------------


def run(args: argparse.Namespace, prog: str) -> int:
    """Serve until a signal; returns the exit code."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # of libraries, to their callers
    # In the order of what is cheap to check and likely to be wrong.
    models = find_first(args)
    access = make_access(args)
    from rlhf.serving.web.listen import bind, serve

    listener = bind(args.host, args.port)
    port = listener.getsockname()[1]
    start_access_log(args, access.required)
    # Imported now, after everything that can be refused: they take seconds.
    from rlhf.serving.web.guard import Rules, trusted_hosts
    from rlhf.serving.web.server import build_app

    is_local = args.host in LOOPBACK
    # A browser that calls the service by another name is refused: see guard.check_host.
    names = [*args.allowed_host]
    if not is_local:
        names.append(socket.gethostname())
    rules = Rules(
        hosts=trusted_hosts(args.host, names),
        any_address=not is_local,
        origins=tuple(args.allow_origin),
    )
    service = make_service(args, models, is_shared=access.required or not is_local)
    app = build_app(service, rules=rules, access=access)
    named = [label for runs in models.values() for label in runs]

    def on_start() -> None:
        print(f"models: {', '.join(named)}" if named else none_yet(args.runs))
        print(f"{address(args.host, port)}  (stop with Ctrl+C)", flush=True)
        service.engine.start()

    return serve(app, listener, on_start, service.engine.close)


def none_yet(runs: str) -> str:
    return f"no finished run in {runs} yet: start one in the tab Runs, or run `make demo`"


def address(host: str, port: int) -> str:
    if host in ("0.0.0.0", "::"):  # every address of this machine
        host = socket.gethostname()
    if ":" in host:  # IPv6
        host = f"[{host}]"
    return f"http://{host}:{port}"


def make_access(args: argparse.Namespace):
    from rlhf.serving.web.access import Access, keys_of_environment, read_accounts, read_keys

    # A container or a systemd unit hands secrets over in the environment.
    keys = keys_of_environment(os.environ.get(KEYS_VARIABLE, ""))
    if args.keys:
        keys |= read_keys(args.keys)
    accounts = read_accounts(args.accounts) if args.accounts else {}
    return Access(keys, accounts)


def start_access_log(args: argparse.Namespace, with_access: bool) -> None:
    """Send the lines of rlhf.serving.web.access_log to the chosen file."""
    target = args.access_log or ("-" if with_access else None)
    if target is None:
        return
    if target == "-":
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
    else:
        try:
            handler = logging.FileHandler(target)
        except OSError as error:
            raise UserError(f"--access-log {target}: {error.strerror}") from error
    logger = logging.getLogger("rlhf.access")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # a line once, also where somebody configured the root logger


def make_service(args: argparse.Namespace, models: dict[str, dict[str, str]], *, is_shared: bool):
    """The service over an engine that is made once the server listens. is_shared: others than this machine's user use it."""
    from rlhf.serving.catalogue import CHAT, REWARD
    from rlhf.serving.engine.deferred import DeferredEngine
    from rlhf.serving.engine.requests import Limits
    from rlhf.serving.predictors import Encoders
    from rlhf.serving.service import Service

    limits = Limits()
    encoder_runs = {kind: runs for kind, runs in models.items() if kind not in (CHAT, REWARD)}

    def make_engine(runs: dict[str, str], reward_runs: dict[str, str]):
        from transformers.utils.logging import disable_progress_bar

        disable_progress_bar()  # the log of a server has no use for them
        from rlhf.serving.engine.engine import Engine

        return Engine(
            runs,
            device(args),
            reward_runs=reward_runs,
            limits=limits,
            precision=args.precision,
        )

    engine = DeferredEngine(
        make_engine, models.get(CHAT, {}), models.get(REWARD, {}), limits=limits
    )
    if args.device not in (None, "cpu"):
        engine.get()  # this machine may not have the device, which should be said before the address is
    service = Service(
        engine,
        Encoders(encoder_runs, lambda: device(args)),
        Path(args.runs),
        feedback=open_feedback(args.feedback),
        find=None if args.run else lambda: find(args),
    )
    jobs = open_jobs(args, service, is_shared=is_shared)
    return replace(service, jobs=jobs)


def device(args: argparse.Namespace) -> str:
    from rlhf.runs.processes import best_device

    return args.device or best_device()


def open_feedback(folder: str):
    """The store of ratings and rankings; None without a folder."""
    if not folder:
        return None
    from rlhf.feedback.store import Store

    return Store(folder)


def open_jobs(args: argparse.Namespace, service, *, is_shared: bool):
    """The line of runs that the app starts; None where single runs are served, which no new one would join."""
    if args.run:
        return None
    from rlhf.serving.jobs.allowed import Allowed
    from rlhf.serving.jobs.jobs import Jobs

    # What other people than the one at this machine may name as a file
    roots = [args.runs, args.feedback, *args.data]
    allowed = Allowed(
        roots=tuple(Path(root) for root in roots if root),
        hub_ids=tuple(args.allow_hub),
        push_to=tuple(args.allow_push),
        anything=not is_shared,
    )
    return Jobs(Path(args.runs), allowed=allowed, on_finished=lambda job: service.refresh())


if __name__ == "__main__":
    sys.exit(main())
