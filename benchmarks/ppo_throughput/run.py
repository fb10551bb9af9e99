"""How long does one PPO update take, and how much memory, compared with TRL's last PPOTrainer?

    python benchmarks/ppo_parity/run.py                          # once: makes .venv-trl with TRL 1.12
    python benchmarks/ppo_throughput/run.py [--record]

The same model folders, prompts, lengths, episodes, epochs and micro-batches for every column; one optimiser step per epoch;
no completion ends early, so both sides handle the same tokens. In each round every column runs once, in a process and an
environment of its own; its first update is warm-up. The floor is the time that the floating-point operations of the work
alone would take as large matrix products on this machine, measured in the same round. Look at cpu seconds when other
programs had the cores meanwhile.

`ours` takes its settings from --config, else the precision that `precision: auto` chooses here and a value head on the
policy's trunk. That choice is made once per shape, and recorded with the rates that led to it; then every column's precision
is fixed. TRL always has a value model of its own. The columns between tell the two apart: `ours fp32 separate` does exactly
the work of `trl fp32`. Its bf16 is switched on as accelerate launch does, since its config's has no effect with this
transformers; it covers the update only, decoding and scoring stay fp32. A column that would repeat another is not run.

The last lines say whether any column of ours was slower than one of TRL's, and the update over its floor. For a quick look
(about four minutes on two cores): --shapes small --repeats 1 --updates 1 --sides ours "trl fp32" "ours separate" "trl bf16".
The whole record takes about an hour there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.record import check_clean_tree, rounded, write_record  # noqa: E402
from rlhf.runs.record import command_line  # noqa: E402


@dataclass(frozen=True)
class Shape:
    layers: int
    hidden: int
    heads: int
    vocabulary: int
    episodes: int
    prompt: int
    completion: int
    epochs: int
    micro_batch: int


SHAPES = {
    "small": Shape(
        4, 256, 4, 8192, episodes=64, prompt=32, completion=48, epochs=4, micro_batch=16
    ),
    "gpt2": Shape(
        12, 768, 12, 50257, episodes=16, prompt=32, completion=32, epochs=4, micro_batch=4
    ),
}
SETTINGS = {
    "learning_rate": 1e-5,
    "kl_coef": 0.05,
    "adam_epsilon": 1e-5,
    "seed": 0,
}  # of both sides
OURS = {"report_to": "none", "per_device_eval_batch_size": 32}
AUTO = "auto"  # a bf16 that is decided per shape
SIDES = {  # column: worker, settings of its own, value model
    "ours": ("our_worker.py", {"bf16": AUTO}, "shared"),
    "trl fp32": ("trl_worker.py", {"bf16": False}, "separate"),
    "ours lora": ("our_worker.py", {"bf16": AUTO, "lora": True}, "shared"),
    "ours fp32": ("our_worker.py", {"bf16": False}, "shared"),
    "trl bf16": ("trl_worker.py", {"bf16": True}, "separate"),
    "ours separate": ("our_worker.py", {"bf16": AUTO}, "separate"),
    "ours fp32 separate": ("our_worker.py", {"bf16": False}, "separate"),
}
PHASES = ("decode", "score", "update")


def flops(shape: Shape, *, epochs: int, shared_trunk: bool, lora: bool) -> dict[str, float]:
    """Floating-point operations that one update needs, by phase: 2 per multiply-add, matrix products only.

    Of one sequence, with width h, L layers, vocabulary V, P prompt and T completion tokens; n = P + T - 1 tokens have a
    successor. A token's layer has 12 h^2 weights, and token i attends to i + 1 tokens in two products of width h:
        body(n) = L (24 h^2 n + 4 h (1 + ... + n)),  head = 2 h V T   (logits where completion tokens are predicted)
        decode  = body(n) + head        with a cache; its log-probs (and values, on a shared trunk) are the old ones
        score   = body(n) + head (reference) + body(P + T) (reward) [+ body(n) (values of a separate value model)]
        update  = 3 epochs (body(n) + head [+ body(n)])        forward 1, backward 2; with LoRA 1, as W has no gradient
    """
    h, tokens = shape.hidden, shape.prompt + shape.completion - 1

    def body(n: int) -> float:
        return shape.layers * (24 * h**2 * n + 4 * h * n * (n + 1) / 2)

    head, value = 2 * h * shape.vocabulary * shape.completion, 0.0 if shared_trunk else body(tokens)
    one = {
        "decode": body(tokens) + head,
        "score": body(tokens) + head + body(tokens + 1) + value,
        "update": (2 if lora else 3) * epochs * (body(tokens) + head + value),
    }
    return {name: shape.episodes * count for name, count in one.items()}


def run_worker(python: str, script: str, job: dict | None = None) -> dict:
    """The last line of a worker's output, as JSON; its complaints are shown when it fails."""
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1", "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": f"{HERE}:{ROOT}",
    }  # fmt: skip
    arguments = []
    if job is not None:
        path = Path(job["folder"]) / "job.json"
        path.write_text(json.dumps(job))
        arguments = [str(path)]
    done = subprocess.run(
        [python, str(HERE / script), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE,
    )
    if done.returncode:
        raise SystemExit(f"{script} {job}:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def our_settings(config: str | None) -> tuple[dict, str | None]:
    """Settings of ours from a YAML of recipes/configs/ppo, without those that the shape or the other side decides."""
    if config is None:
        return {}, None
    import dataclasses

    from rlhf.policy_gradient.config import PolicyGradientConfig
    from rlhf.runs.settings import read_config

    fixed = {
        "output_dir", "total_episodes", "rollout_batch_size", "epochs_per_rollout", "per_device_train_batch_size",
        "gradient_accumulation_steps", "max_prompt_length", "max_completion_length", "eval_every", "save_every",
        "missing_eos_penalty", *SETTINGS,
    }  # fmt: skip
    names = {f.name for f in dataclasses.fields(PolicyGradientConfig)} - fixed
    content = read_config(config)
    settings = {key: value for key, value in content.items() if key in names}
    if content.get("precision"):
        settings["bf16"] = {"auto": AUTO, "bf16": True, "fp32": False}[content["precision"]]
    return settings, content.get("value_model")


def with_precision(sides: dict, faster: str) -> dict:
    """The columns with their precision fixed, without those that repeat an earlier one."""
    fixed: dict = {}
    for side, (worker, own, value_model) in sides.items():
        if own.get("bf16") == AUTO:
            own = own | {"bf16": faster == "bf16"}
        if (worker, own, value_model) not in fixed.values():
            fixed[side] = (worker, own, value_model)
    return fixed


def measure(name: str, shape: Shape, arguments, sides: dict) -> dict:
    """Rounds of one shape: each column once, in turn, and the matrix rate before them."""
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        # More prompts than the run takes, see trl_worker.py.
        prompts = shape.episodes * (arguments.updates + 3)
        job = {"folder": folder, "shape": asdict(shape)}
        made = run_worker(sys.executable, "make_models.py", job | {"prompts": prompts})
        policy = run_worker(sys.executable, "matrix_rate.py", job)["policy"]
        sides = with_precision(sides, policy["faster"])
        rates = f"fp32 {policy['fp32']:.0f} GFLOP/s a core, bf16 {policy['bf16']:.0f}"
        print(f"{name}: precision {policy['faster']} ({rates})", flush=True)
        for number in range(arguments.repeats):
            columns = {}
            rate = run_worker(sys.executable, "matrix_rate.py")
            for side in sides:
                columns[side] = run_side(side, sides, shape, job, arguments)
                seconds = columns[side]["median"]["seconds"]
                print(f"{name}, round {number + 1}, {side}: {seconds:.2f} s per update", flush=True)
            rounds.append({"matrix_gflops": rate, "columns": columns})
    return {
        "shape": asdict(shape),
        "parameters": made["parameters"],
        "policy_gflops": policy,
        "sides": sides,
        "rounds": rounds,
    }


def run_side(side: str, sides: dict, shape: Shape, job: dict, arguments) -> dict:
    """One column in a process of its own: each of its updates, and their medians without the first."""
    worker, own, value_model = sides[side]
    python = sys.executable if worker == "our_worker.py" else arguments.trl_python
    settings = {"value_model": value_model, "settings": SETTINGS | own}
    result = run_worker(python, worker, job | {"updates": arguments.updates} | settings)
    assert len(result["updates"]) == 1 + arguments.updates, result
    assert result["optimizer_steps"] == shape.epochs * (1 + arguments.updates), result
    counted = result["updates"][1:]
    result["median"] = {}
    for key in ("seconds", "cpu_seconds", *PHASES):
        result["median"][key] = statistics.median(update.get(key, 0.0) for update in counted)
    return result


def range_of(values) -> dict:
    """Median, smallest and largest."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def summary(measured: dict) -> dict:
    """Per column: seconds, episodes per second, phases, memory, floor; and TRL's columns over ours, round by round."""
    shape, rounds, sides = Shape(**measured["shape"]), measured["rounds"], measured["sides"]
    columns = {}
    for side, (_, own, value_model) in sides.items():
        work = flops(
            shape,
            epochs=shape.epochs,
            shared_trunk=value_model == "shared",
            lora=own.get("lora", False),
        )
        dtype = "bf16" if own.get("bf16") else "fp32"
        columns[side] = column_summary(side, rounds, shape, work, dtype) | {"precision": dtype}
    ratios = {}
    for theirs in (side for side in sides if side.startswith("trl")):
        for ours in (side for side in sides if side.startswith("ours")):
            ratios[f"{theirs} / {ours}"] = ratios_of(theirs, ours, rounds)
    return {"columns": columns, "ratios": ratios, "claims": claims(columns, ratios)}


def claims(columns: dict, ratios: dict) -> dict:
    """The numbers behind two claims: the smallest of TRL's seconds over ours, and our update over its floor, at most."""
    speed_ups = [ratio["seconds"]["median"] for ratio in ratios.values()]
    updates = [
        column["update_over_floor"]["median"]
        for side, column in columns.items()
        if side.startswith("ours")
    ]
    return {
        "never_slower_than_trl": min(speed_ups, default=1.0) >= 1,
        "smallest_speed_up": min(speed_ups, default=None),
        "update_over_floor_at_most": max(updates, default=None),
    }


def column_summary(side: str, rounds: list[dict], shape: Shape, work: dict, dtype: str) -> dict:
    """Median and range of a column over the rounds. work: its floating-point operations by phase."""
    runs = [one_round["columns"][side] for one_round in rounds]
    medians = [run["median"] for run in runs]
    floors = []
    for one_round in rounds:
        floors.append(sum(work.values()) / 1e9 / one_round["matrix_gflops"][dtype])
    over_floor = []
    for one_round, median in zip(rounds, medians, strict=True):
        floor = work["update"] / 1e9 / one_round["matrix_gflops"][dtype]
        over_floor.append(median["update"] / floor)
    shares = [floor / median["seconds"] for floor, median in zip(floors, medians)]
    result = {
        "seconds_per_update": range_of(median["seconds"] for median in medians),
        "cpu_seconds_per_update": range_of(median["cpu_seconds"] for median in medians),
        "episodes_per_second": range_of(shape.episodes / median["seconds"] for median in medians),
    }
    for phase in PHASES:
        result[f"{phase}_seconds"] = range_of(median[phase] for median in medians)
    return result | {
        "memory_gb": range_of(run["memory_gb"] for run in runs),
        "memory_of_imports_gb": range_of(run["memory_of_imports_gb"] for run in runs),
        "gflop": {name: count / 1e9 for name, count in work.items()},
        "floor_seconds": range_of(floors),
        "share_of_floor": range_of(shares),
        "update_over_floor": range_of(over_floor),
    }


def ratios_of(theirs: str, ours: str, rounds: list[dict]) -> dict:
    """TRL's column over ours in the same round: seconds, seconds of CPU and memory."""
    ratios = {"seconds": [], "cpu_seconds": [], "memory": []}
    for one_round in rounds:
        their_run, our_run = one_round["columns"][theirs], one_round["columns"][ours]
        for key in ("seconds", "cpu_seconds"):
            ratios[key].append(their_run["median"][key] / our_run["median"][key])
        ratios["memory"].append(their_run["memory_gb"] / our_run["memory_gb"])
    return {name: range_of(values) for name, values in ratios.items()}


ROWS = {  # label: key of a column's summary, and which number of it
    "s per update": ("seconds_per_update", "median"),
    "  min": ("seconds_per_update", "min"),
    "  max": ("seconds_per_update", "max"),
    "  cpu s": ("cpu_seconds_per_update", "median"),
    "episodes per s": ("episodes_per_second", "median"),
    "decode s": ("decode_seconds", "median"),
    "score s": ("score_seconds", "median"),
    "update s": ("update_seconds", "median"),
    "peak memory GB": ("memory_gb", "median"),
    "  of imports": ("memory_of_imports_gb", "median"),
    "floor s": ("floor_seconds", "median"),
    "floor / measured": ("share_of_floor", "median"),
    "update / its floor": ("update_over_floor", "median"),
}


def table(name: str, result: dict) -> str:
    """The summary of a shape for the terminal: a column per side, and the ratios below."""
    columns = result["columns"]
    width = max(map(len, columns)) + 2
    lines = [f"\n{name:<24}" + "".join(f"{side:>{width}}" for side in columns)]
    precisions = [column["precision"] for column in columns.values()]
    lines.append(f"{'precision':<24}" + "".join(f"{name:>{width}}" for name in precisions))
    for label, (key, which) in ROWS.items():
        numbers = [column[key][which] for column in columns.values()]
        lines.append(f"{label:<24}" + "".join(f"{number:>{width}.2f}" for number in numbers))
    for pair, ratio in result["ratios"].items():
        seconds, memory = ratio["seconds"], ratio["memory"]
        lines.append(
            f"{pair:<30} seconds {seconds['median']:.2f} ({seconds['min']:.2f} to {seconds['max']:.2f})"
            f"   memory {memory['median']:.2f}"
        )
    for claim, value in result["claims"].items():
        lines.append(f"{claim:<30} {value if not isinstance(value, float) else round(value, 2)}")
    return "\n".join(lines)


def main() -> None:
    arguments = parse_arguments()
    commit = check_clean_tree() if arguments.record else ""
    sides = choose_sides(arguments)
    shapes = {name: measure(name, SHAPES[name], arguments, sides) for name in arguments.shapes}
    summaries = {name: summary(measured) for name, measured in shapes.items()}
    for name, result in summaries.items():
        print(table(name, result))
    if arguments.record:
        settings = {}
        for name, measured in shapes.items():
            settings[name] = {}
            for side, (_, own, value_model) in measured.pop("sides").items():
                settings[name][side] = {**SETTINGS, **own, "value_model": value_model}
        content = {
            "command": command_line(),
            "side_versions": take_versions(shapes),
            "config": arguments.config,
            "settings": settings,
            "repeats": arguments.repeats,
            "updates": arguments.updates,
            "summary": summaries,
            "measured": shapes,
        }
        # Timings have no more than four digits.
        write_record(HERE, __doc__, rounded(content), commit=commit)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--shapes", nargs="+", choices=list(SHAPES), default=list(SHAPES))
    add(
        "--sides",
        nargs="+",
        choices=list(SIDES),
        default=list(SIDES),
        help="columns, in their order",
    )
    add("--repeats", type=int, default=3, help="rounds; each runs every column once")
    add("--updates", type=int, default=3, help="per process, after one for warming up")
    add("--config", help="a YAML of recipes/configs/ppo with the settings of the column `ours`")
    add("--trl_venv", default=str(ROOT / ".venv-trl"), help="see benchmarks/ppo_parity/run.py")
    add("--record", action="store_true", help="write results/<date>.json")
    arguments = parser.parse_args()
    arguments.trl_python = str(Path(arguments.trl_venv).absolute() / "bin" / "python")
    needs_trl = any(side.startswith("trl") for side in arguments.sides)
    if needs_trl and not Path(arguments.trl_python).exists():
        raise SystemExit(
            f"{arguments.trl_venv} holds no Python: make it with\n"
            f"  python benchmarks/ppo_parity/run.py --venv {arguments.trl_venv}"
        )
    return arguments


def choose_sides(arguments) -> dict[str, tuple]:
    """The columns that were asked for, with --config's settings on our sides and its value model in `ours`."""
    from_config, value_model = our_settings(arguments.config)
    sides = {}
    for side in arguments.sides:
        worker, own, its_value_model = SIDES[side]
        if worker == "our_worker.py":
            if side == "ours" and arguments.config:
                own = {}
                its_value_model = "shared" if value_model == "shared" else "separate"
            own = OURS | from_config | own
        sides[side] = (worker, own, its_value_model)
    return sides


def take_versions(shapes: dict) -> dict[str, dict]:
    """The versions of each side. They are the same in every process of a side, so they are removed from the rounds."""
    versions = {}
    for measured in shapes.values():
        for one_round in measured["rounds"]:
            for side, column in one_round["columns"].items():
                versions[side] = column.pop("versions")
    return versions


if __name__ == "__main__":
    main()
