"""Is a run that was killed at any moment, and resumed, the same bit for bit as one that was not?

    python benchmarks/crash/run.py [--kills 200] [--record]
    python benchmarks/crash/run.py --kills 4 --recipes sft

Each case of `cases.py` is run once without a kill. Then a kill takes the cases in turn: a signal (SIGKILL, one in ten each
SIGTERM and SIGINT), and a moment: anywhere in the run, in or just after one of its steps, or at a file boundary of a
save. The same command with `resume_from_checkpoint: auto` is then started until it is done, and may be killed again. The
final weights, samples, reports, metrics.jsonl (without times) and the metrics of run.json must equal those of the run that
was not killed. What is drawn depends on --seed and the number of the kill: `--only 17` repeats it. --record writes
results/<date>.json.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path.insert(0, str(ROOT))  # for benchmarks.record

from benchmarks.crash.cases import BASES, CASES, Case, write_data  # noqa: E402
from benchmarks.crash.part import PHASES, Part, Shot, load_recipe, preload, run_part  # noqa: E402
from benchmarks.record import check_clean_tree, write_record  # noqa: E402

AUTO = ["--resume_from_checkpoint", "auto"]
SIGNALS = [signal.SIGKILL] * 8 + [signal.SIGTERM, signal.SIGINT]
# Exit codes of a process that was sent a signal and could end in order.
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
AGAIN = 0.3  # share of the resumed parts that are killed again
DELAY = 0.1  # seconds between a step and its shot at most: what follows a step can be hit too
PARTS = 8  # parts of a run at most, so that one that never ends is seen
# Parts of the keys of metrics that say how fast or where a run went.
TIMES = ("seconds", "runtime", "per_second", "memory", "_tok/s")
# Files of a run folder that tell times, commands or settings, or are drawn.
NOT_COMPARED = ("README.md", "training_args.bin", ".lock")
LINES = (".jsonl",)


@dataclass
class Reference:
    """A run without a kill. files: name -> sha256 or content without times."""

    seconds: float
    steps: int
    boundaries: int
    files: dict[str, object]


@dataclass
class Outcome:
    """What one kill led to. parts: what was done to each part and how it ended; problem: "" for an equal run."""

    number: int
    case: str
    problem: str = ""
    parts: list[dict] = field(default_factory=list)
    seconds: float = 0.0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="+", help="numbers of the kills to repeat")
    parser.add_argument("--recipes", nargs="+", help="names or recipes of cases. Default: all")
    parser.add_argument(
        "--out", type=Path, help="where the runs go. Default: a folder that is removed"
    )
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--record", action="store_true")
    arguments = parser.parse_args()
    commit = check_clean_tree() if arguments.record else ""
    names = choose_cases(arguments.recipes)
    preload()
    for name in names:
        load_recipe(CASES[name].recipe)
    numbers = arguments.only or range(arguments.kills)
    out = arguments.out or Path(tempfile.mkdtemp(prefix="crash-"))
    started = time.monotonic()
    context = multiprocessing.get_context("fork")  # the children have what was imported here
    cores = sorted(os.sched_getaffinity(0))
    queue = context.SimpleQueue()
    for worker in range(arguments.workers):
        queue.put(cores[worker % len(cores)])
    with context.Pool(arguments.workers, initializer=take_core, initargs=(queue,)) as pool:
        pool.apply(make_bases, (out,))
        jobs = [(name, out) for name in names]
        references = dict(zip(names, pool.starmap(run_reference, jobs, chunksize=1), strict=True))
        outcomes = []
        jobs = []
        for number in numbers:
            name = names[number % len(names)]
            jobs.append((number, arguments.seed, name, references[name], out))
        for outcome in pool.imap_unordered(run_kill, jobs):
            outcomes.append(outcome)
            print(line(outcome), flush=True)
    seconds = time.monotonic() - started
    outcomes.sort(key=lambda outcome: outcome.number)
    print(table(outcomes))
    unequal = [outcome for outcome in outcomes if outcome.problem]
    print(f"{len(outcomes)} runs killed, {len(unequal)} of them not equal, {seconds:.0f} s")
    if not arguments.out and not unequal:
        shutil.rmtree(out)
    if arguments.record:
        write_record(HERE, __doc__, content(outcomes, arguments.seed, seconds), commit=commit)
    if unequal:
        print(f"their folders and logs are in {out}")
        raise SystemExit(1)


def choose_cases(wanted: list[str] | None) -> list[str]:
    """The names of the cases that are wanted, by name or by recipe."""
    if not wanted:
        return list(CASES)
    names = [name for name, case in CASES.items() if name in wanted or case.recipe in wanted]
    if not names:
        print(f"error: no case {wanted}: choose of {', '.join(CASES)}", file=sys.stderr)
        raise SystemExit(2)
    return names


def take_core(queue) -> None:
    """Keep this worker, and the runs that it starts, on one core: a recipe takes as many threads as it has cores."""
    os.sched_setaffinity(0, {queue.get()})


# ---- the runs ----------------------------------------------------------------------------------------------------


def make_bases(out: Path) -> None:
    """Write the data, and train the models that other runs start from."""
    data = out / "data"
    write_data(data)
    for name, case in BASES.items():
        log = out / f"{name}.log"
        part = run_part(case.recipe, case.command(data, data / name), log)
        require_finished(part, log)


def run_reference(name: str, out: Path) -> Reference:
    """Run a case without a kill."""
    case = CASES[name]
    folder = out / "references" / name
    folder.parent.mkdir(exist_ok=True)
    log = out / "references" / f"{name}.log"
    part = run_part(case.recipe, case.command(out / "data", folder), log, processes=case.processes)
    require_finished(part, log)
    return Reference(part.seconds, part.steps, part.boundaries, read_files(folder))


def require_finished(part: Part, log: Path) -> None:
    """Exit with the end of the log where a run that nobody killed has failed."""
    if not part.finished:
        end = "\n".join(log.read_text(encoding="utf-8").splitlines()[-10:])
        raise SystemExit(f"{log}: the run ended with {part.codes}:\n{end}")


def run_kill(job: tuple[int, int, str, Reference, Path]) -> Outcome:
    """Kill a run, start it again until it is done, and compare it. The folder of an equal run is removed."""
    number, seed, name, reference, out = job
    draw = random.Random(f"{seed} {number}")
    folder = out / f"{number:03d}-{name}"
    log = out / f"{number:03d}-{name}.log"
    outcome = Outcome(number, name)
    started = time.monotonic()
    outcome.problem = kill_and_resume(CASES[name], reference, folder, log, draw, outcome.parts)
    outcome.seconds = round(time.monotonic() - started, 1)
    if not outcome.problem:
        outcome.problem = difference(reference.files, read_files(folder))
    if not outcome.problem:
        shutil.rmtree(folder)
        log.unlink()
    return outcome


def kill_and_resume(
    case: Case,
    reference: Reference,
    folder: Path,
    log: Path,
    draw: random.Random,
    parts: list[dict],
) -> str:
    """Run the parts of a run until it is done. Returns what went wrong, or "". parts: each is added to it."""
    command = [*case.command(folder.parent / "data", folder), *AUTO]
    shot = draw_shot(draw, reference, case.processes)
    while len(parts) < PARTS:
        part = run_part(case.recipe, command, log, processes=case.processes, shot=shot)
        if shot is not None and not part.shot and not parts and part.finished:
            # Faster than the run that was measured: once more, with an earlier moment.
            shutil.rmtree(folder)
            shot = earlier(shot)
            continue
        parts.append(entry(shot, part))
        problem = check_end(shot, part)
        if problem:
            return problem
        if part.finished:
            return ""
        is_killed_again = draw.random() < AGAIN and len(parts) < PARTS // 2
        shot = draw_shot(draw, reference, case.processes) if is_killed_again else None
    return f"not done after {PARTS} parts"


def draw_shot(draw: random.Random, reference: Reference, processes: int) -> Shot:
    """A signal and a moment: of the whole run, in or after a step of its training, or at a file boundary."""
    number = draw.choice(SIGNALS)
    all_processes = processes == 1 or draw.random() < 0.5
    kind = draw.choice(("run", "step", "boundary"))
    if kind == "boundary" and reference.boundaries:
        return Shot(number, boundary=draw.randint(1, reference.boundaries))
    if kind == "step":
        step = draw.randint(1, reference.steps)
        delay = draw.uniform(0, DELAY)
        return Shot(number, step=step, seconds=delay, all_processes=all_processes)
    seconds = draw.uniform(0, reference.seconds)
    return Shot(number, seconds=seconds, all_processes=all_processes)


def earlier(shot: Shot) -> Shot:
    """The same shot at a moment that is a third earlier."""
    if shot.boundary is not None:
        return replace(shot, boundary=max(1, shot.boundary * 2 // 3))
    if shot.step is not None:
        return replace(shot, step=max(1, shot.step * 2 // 3))
    return replace(shot, seconds=shot.seconds * 2 / 3)


def check_end(shot: Shot | None, part: Part) -> str:
    """What is wrong with the way in which a part ended, or ""."""
    if part.finished:
        return ""
    if shot is None or not part.shot:
        return f"ended with {part.codes} although nobody killed it"
    expected = CODES.get(shot.signal)
    # The handler is set as the recipe begins.
    allowed = {expected, -shot.signal, 0} if part.phase == "preparation" else {expected, 0}
    if expected and not allowed.issuperset(part.codes):
        return f"ended with {part.codes} after {signal.Signals(shot.signal).name}"
    return ""


def entry(shot: Shot | None, part: Part) -> dict:
    """A part as the record has it."""
    result = {"codes": part.codes, "seconds": round(part.seconds, 2)}
    if shot is None or not part.shot:
        return result
    shots = {name: value for name, value in asdict(shot).items() if value is not None}
    if shot.seconds is not None:
        shots["seconds"] = round(shot.seconds, 2)
    shots["signal"] = signal.Signals(shot.signal).name
    return result | {"shot": shots, "phase": part.phase}


# ---- what is compared --------------------------------------------------------------------------------------------


def read_files(folder: Path) -> dict[str, object]:
    """The files of a run without its checkpoints: content without times, or a digest. Those of a record: its metrics."""
    files: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        is_part_of_checkpoint = name.startswith("checkpoint-")
        if path.is_dir() or is_part_of_checkpoint or path.name in NOT_COMPARED:
            continue
        if path.suffix == ".png":
            files[name] = "drawn"
        elif path.suffix in LINES:
            rows = [json.loads(row) for row in path.read_text(encoding="utf-8").splitlines()]
            files[name] = [without_times(row) for row in rows]
        elif path.name == "run.json":
            record = json.loads(path.read_text(encoding="utf-8"))
            files[name] = [{"status": record["status"]} | without_times(record["metrics"])]
        else:
            files[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return files


def without_times(row: dict) -> dict:
    """A row of metrics without what depends on the speed of the machine. NaN becomes a word, since it is not itself."""
    kept = {}
    for name, value in row.items():
        if any(part in name for part in TIMES):
            continue
        kept[name] = "NaN" if value != value else value
    return kept


def difference(expected: dict[str, object], files: dict[str, object]) -> str:
    """The first files that differ, and in which row of a list; "" where all are equal."""
    names = []
    for name in sorted(expected.keys() | files.keys()):
        one, other = expected.get(name), files.get(name)
        if one == other:
            continue
        if one is None or other is None:
            names.append(f"{name} {'missing' if other is None else 'added'}")
        elif isinstance(one, list):
            names.append(f"{name} {first_difference(one, other)}")
        else:
            names.append(name)
    return f"not equal: {', '.join(names)}" if names else ""


def first_difference(one: list[dict], other: list[dict]) -> str:
    """The first row that differs, with both values."""
    for i, (row, second) in enumerate(zip(one, other)):
        if row == second:
            continue
        keys = sorted(row.keys() | second.keys())
        changed = [key for key in keys if row.get(key) != second.get(key)]
        values = [f"{key} {row.get(key)} -> {second.get(key)}" for key in changed[:2]]
        return f"row {i + 1}: {', '.join(values)}"
    return f"{len(one)} rows -> {len(other)}"


# ---- the record --------------------------------------------------------------------------------------------------


def line(outcome: Outcome) -> str:
    """One line about a kill."""
    shots = []
    for part in outcome.parts:
        shot = part.get("shot")
        if shot:
            shots.append(f"{shot['signal']} in {part['phase']}")
    verdict = outcome.problem or "equal"
    return f"{outcome.number:3d} {outcome.case}: {', '.join(shots)}; {outcome.seconds} s; {verdict}"


def count_kills(outcomes: list[Outcome]) -> Counter:
    """Phase -> kills in it, those of resumed parts too."""
    phases: Counter = Counter()
    for outcome in outcomes:
        phases.update(part["phase"] for part in outcome.parts if "shot" in part)
    return phases


def table(outcomes: list[Outcome]) -> str:
    """Markdown: a row per case with its kills, where they fell, and how many runs ended equal."""
    lines = [
        f"| case | kills | {' | '.join(PHASES)} | resumes | equal | not equal | seconds |",
        "|---" * (len(PHASES) + 6) + "|",
    ]
    for name in [*CASES, "all"]:
        chosen = [outcome for outcome in outcomes if name in (outcome.case, "all")]
        if not chosen:
            continue
        phases = count_kills(chosen)
        resumes = sum(len(outcome.parts) - 1 for outcome in chosen)
        unequal = sum(bool(outcome.problem) for outcome in chosen)
        cells = [phases.total(), *(phases[phase] for phase in PHASES), resumes]
        cells += [len(chosen) - unequal, unequal]
        seconds = sum(outcome.seconds for outcome in chosen)
        lines.append(f"| {name} | {' | '.join(map(str, cells))} | {seconds:.0f} |")
    return "\n".join(lines)


def content(outcomes: list[Outcome], seed: int, seconds: float) -> dict:
    """The record: totals, the table, every run that was not equal, and every kill."""
    unequal = [asdict(outcome) for outcome in outcomes if outcome.problem]
    signals: Counter = Counter()
    boundaries = 0
    for outcome in outcomes:
        for part in outcome.parts:
            shot = part.get("shot", {})
            signals.update([shot["signal"]] if shot else [])
            boundaries += "boundary" in shot
    return {
        "seed": seed,
        "seconds": round(seconds),
        "runs": len(outcomes),
        "kills": count_kills(outcomes).total(),
        "signals": dict(signals),
        "kills_at_file_boundaries": boundaries,
        "equal": len(outcomes) - len(unequal),
        "table": table(outcomes).splitlines(),
        "not_equal": unequal,
        "all": [line(outcome) for outcome in outcomes],
    }


if __name__ == "__main__":
    main()
