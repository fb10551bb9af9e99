"""Fill the numbers of README.md and docs/ from the newest committed records: python benchmarks/readme.py

The pages hold every sentence. A comment names what belongs behind it, and the text up to its end is replaced:

    <!-- number alignment stages.reward.metrics.accuracy .3f -->0.734<!-- /number -->
        one value of the record of `alignment`: its keys, joined by dots, and Python's format for it.
        An index picks one item (-1 is the last one), and * takes all of them.
    <!-- table bert/tasks --> ... <!-- /table -->
        the table that the function for `bert/tasks` in TABLES makes of its record
    <!-- record alignment -->...<!-- /record -->
        file, commit and number of cores of the record
    <!-- picture algorithms -->![any text](old.png)<!-- /picture -->
        the path of the picture with the record's name

A record is benchmarks/<folder>/results/<date>.json, or benchmarks/<folder>/results/<question>-<date>.json for the name
<folder>/<question>. The newest date counts.
"""

import json
import os
import re
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
METRICS = {"f1": "F1", "accuracy": "accuracy"}
# Titles of the columns of a ladder.
LADDER = {
    "rung": "rung",
    "year": "year",
    "parameters": "learned numbers",
    "bits_per_byte": "bits per byte",
    "on_topic": "on topic, %",
    "chrf": "chrF",
    "seconds": "seconds",
    "cpu_seconds": "processor seconds",
}
LADDER_KOREAN = {
    "rung": "단계",
    "year": "연도",
    "parameters": "학습된 수",
    "bits_per_byte": "바이트당 비트",
    "chrf": "chrF",
    "seconds": "초",
    "cpu_seconds": "프로세서 초",
}


# ---- records ----


def newest(name: str) -> Path:
    """The newest record of a benchmark such as `alignment`, or of one of its questions such as `bert/speed`."""
    folder, _, question = name.partition("/")
    prefix = re.escape(f"{question}-") if question else ""
    # the date follows at once: `speed` is not the question of speed-h100-2026-12-01.json
    form = re.compile(rf"{prefix}\d{{4}}-\d\d-\d\d\.json")
    records = [path for path in (HERE / folder / "results").glob("*") if form.fullmatch(path.name)]
    if not records:
        raise SystemExit(f"no record of {name} in benchmarks/{folder}/results")
    return max(records, key=lambda path: path.name)  # the names differ in their dates only


@cache
def load(path: Path) -> dict:
    """The content of a record."""
    return json.loads(path.read_text(encoding="utf-8"))


def look_up(value, keys: str):
    """The value behind keys such as `runs.-1.seconds`. `stages.*.seconds` is the list of all of them."""
    key, _, rest = keys.partition(".")
    if not keys:
        return value
    if isinstance(value, dict) and key in value:
        return look_up(value[key], rest)
    # what is left is an index or a star, and both take the items of a dict in their order
    items = value
    if isinstance(value, dict):
        items = list(value.values())
    if key == "*":
        return [look_up(item, rest) for item in items]
    return look_up(items[int(key)], rest)


def as_text(value, form: str = "") -> str:
    """A value in Python's format. The items of a list are joined as in a sentence: `0, 1 and 2`."""
    if isinstance(value, list):
        *items, last = [as_text(item, form) for item in value]
        return f"{', '.join(items)} and {last}" if items else last
    if value in (None, ""):
        return "-"
    return format(value, form)


def source(name: str) -> str:
    """The file, commit and number of cores of a record, for a sentence that begins with `Record:`."""
    path, record = newest(name), load(newest(name))
    commit, cores = record["commit"], record["machine"]["cores"]
    if commit.endswith("+"):
        commit = f"{commit[:-1]} with uncommitted changes"
    return f"`{path.relative_to(ROOT)}`, commit {commit}, {plural(cores, 'core')}"


def plural(count: int, noun: str) -> str:
    """A number and its noun: `1 core`, `2 cores`."""
    if count == 1:
        return f"1 {noun}"
    return f"{count} {noun}s"


# ---- tables ----


def lines_of(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(header)} |", "|---" * len(header) + "|", *lines])


def with_spread(entry: dict, digits: int, factor: float = 1.0) -> str:
    """Mean and standard deviation of {mean, sd}. One seed has no deviation."""
    text = f"{entry['mean'] * factor:.{digits}f}"
    if entry["sd"] is not None:
        text += f" ± {entry['sd'] * factor:.{digits}f}"
    return text


def with_interval(entry: dict, digits: int, factor: float = 1.0, unit: str = "") -> str:
    """Mean and interval of {mean, low, high}, where there is one."""
    text = f"{entry['mean'] * factor:.{digits}f}{unit}"
    if entry["low"] is not None:
        text += f" ({entry['low'] * factor:.{digits}f} to {entry['high'] * factor:.{digits}f})"
    return text


def ladder(record: dict, titles: dict[str, str] = LADDER) -> str:
    """A row per rung: what it has learned from, and what it reaches. titles: of the columns, as LADDER."""
    rows = []
    for name, rung in record["rungs"].items():
        cells = {"rung": name, "year": str(rung["year"]), "parameters": f"{rung['parameters']:,}"}
        cells["bits_per_byte"] = "-"
        if rung["bits_per_byte"]:
            cells["bits_per_byte"] = with_spread(rung["bits_per_byte"], 3)
        # the scores that the answers to this text have
        for score, factor in (("on_topic", 100), ("chrf", 1)):
            if score in rung:
                cells[score] = with_spread(rung[score], 1, factor)
        # records until 2026-11-28 have the wall clock alone
        seconds = "cpu_seconds" if "cpu_seconds" in rung else "seconds"
        cells[seconds] = f"{rung[seconds]['mean']:.0f}"
        rows.append(cells)
    header = [titles[key] for key in rows[0]]
    return lines_of(header, [list(cells.values()) for cells in rows])


def ladder_answers(record: dict, title: str) -> str:
    """The answers of every rung to the prompts of a record, unpicked. title: of the first column."""
    rows = []
    for name, answers in record["answers"].items():
        cells = [" ".join(answer.replace("|", "/").split()) for answer in answers]
        rows.append([name, *cells])
    return lines_of([title, *record["prompts"]], rows)


def pairs_of_texts(record: dict) -> str:
    """A row per model, with chrF of all held-out pairs and of the shortest and the longest sources."""
    rows = []
    for name, model in record["models"].items():
        groups = model["lengths"]
        ends = [with_spread(groups[i]["chrf"], 1) for i in (0, -1)]
        row = [name, with_spread(model["chrf"], 1), with_spread(model["bleu"], 1), *ends]
        rows.append([*row, f"{model['core_seconds']['mean']:.0f}"])
    first = next(iter(record["models"].values()))["lengths"]
    lengths = [f"chrF, {first[i]['source_tokens']} tokens" for i in (0, -1)]
    return lines_of(["model", "chrF", "BLEU", *lengths, "core seconds"], rows)


def value_decoding(record: dict) -> str:
    header = ["decoding", "passes per token", "quality", "naturalness", "coverage"]
    rows = []
    for name, entry in record["methods"].items():
        cells = [name, f"{entry['passes_per_token']:.2g}"]
        for metric in header[2:]:
            estimate = dict(zip(("mean", "low", "high"), entry[metric], strict=True))
            cells.append(with_interval(estimate, 2))
        rows.append([*cells, f"{entry['seconds']:.0f}"])
    return lines_of([*header, "core seconds"], rows)


def demo(record: dict) -> str:
    """The report of the demo: a column for each model, sampled and greedy."""
    by_decoding = {"sampled": {}, "greedy": {}}
    for run in record["runs"]:
        by_decoding[run["decoding"]][run["label"]] = run["metrics"]
    sampled, greedy = by_decoding["sampled"], by_decoding["greedy"]
    voice = f"preferred voice ({record['voice']})"
    # rates are shown in per cent
    rates = [
        ("on-topic rate", sampled, "score_on_topic"),
        (voice, sampled, "score_preferred_voice"),
        ("on-topic rate, greedy", greedy, "score_on_topic"),
        (f"{voice}, greedy", greedy, "score_preferred_voice"),
        ("completions with EOS", sampled, "eos_rate"),
    ]
    numbers = [
        ("reward model's score", sampled, "score_reward_model"),
        ("KL to SFT, nats per completion", sampled, "kl"),
        ("distinct-2", sampled, "distinct_2"),
    ]
    rows = []
    for title, side, name in rates:
        cells = [with_interval(metrics[name], 1, 100, "%") for metrics in side.values()]
        rows.append([title, *cells])
    for title, side, name in numbers:
        cells = [with_interval(metrics[name], 2) for metrics in side.values()]
        rows.append([title, *cells])
    return lines_of(["on held-out wordings", *sampled], rows)


def demo_samples(record: dict) -> str:
    """Answers of the last two models of the demo to the first prompts of the record."""
    labels = [run["label"] for run in record["runs"] if run["decoding"] == "sampled"][-2:]
    rows = []
    for sample in record["samples"][:6]:
        answers = [sample["completions"][label] for label in labels]
        rows.append([text.replace("|", "/") for text in [sample["prompt"], *answers]])
    return lines_of(["prompt", *labels], rows)


def demo_voices(record: dict) -> str:
    """Right answers of SFT and PPO for each voice that the demo was trained with."""
    titles = {
        "on topic": "on topic",
        "honest refusals": "honest beyond it",
        "refused in scope": "refused in scope",
        "right in dialogues": "right in dialogues",
        "preferred voice, heldout": "preferred voice",
    }
    rows = []
    if "voices" not in record:  # records until 2026-11-27
        rows.append(["not in this record", *[""] * (len(titles) + 1)])
    for voice, content in record.get("voices", {}).items():
        for label, rates in content["rates"].items():
            cells = [with_interval(rates[name], 1, 100, "%") for name in titles]
            rows.append([voice, label, *cells])
    return lines_of(["voice", "model", *titles.values()], rows)


def alignment(record: dict) -> str:
    """A line per method: what its samples are worth, how far it went from SFT, and what it took."""
    titles = {
        "quality": "quality (trained on)",
        "naturalness": "naturalness (seen by none)",
        "coverage": "facts in the text (counted)",
        "kl": "KL, nats per text",
        "distinct_2": "distinct-2",
        "seconds": "seconds of one core",
    }
    digits = {"kl": 1, "seconds": 0}
    rows = []
    for method, entry in record["methods"].items():
        cells = [method]
        for name in titles:
            cell = "-"
            if name in entry:
                cell = with_spread(entry[name], digits.get(name, 2))
            if method.startswith("best of") and name == "kl":
                cell = f"at most {cell}"
            cells.append(cell)
        rows.append(cells)
    return lines_of(["method", *titles.values()], rows)


def alignment_samples(record: dict) -> str:
    """The first held-out facts and the first sample of some methods, unpicked."""
    shown = ["SFT", "DPO, people's rankings", "PPO"]
    rows = []
    for sample in record["samples"]:
        facts = sample["facts"].replace("\n", ", ")
        texts = [sample["texts"][method].replace("\n", " ") for method in shown]
        rows.append([cell.replace("|", "/") for cell in (facts, *texts)])
    return lines_of(["facts", *shown], rows)


def algorithms(record: dict) -> str:
    """The record holds its own table, one row per algorithm."""
    return "\n".join(record["table"])


def ppo_throughput(record: dict) -> str:
    """Seconds and memory of one update, ours against TRL's, for both shapes."""
    header = ["shape", "side", "s per update", "decode", "score", "update", "peak GB"]
    header += ["speed-up over TRL fp32", "memory relative to TRL fp32"]
    rows = []
    for shape, measured in record["summary"].items():
        for side, column in measured["columns"].items():
            cells = [shape, side]
            for key in ("seconds_per_update", "decode_seconds", "score_seconds", "update_seconds"):
                cells.append(f"{column[key]['median']:.1f}")
            cells.append(f"{column['memory_gb']['median']:.2f}")
            ratio = measured["ratios"].get(f"trl fp32 / {side}")
            if ratio is None:  # a side of TRL
                cells += ["-", "-"]
            else:
                cells.append("{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio["seconds"]))
                cells.append(f"{1 / ratio['memory']['median']:.2f}")  # the record has TRL's / ours
            rows.append(cells)
    return lines_of(header, rows)


def bert_tasks(record: dict) -> str:
    """One row per fine-tuning: metric over the seeds, minutes of the slowest seed, memory."""
    titles = {
        "banking77": "77 intents of bank customers (banking77)",
        "sst2": "sentiment of sentences (SST-2, its dev set)",
        "ner": "slots as entities (restaurant8k)",
        "qa": "slots as answers (restaurant8k)",
    }
    header = ["task", "recipe", "metric", f"{len(record['seeds'])} seeds"]
    header += ["held-out rows", "minutes", "GB"]
    rows = []
    for name, task in record["tasks"].items():
        low, high = min(task["values"]), max(task["values"])
        rows.append([
            titles.get(name, name),
            f"`{task['recipe']}.py`",
            METRICS.get(task["metric"], task["metric"]),
            f"{with_spread(task, 3)} ({low:.3f} to {high:.3f})",
            f"{task['metrics'][0]['eval_rows']:,}",  # the same for every seed
            f"{max(task['seconds']) / 60:.1f}",
            f"{task['peak_memory_gb']:.1f}",
        ])  # fmt: skip
    return lines_of(header, rows)


def bert_speed(record: dict) -> str:
    """Rows a second of our encoder trainer and of two others."""
    header = ["task", "trainer", "rows per second", "speed-up of ours", "metric"]
    rows = []
    for task, sides in record["summary"].items():
        for side, measured in sides.items():
            low, middle, high = measured["ours_is_faster_by"]
            speed_up = f"{middle:.2f} ({low:.2f} to {high:.2f})"
            if side == "ours":
                speed_up = "-"
            rate, metric = measured["rows_per_second"], measured["judged"]
            rows.append([task, side, f"{rate:.0f}", speed_up, f"{metric:.3f}"])
    return lines_of(header, rows)


def bert_pretraining(record: dict) -> str:
    """Accuracy of the pretrained model on held-out text."""
    metrics = list(record["stages"].values())[-1]["metrics"]  # of the last stage
    rows = []
    for name, title in (("masked", "masked tokens"), ("nsp", "next sentence")):
        if f"{name}_accuracy" in metrics:
            accuracy, baseline = metrics[f"{name}_accuracy"], metrics[f"{name}_baseline"]
            rows.append([title, f"{accuracy:.3f}", f"{baseline:.3f}"])
    return lines_of(["accuracy on held-out text", "this model", "most frequent answer"], rows)


def bert_fine_tuning(record: dict) -> str:
    """Fine-tuning from random weights against fine-tuning from the pretrained ones."""
    rows = []
    for task, sides in record["fine_tuning"].items():
        cells = [with_spread(sides[side], 3) for side in ("random", "pretrained")]
        rows.append([f"{task}, {METRICS[sides['metric']]}", *cells])
    return lines_of(["fine-tuned from", "random weights", "this model"], rows)


def serving(record: dict) -> str:
    """Tokens per second of each way to serve, by the number of users at once."""
    ways = {name: way for name, way in record["ways"].items() if name != "prefill"}
    users = list(ways["generate"])
    header = ["tokens per second, all users together", *[plural(int(n), "user") for n in users]]
    header += ["first text with 16 users, median", "memory"]
    rows = []
    for name, way in ways.items():
        rates = [f"{way[count]['tokens_per_second']:.0f}" for count in users]
        first_text, memory = way["16"]["first_text_p50"], way["16"]["memory_mb"] / 1000
        rows.append([name, *rates, f"{first_text:.2f} s", f"{memory:.1f} GB"])
    return lines_of(header, rows)


def instruct(record: dict) -> str:
    """Seconds and memory of each stage of an instruct model, and the estimate that PPO prints."""
    rows = []
    for stage, entry in record["stages"].items():
        estimate = "-"
        if "estimate_gb" in entry:
            estimate = f"{entry['estimate_gb']:.1f} GB"
        memory = [f"{entry[f'peak_memory{part}_gb']:.1f} GB" for part in ("_in_training", "")]
        rows.append([stage, entry["precision"], f"{entry['seconds']:.0f}", *memory, estimate])
    header = [
        "stage",
        "precision",
        "seconds",
        "memory up to the last update",
        "with saving",
        "estimate",
    ]
    return lines_of(header, rows)


# A table's name is its record's, and after a colon the part of the record it shows.
TABLES: dict[str, Callable[[dict], str]] = {
    "demo": demo,
    "demo:samples": demo_samples,
    "demo:voices": demo_voices,
    "alignment": alignment,
    "alignment:samples": alignment_samples,
    "ladder": ladder,
    "ladder/stories": ladder,
    "ladder/korean": partial(ladder, titles=LADDER_KOREAN),
    "ladder/korean:answers": partial(ladder_answers, title=LADDER_KOREAN["rung"]),
    "seq2seq": pairs_of_texts,
    "value_decoding": value_decoding,
    "algorithms": algorithms,
    "ppo_throughput": ppo_throughput,
    "bert/tasks": bert_tasks,
    "bert/speed": bert_speed,
    "bert/pretraining-stories": bert_pretraining,
    "bert/pretraining-stories:fine_tuning": bert_fine_tuning,
    "bert/pretraining-reviews": bert_pretraining,
    "bert/pretraining-reviews:fine_tuning": bert_fine_tuning,
    "instruct/smollm2_360m": instruct,
    "instruct/qwen3_0.6b": instruct,
    "instruct/llama3.2_1b": instruct,
    "serving/small": serving,
    "serving/medium": serving,
}


# ---- pages ----


def pages() -> list[Path]:
    """Every page that may hold a marker."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def fill(page: Path) -> str:
    """The text of a page with every marker filled in."""

    def fill_one(match: re.Match) -> str:
        kind, name, arguments, body = (
            match["kind"],
            match["name"],
            match["arguments"],
            match["body"],
        )
        record = load(newest(name.partition(":")[0]))
        if kind == "number":
            keys, _, form = arguments.strip().partition(" ")
            body = as_text(look_up(record, keys), form)
        elif kind == "table":
            # its markers are lines of their own
            body = f"\n{TABLES[name](record)}\n"
        elif kind == "record":
            body = source(name)
        else:
            picture = os.path.relpath(newest(name).with_suffix(".png"), page.parent)
            body = re.sub(r"\]\(.*\)", f"]({picture})", body)
        return f"<!-- {kind} {name}{arguments} -->{body}<!-- /{kind} -->"

    marker = (
        r"<!-- (?P<kind>number|table|record|picture) (?P<name>\S+)(?P<arguments>[^>]*?) -->"
        r"(?P<body>.*?)<!-- /(?P=kind) -->"
    )
    return re.sub(marker, fill_one, page.read_text(encoding="utf-8"), flags=re.S)


def main() -> None:
    for page in pages():
        page.write_text(fill(page), encoding="utf-8")


if __name__ == "__main__":
    main()
