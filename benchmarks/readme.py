"""Write the result tables of README.md and docs/ from the newest committed records: python benchmarks/readme.py"""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
PAGES = (ROOT / "README.md", ROOT / "docs" / "algorithms.md", ROOT / "docs" / "bert.md")


def newest(name: str) -> dict | None:
    """The last record of a folder, or of one question of it: bert/speed."""
    folder, _, question = name.partition("/")
    records = sorted((HERE / folder / "results").glob(f"{question}*.json"))
    return (
        json.loads(records[-1].read_text(encoding="utf-8")) | {"path": records[-1]}
        if records
        else None
    )


def source(record: dict) -> str:
    path, cores = record["path"].relative_to(ROOT), record["machine"]["cores"]
    return f"Record: `{path}`, commit {record['commit']}, {cores} core{'s' if cores > 1 else ''}."


def demo(record: dict) -> str:
    runs, greedy = (
        {run["label"]: run["metrics"] for run in record["runs"] if run["decoding"] == way}
        for way in ("sampled", "greedy")
    )
    for label, metrics in greedy.items():
        runs[label] |= {
            f"greedy_{name}": metrics[name] for name in ("score_on_topic", "score_preferred_voice")
        }
    names = {
        "score_on_topic": ("on-topic rate", 100, "%"),
        "score_preferred_voice": (f"preferred voice ({record['voice']})", 100, "%"),
        "greedy_score_on_topic": ("on-topic rate, greedy", 100, "%"),
        "greedy_score_preferred_voice": ("preferred voice, greedy", 100, "%"),
        "score_reward_model": ("reward model's score", 1, ""),
        "kl": ("KL to the SFT model, nats per answer", 1, ""),
        "distinct_2": ("distinct-2", 1, ""),
        "eos_rate": ("ends by itself", 100, "%"),
    }
    lines = [f"| on held-out wordings | {' | '.join(runs)} |", "|---" * (len(runs) + 1) + "|"]
    for name, (title, factor, unit) in names.items():
        cells = []
        for metrics in runs.values():
            value = metrics.get(name)
            if value is None:
                cells.append("-")
                continue
            text = f"{value['mean'] * factor:.{1 if unit else 2}f}{unit}"
            if value["low"] is not None:
                text += f" ({value['low'] * factor:.{1 if unit else 2}f} to {value['high'] * factor:.{1 if unit else 2}f})"
            cells.append(text)
        lines.append(f"| {title} | {' | '.join(cells)} |")
    settings = record["settings"]
    timing = f"{record['seconds']:.0f} s after installation, "
    lines.append(
        f"\n{settings['prompts']} prompts in wordings that no stage saw, one sampled answer each at temperature "
        f"{settings['temperature']}, 95 % intervals; one seed. Settings and topics were chosen while looking at "
        f"these wordings, so expect a little less on others; {timing}{record['peak_memory_gb']:.1f} GB. {source(record)}\n"
    )
    labels = [run["label"] if run["decoding"] == "sampled" else "" for run in record["runs"]]
    labels = [label for label in labels if label]
    lines.append(f"| prompt | {' | '.join(labels[-2:])} |\n|---|---|---|")
    for sample in record["samples"][:6]:
        answers = [
            next(v for k, v in sample["completions"].items() if k.split()[0] == label)
            for label in labels[-2:]
        ]
        lines.append(
            f"| {' | '.join(text.replace('|', '/') for text in [sample['prompt'], *answers])} |"
        )
    return "\n".join(lines)


def e2e(record: dict) -> str:
    titles = {
        "score_slot_coverage": "slot coverage (counted)",
        "score_quality": "quality reward model (PPO's own)",
        "score_naturalness": "naturalness reward model (never seen by PPO)",
        "kl": "KL to SFT, nats per text",
        "completion_length": "length, tokens",
        "distinct_2": "distinct-2",
    }

    def cell(entry: dict) -> str:
        return f"{entry['mean']:.2f}" + (f" ± {entry['sd']:.2f}" if entry["sd"] is not None else "")

    reward = record["reward_models"]["reward"]
    lines = [
        "Restaurant facts to text (E2E NLG challenge), rankings by people of up to five systems' texts, everything trained "
        "here from scratch. Reward model: pair accuracy "
        f"{reward['accuracy']:.3f} ({reward['accuracy_low']:.3f} to {reward['accuracy_high']:.3f}) on {reward['prompts']} "
        "unseen rankings. Judged on facts that no stage saw, by what no stage optimised alone:\n",
        "| sampled text | SFT | PPO, reward model alone | PPO, reward model + 8 x slot coverage |",
        "|---|---|---|---|",
    ]
    for name, title in titles.items():
        sft = record["sft"].get(name)
        row = [
            title,
            f"{sft[0]:.2f}" if sft else "0",
            cell(record["ppo_reward_model_alone"][name]),
            cell(record["ppo_both"][name]),
        ]
        lines.append(f"| {' | '.join(row)} |")
    lines.append(
        f"\nMean ± standard deviation over seeds {record['seeds']} (reward model alone: {record['seeds_alone']}), "
        f"{record['prompts']} lists of facts x "
        f"{record['samples_per_prompt']} samples; settings were chosen while looking at these facts. "
        "The lesson: what a reward model cannot see, PPO does not fix. "
        "Alone it makes "
        "the text fluent and well liked while facts go on missing; a Python function of eight lines beside it repairs that. "
        f"{source(record)} `python benchmarks/e2e/run.py --source FOLDER`"
    )
    return "\n".join(lines)


def algorithms(record: dict) -> str:
    picture = record["path"].with_suffix(".png").relative_to(ROOT)
    return "\n".join([
        "The demo's task: from the same SFT model, reward model and prompts, 5,120 episodes each; mean ± standard deviation "
        f"over seeds {record['seeds']}, judged on samples at temperature 1 for held-out wordings. The learning rate is the "
        "same for all, tuned for none; PPO and GRPO make two passes over a rollout, the others one. No algorithm sees topic "
        "or voice, only the reward model's score less KL.\n",
        *record["table"],
        f"\n![score against KL and seconds](../{picture})\n",
        f"{source(record)} `python benchmarks/algorithms/run.py --runs FOLDER`",
    ])  # fmt: skip


def ppo_throughput(record: dict) -> str:
    lines = ["| shape | side | s per update | decode | score | update | peak GB | times TRL fp32's speed | of its memory |",
             "|---|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for shape, found in record["summary"].items():
        for side, column in found["columns"].items():
            cells = [
                f"{column[f'{key}_seconds']['median']:.1f}" for key in ("decode", "score", "update")
            ]
            ratio = found["ratios"].get(f"trl fp32 / {side}")
            speed = (
                "{median:.2f} ({min:.2f} to {max:.2f})".format(**ratio["seconds"]) if ratio else "-"
            )
            memory = f"{1 / ratio['memory']['median']:.2f}" if ratio else "-"
            seconds = f"{column['seconds_per_update']['median']:.1f}"
            gb = f"{column['memory_gb']['median']:.2f}"
            lines.append(
                f"| {shape} | {side} | {seconds} | {' | '.join(cells)} | {gb} | {speed} | {memory} |"
            )
    return "\n".join([
        *lines,
        "\nOne PPO update, alternating in one run: small is GPT-2 4 x 256, vocabulary 8,192, 64 episodes of 32 + 48 tokens; "
        "gpt2 is GPT-2 small, 16 episodes of 32 + 32; 4 epochs, the same micro-batches and optimiser steps. `ours` is bf16 "
        "with a value head on the policy's trunk; `separate` has a value model of its own, as TRL always has; `lora` trains "
        "rank-16 matrices. Our side keeps freed memory, TRL's runs as it comes. "
        f"{source(record)} What was tried: `benchmarks/LOG.md`.",
    ])  # fmt: skip


def ppo_learning(record: dict) -> str:
    lines = [
        "| side | seconds | score | slot coverage | KL | score - TRL's (95 %) | coverage - TRL's | 90 % of its gain after |",
        "|---|---|---|---|---|---|---|---|",
    ]
    seed = str(record["seeds"][0])
    for side, curves in record["curves"].items():
        end = curves[seed][-1]
        gaps = {g["of"]: g for g in record["ours_minus_trl_at_the_end"] if g["side"] == side}
        reached = [
            r for r in record["first_with_share_of_final_gain_of_trl"]
            if r["side"] == side and r["of"] == "score" and r["share"] == 0.9
        ]  # fmt: skip
        cells = [f"{end['seconds']:.0f}"] + [
            f"{end[name]:.2f}" for name in ("score", "coverage", "kl")
        ]
        for name in ("score", "coverage"):
            cells.append(
                "{mean:.2f} ({low:.2f} to {high:.2f})".format(**gaps[name]) if gaps else "-"
            )
        cells.append(
            "{seconds:.0f} s, {episodes:.0f} episodes".format(**reached[0]) if reached else "-"
        )
        lines.append(f"| {side} | {' | '.join(cells)} |")
    return "\n".join([
        *lines,
        "\nE2E restaurant facts, the same SFT policy and reward model, 1,920 episodes, equal settings and optimiser steps, "
        f"judged on held-out prompts; seed {seed} only, one core. `ours` as in e2e.yaml (bf16, value head on the trunk), "
        "`ours separate` with a value model of its own, TRL's learning rate for it and no clipping of gradients. "
        f"{source(record)}\n",
        f"![score and slot coverage](../{record['path'].with_suffix('.png').relative_to(ROOT)})",
    ])  # fmt: skip


METRICS = {"f1": "F1", "accuracy": "accuracy"}


def bert_tasks(record: dict) -> str:
    titles = {
        "banking77": "77 intents of bank customers (banking77)",
        "sst2": "sentiment of sentences (SST-2, its dev set)",
        "ner": "slots as entities (restaurant8k)",
        "qa": "slots as answers (restaurant8k)",
    }
    seeds = len(record["seeds"])
    lines = [
        f"| task | recipe | metric | {seeds} seeds | held-out rows | minutes | GB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, task in record["tasks"].items():
        low, high = min(task["values"]), max(task["values"])
        cells = [
            titles[name],
            f"`{task['recipe']}.py`",
            METRICS[task["metric"]],
            f"{task['mean']:.3f} ± {task['sd']:.3f} ({low:.3f} to {high:.3f})",
            f"{task['metrics'][0]['eval_rows']:,}",
            f"{max(task['seconds']) / 60:.1f}",
            f"{task['peak_memory_gb']:.1f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([
        *lines,
        "\nMiniLM (6 layers of 384, 22.7 M parameters) fine-tuned with the recipes; mean ± standard deviation over seeds "
        f"{record['seeds']} (smallest to largest); minutes of the slowest{record['note'] and '; ' + record['note']}. No "
        "held-out text or context stands in the training rows, and the last epoch is judged, not the best; learning rates "
        "and epochs were chosen while looking at such splits. "
        f"{source(record)} `python benchmarks/bert/tasks.py --source FOLDER`",
    ])  # fmt: skip


def bert_speed(record: dict) -> str:
    settings, rounds = record["settings"], len({run["seed"] for run in record["rounds"]})
    lines = [
        "| task | side | rows a second | ours is faster by | judged |",
        "|---|---|---|---|---|",
    ]
    for task, sides in record["summary"].items():
        for side, found in sides.items():
            low, middle, high = found["ours_is_faster_by"]
            times = f"{middle:.2f} ({low:.2f} to {high:.2f})" if side != "ours" else "-"
            lines.append(
                f"| {task} | {side} | {found['rows_per_second']:.0f} | {times} | {found['judged']:.3f} |"
            )
    return "\n".join([
        *lines,
        f"\nTraining on {settings['rows']:,} rows, {settings['epochs']} epochs of batches of {settings['batch']}, "
        f"{rounds} rounds of all sides in turn. `example`: padded to the example scripts' maximum (sst2 128, "
        "qa 384, ner to the batch); `plain`: transformers.Trainer, padded to the batch; `ours`: EncoderTrainer. judged: "
        f"accuracy or F1 on held-out rows, mean of the rounds. {source(record)}",
    ])  # fmt: skip


CORPORA = {  # text, and what is to be known of the fine-tunings
    "stories": (
        "stories",
        "1,000 rows (ner) and 2,000 (sst2: reviews of films, where the stories did not help)",
    ),
    "reviews": (
        "Korean reviews",
        "5,000 reviews (nsmc, judged on its 5,000 others) and about 3,600 sentences (klue_ner)",
    ),
}


def bert_pretraining(record: dict) -> str:
    text, rows = CORPORA[record["corpus"]]
    stages = list(record["stages"].values())
    found, minutes = stages[-1]["metrics"], sum(stage["seconds"] for stage in stages) / 60
    cores = record["matrix_gflops"][0]["threads"]
    rates = " and ".join(f"{stage['floor']['tokens_per_second']:,.0f}" for stage in stages)
    times = " and ".join(f"{stage['floor']['times_the_floor']:.1f}" for stage in stages)
    lines = [f"| on held-out {text} | this model | always the most frequent |", "|---|---|---|"]
    for name, title in (("masked", "masked words found"), ("nsp", "next sentence, or not")):
        if f"{name}_accuracy" in found:
            lines.append(
                f"| {title} | {found[f'{name}_accuracy']:.3f} | {found[f'{name}_baseline']:.3f} |"
            )
    lines += ["", "| fine-tuned from | random weights | these |", "|---|---|---|"]
    for task, sides in record["fine_tuning"].items():
        cells = [
            f"{sides[side]['mean']:.3f} ± {sides[side]['sd']:.3f}"
            for side in ("random", "pretrained")
        ]
        lines.append(f"| {task}, {METRICS[sides['metric']]} | {' | '.join(cells)} |")
    return "\n".join([
        *lines,
        f"\n{found['parameters'] / 1e6:.1f} M parameters, {minutes:.0f} minutes of pretraining on "
        f"{record['data'][0]['rows']:,} {text} on {cores} core{'s' * (cores > 1)}: {rates} tokens a second, {times} "
        "times what their matrix products would take at this machine's rate for large ones. Fine-tuning: mean ± "
        f"standard deviation over seeds {record['seeds']}, the same settings on both sides, {rows}. "
        f"{source(record)} `python benchmarks/bert/pretraining.py --source FOLDER --corpus {record['corpus']}`",
    ])  # fmt: skip


TABLES = {
    "bert/tasks": bert_tasks,
    "bert/speed": bert_speed,
    "bert/pretraining-stories": bert_pretraining,
    "bert/pretraining-reviews": bert_pretraining,
    "ppo_learning": ppo_learning,
    "demo": demo,
    "e2e": e2e,
    "algorithms": algorithms,
    "ppo_throughput": ppo_throughput,
}


def written(text: str) -> str:
    """The page with its tables filled in; a table without a record stays empty."""
    for name, table in TABLES.items():
        record = newest(name) if f"<!-- {name} -->" in text else None
        if record:
            body = f"<!-- {name} -->\n{table(record)}\n<!-- /{name} -->"
            text = re.sub(
                rf"<!-- {name} -->.*?<!-- /{name} -->", lambda _, body=body: body, text, flags=re.S
            )
    return text


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text(encoding="utf-8")), encoding="utf-8")
