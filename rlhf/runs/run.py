"""What every recipe does around its own hundred lines: settings, errors, processes, the run folder and its record.

    def main(settings: Settings, args: SFTConfig) -> None: ...

    if __name__ == "__main__":
        run(main, __doc__)

The dataclasses in the signature of `main` are the keys of the YAML and the flags of the command line.
"""

import dataclasses
import difflib
import json
import os
import resource
import sys
import time
import typing
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rlhf.errors import UserError
from rlhf.runs.record import RECORD, RunRecord, parent

SAMPLES = 8  # held-out rows that are kept to look at


@dataclass
class DataSettings:
    """Where the rows come from; see docs/data.md."""

    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Hub id, a file (jsonl, json, csv, tsv, conll, parquet, txt; .gz too), or a folder of feedback events."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "Split of a Hub data set to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "Split of a Hub data set to evaluate on."})
    eval_dataset_name: str | None = field(default=None, metadata={"help": "File or Hub id with the evaluation rows."})
    eval_fraction: float = field(
        default=0.1, metadata={"help": "Share of the prompts held out when there is no evaluation set; 0: none."}
    )
    columns: dict[str, str] | str | None = field(
        default=None, metadata={"help": "Our column = their column: text=document,label=class, or a YAML map."}
    )
    document_separator: str | None = field(
        default=None,
        metadata={
            "help": "Line between the texts of a .txt file: blank, or such as <|endoftext|>. Default: each line is a text."
        },
    )
    dataset_limit: int | None = field(default=None, metadata={"help": "Use the first N rows only."})
    skip_bad: bool = field(default=False, metadata={"help": "Leave bad rows out and count them, instead of stopping."})


@dataclass
class ModelSettings:
    """What is trained, and how much of it."""

    model_name_or_path: str = field(default="gpt2", metadata={"help": "Run folder or Hub id to start from."})
    model_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit on the Hub."})
    tokenizer_name_or_path: str | None = field(default=None, metadata={"help": "Default: the model's own."})
    dtype: str = field(
        default="float32",
        metadata={
            "help": "Of the weights: float32 or bfloat16. bf16: true keeps float32 weights and computes in bf16."
        },
    )
    use_peft: bool = field(
        default=False, metadata={"help": "Train LoRA matrices instead of all weights; merged when saved."}
    )
    lora_r: int = field(default=16, metadata={"help": "LoRA rank."})
    lora_alpha: int = field(default=32, metadata={"help": "LoRA scale: alpha / r."})


@dataclass
class ScratchSettings:
    """Sizes of a model with random weights, in place of model_name_or_path."""

    from_scratch: bool = field(default=False, metadata={"help": "Start from random weights of the sizes below."})
    model_type: str = field(default="gpt2", metadata={"help": "Architecture."})
    hidden_size: int = field(default=256, metadata={"help": "Width."})
    layers: int = field(default=4, metadata={"help": "Depth."})
    heads: int = field(default=4, metadata={"help": "Attention heads."})
    context: int = field(default=256, metadata={"help": "Positions: the longest sequence in tokens."})
    dropout: float = field(
        default=0.1, metadata={"help": "GPT-2: 0.1; 0 where a small model sees its data once or twice."}
    )

    def sizes(self) -> dict:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(ScratchSettings) if f.name != "from_scratch"}


# ---- settings ----------------------------------------------------------------------------------------------------


def parse(classes: list[type], description: str, argv: list[str] | None = None) -> tuple:
    """Instances of `classes` from `--config FILE.yaml` and flags, flags winning. Unknown keys are errors."""
    from trl import TrlParser

    argv = list(sys.argv[1:] if argv is None else argv)
    names = [f.name for cls in classes for f in dataclasses.fields(cls) if f.init]
    if "--help" in argv or "-h" in argv:
        print(help_text(classes, description))
        raise SystemExit(0)
    if "--config" in argv:
        place = argv.index("--config") + 1
        if place == len(argv):
            raise UserError("--config needs the path of a YAML file")
        check_config(argv[place], names)
    for flag in argv:
        if flag.startswith("--") and flag != "--config":
            name = flag[2:].split("=")[0].replace("-", "_")
            check_key(name.removeprefix("no_") if name not in names else name, names, "the command line")
    parser = TrlParser(classes)
    if "use_cpu" in names:
        import torch

        parser.set_defaults(use_cpu=not torch.accelerator.is_available())  # else bf16 is refused on a CPU

    def fail(message):
        raise UserError(f"{message}; --help lists the keys")

    parser.error = fail
    try:
        return parser.parse_args_and_config(argv)
    except UserError:
        raise
    except (ValueError, TypeError) as error:
        raise UserError(str(error)) from error


def check_config(path: str, names: list[str]) -> dict:
    """The keys of a YAML file, each known to the recipe."""
    import yaml

    if not os.path.isfile(path):
        folder = Path(path).parent
        there = sorted(p.name for p in folder.glob("*.yaml")) if folder.is_dir() else []
        raise UserError(f"{path}: no such config file" + (f"; {folder} holds {', '.join(there)}" if there else ""))
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected `key: value` lines, found {type(content).__name__}")
    for key in content:
        check_key(key, names, path)
    return content


def check_key(key: str, names: list[str], place: str) -> None:
    if key not in names and key != "env":
        near = difflib.get_close_matches(key, names, n=1)
        raise UserError(
            f"{place}: unknown key {key!r}"
            + (f"; did you mean {near[0]!r}?" if near else "")
            + " (--help lists the keys)"
        )


def help_text(classes: list[type], description: str) -> str:
    """The recipe's docstring, then the keys we define; TrainingArguments' hundred keys are named, not repeated."""
    lines = [description.strip(), "", "Keys (YAML `key: value`, or flags `--key value`):"]
    for cls in classes:
        bases = [base for base in cls.__mro__[1:] if dataclasses.is_dataclass(base)]
        if inherits_arguments(cls):  # what our own bases add to TrainingArguments is listed with their names
            bases = [base for base in bases if not base.__module__.startswith("rlhf.")]
        inherited = {f.name for base in bases for f in dataclasses.fields(base)}
        own = [f for f in dataclasses.fields(cls) if f.name not in inherited]
        own += [f for f in dataclasses.fields(cls) if f.name in inherited and not inherits_arguments(cls)]
        lines += ["", f"{cls.__name__}: {(cls.__doc__ or '').strip().splitlines()[0]}"]
        for f in own:
            default = "" if f.default in (dataclasses.MISSING, None) else f" [{f.default}]"
            lines.append(f"  --{f.name:<28} {f.metadata.get('help', '')}{default}")
        if inherits_arguments(cls):
            lines.append("  ... and every field of transformers.TrainingArguments with its usual meaning")
    return "\n".join(lines)


def inherits_arguments(cls: type) -> bool:
    return any(base.__name__ == "TrainingArguments" for base in cls.__mro__)


# ---- processes ---------------------------------------------------------------------------------------------------


def asked_processes() -> int | None:
    """How many processes `accelerate launch` was asked for, read from its command line; None when it is not the parent."""
    import psutil

    for process in psutil.Process().parents()[:3]:
        command = process.cmdline()
        if any("accelerate" in part for part in command) and "launch" in command:
            for name in ("--num_processes", "--num-processes"):
                for place, part in enumerate(command):
                    if part == name:
                        return int(command[place + 1])
                    if part.startswith(name + "="):
                        return int(part.split("=")[1])
            for place, part in enumerate(command):
                if part in ("--config_file", "--config-file"):
                    import yaml

                    return int(yaml.safe_load(Path(command[place + 1]).read_text()).get("num_processes", 1))
    return None


def check_world(world_size: int) -> None:
    """`accelerate launch --cpu --num_processes 2` starts one process and says nothing; we do."""
    asked = asked_processes()
    if asked is not None and asked != world_size:
        raise UserError(
            f"accelerate was asked for {asked} processes, {world_size} started: its CPU launcher ignores the number; "
            "use --config_file recipes/accelerate/ddp_cpu.yaml"
        )


def use_all_cores(local_processes: int) -> int:
    """accelerate sets one thread per process on some CPUs; share the cores evenly instead. Returns threads per process."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    threads = max(1, cores // max(1, local_processes))
    torch.set_num_threads(threads)
    return threads


def keep_freed_memory() -> None:
    """Let glibc take all tensors from one heap that it never gives back, in pages of 2 MB where the kernel has them.

    By default every large tensor is fetched from the kernel, filled with zeros page by page, and handed back: in an update
    of GPT-2 this costs more than the memory it saves. Only addresses are reserved here, not memory. Measured:
    benchmarks/LOG.md, 2026-11-22.
    """
    import ctypes

    import psutil

    try:
        libc = ctypes.CDLL("libc.so.6")
        mallopt, malloc, free, madvise = libc.mallopt, libc.malloc, libc.free, libc.madvise
    except (OSError, AttributeError):  # not glibc
        return
    trim_threshold, mmap_max, hugepage = -1, -4, 14  # malloc.h, mman.h
    mallopt(trim_threshold, -1)  # as an unsigned number the largest there is: never
    mallopt(mmap_max, 0)
    size = psutil.virtual_memory().available // 2
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    free.argtypes, madvise.argtypes = [ctypes.c_void_p], [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if start := malloc(size):  # grows the heap; what is freed at once stays in it
        page = 2**21
        first = -(-start // page) * page
        madvise(first, (start + size - first) // page * page, hugepage)
        free(start)


# ---- the run folder ----------------------------------------------------------------------------------------------


def check_output_dir(folder: str, resume: bool) -> None:
    """A folder that holds a run is never written over."""
    path = Path(folder)
    if resume or not path.is_dir() or not any(path.iterdir()):
        return
    if (path / RECORD).is_file() and RunRecord.load(path).status == "failed" and not list(path.glob("checkpoint-*")):
        for leftover in (RECORD, "metrics.jsonl", "samples.jsonl"):
            (path / leftover).unlink(missing_ok=True)
        return
    holds = ", ".join(sorted(p.name for p in path.iterdir())[:5])
    raise UserError(
        f"output_dir {folder} already holds a run ({holds}): choose another output_dir, remove the folder, "
        "or continue the run with --resume_from_checkpoint true"
    )


def checkpoint_to_resume(args) -> str | None:
    """The folder that `resume_from_checkpoint` means: a path, or `true` for the newest checkpoint of output_dir."""
    from transformers.trainer_utils import get_last_checkpoint

    asked = str(args.resume_from_checkpoint or "false")
    if asked.lower() == "false":
        return None
    if asked.lower() != "true":
        if not Path(asked).is_dir():
            raise UserError(f"resume_from_checkpoint={asked}: no such folder; `true` takes the newest of output_dir")
        return asked
    newest = get_last_checkpoint(args.output_dir) if os.path.isdir(args.output_dir) else None
    if newest is None:
        raise UserError(f"resume_from_checkpoint: {args.output_dir} holds no checkpoint-N: begin the run without it")
    return newest


class Run:
    """The record of the run under way; only the main process writes."""

    def __init__(self, recipe: str, settings, args):
        self.args, self.folder, self.main = args, Path(args.output_dir), args.process_index == 0
        self.record = RunRecord.begin(recipe, config=changed_settings(settings, args), seed=args.seed)

    def data(self, splits) -> None:
        """Note what was read (`data.splits.Splits`) and pass its warnings on."""
        self.record.data += splits.sources
        for warning in splits.warnings:
            self.say(warning)

    def parent(self, role: str, path: str | None) -> None:
        if path:
            self.record.parents[role] = parent(path)

    def metrics(self, metrics: dict) -> None:
        self.record.metrics |= {
            name: round(value, 6) if isinstance(value, float) else value for name, value in metrics.items()
        }

    def samples(self, rows: list[dict]) -> None:
        """samples.jsonl: a few of the held-out rows with what was said of them, for the card and to try in the app."""
        self.write("samples.jsonl", rows[:: max(1, len(rows) // SAMPLES)][:SAMPLES])

    def write(self, name: str, content) -> None:
        """A file of the run folder: rows where the name ends in .jsonl, any JSON otherwise."""
        if self.main:
            parts, indent = (content, None) if name.endswith(".jsonl") else ([content], 1)
            text = "".join(json.dumps(part, indent=indent, ensure_ascii=False) + "\n" for part in parts)
            (self.folder / name).write_text(text, encoding="utf-8")

    def say(self, text: str) -> None:
        if self.main:
            print(text, flush=True)


def start_encoder(run: Run, settings, tokenizer, task: str, *, pairs: bool, **options):
    """The model that a recipe fine-tunes: pretrained or from scratch, with the head of `task` (a key of models.load.HEADS).

    The tokenizer is fitted to it; options: labels and problem_type of the head.
    """
    from rlhf.models.load import fit_embeddings, fit_tokenizer, load_encoder, new_encoder

    if settings.from_scratch and settings.use_peft:
        raise UserError("use_peft freezes the model, and from_scratch makes it random: set one of the two to false")
    if settings.from_scratch:
        model = new_encoder(tokenizer, task, **settings.sizes(), **options)
    else:
        options |= {"revision": settings.model_revision, "dtype": settings.dtype}
        model = load_encoder(settings.model_name_or_path, task, new_head=True, **options)
        run.parent("base", settings.model_name_or_path)
    fit_tokenizer(tokenizer, model, pairs=pairs)
    fit_embeddings(model, tokenizer)
    return model


def changed_settings(*objects) -> dict:
    """Every setting that differs from its default, as a YAML would give it; tokens are secrets and left out."""
    changed = {}
    for item in objects:
        for f in dataclasses.fields(item):
            default = f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
            value = getattr(item, f.name, None)
            value = getattr(value, "value", value)  # enums
            if f.init and value != default and isinstance(value, str | int | float | bool | list | dict):
                if not f.name.endswith("token"):
                    changed[f.name] = value
    return changed


@contextmanager
def recording(recipe: str, settings, args):
    """Opens the run folder and keeps its record: status, seconds, memory, curves and model card."""
    check_world(args.world_size)
    args.resume_from_checkpoint = checkpoint_to_resume(args)
    if args.process_index == 0:  # the others would meet what the first has written meanwhile
        check_output_dir(args.output_dir, bool(args.resume_from_checkpoint))
    run = Run(recipe, settings, args)
    import datasets
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # the training has the one bar
    datasets.disable_progress_bars()
    threads = 0
    if args.device.type == "cpu":
        keep_freed_memory()
        threads = use_all_cores(int(os.environ.get("LOCAL_WORLD_SIZE", args.world_size)))
    where = f"{args.world_size} process{'es' if args.world_size > 1 else ''} on {args.device.type}"
    run.say(f"{recipe}: {where}{f', {threads} threads each' if threads else ''} -> {run.folder}")
    started = time.time()
    if run.main:
        run.record.save(run.folder)
    try:
        yield run
        run.record.status = "done"
    except BaseException:
        run.record.status = "failed"
        raise
    finally:
        run.record.seconds = round(time.time() - started, 1)
        run.record.peak_memory_gb = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 3)
        if run.main:
            run.record.save(run.folder)
    if run.main:
        from rlhf.runs.card import write_card
        from rlhf.runs.progress import plot_curves

        plot_curves(run.folder)
        write_card(run.folder)
        numbers = ", ".join(
            f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}"
            for k, v in run.record.metrics.items()
            if isinstance(v, int | float)
        )
        run.say(f"{recipe}: {run.record.seconds:.0f} s, {run.record.peak_memory_gb:.2f} GB; {numbers}")


def run(main, description: str, argv: list[str] | None = None) -> None:
    """Parse, call `main`, and turn what a user can repair into one line and exit code 2."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")
    try:
        hints = typing.get_type_hints(main)
        main(*parse([hints[name] for name in hints if name != "return"], description, argv))
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()
