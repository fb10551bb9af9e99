"""`rlhf evaluate RUN --dataset_name FILE --shots 0 1 4 16`: zero- and few-shot accuracy of language models.

Rows of classification, multiple choice and question answering become prompts. Given answers are ranked by their
log-probability, others are generated. Writes evaluation.json, answers.jsonl and accuracy.png. docs/few_shot.md explains it.
"""

import argparse
import json
import re
import sys
from contextlib import redirect_stdout
from dataclasses import asdict, replace
from pathlib import Path

from transformers.utils import logging

from rlhf.commands.predict import progress, table
from rlhf.commands.report import output_folder, read_file, report_folder
from rlhf.comparison.compare import ChatRun, load_runs
from rlhf.errors import UserError
from rlhf.few_shot.evaluate import (
    Cell,
    Evaluator,
    FewShotSettings,
    check_shots,
    evaluate_run,
    fitting_questions,
    number_of_draws,
)
from rlhf.few_shot.export import check_can_export, export
from rlhf.few_shot.prompts import TEMPLATES, PromptWriter, check_template
from rlhf.few_shot.questions import (
    KINDS_READ,
    Questions,
    draw_shots,
    majority_baseline,
    make_questions,
    random_baseline,
)
from rlhf.few_shot.report import COLUMNS, answer_lines, draw_picture, result_rows, table_rows
from rlhf.models.load import load_tokenizer
from rlhf.runs.record import command_line, package_versions
from rlhf.tasks.question_answering.metrics import check_unit

RESULTS, ANSWERS, PICTURE = "evaluation.json", "answers.jsonl", "accuracy.png"


def main(args: argparse.Namespace) -> int:
    if not args.json:
        evaluate_and_write(args)
        return 0
    # The terminal's other lines would break the JSON.
    with redirect_stdout(sys.stderr):
        text = evaluate_and_write(args)
    print(text)
    return 0


def evaluate_and_write(args: argparse.Namespace) -> str:
    """All of the command -> the text of evaluation.json, or the prompt of --show_prompt."""
    settings = check_arguments(args)
    folder = output_folder(args.output or report_folder(args.runs[-1]).with_name("few_shot"))
    # Loading has a bar, and tokenizers warn of long prompts before their shots are dropped.
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    # All that needs no weights is checked before a model is loaded.
    reading = {"columns": args.columns, "skip_bad": args.skip_bad}
    loaded = read_file(args.dataset_name, KINDS_READ, **reading)
    shots_loaded = None
    if args.shots_dataset_name:
        shots_loaded = read_file(args.shots_dataset_name, (loaded.kind,), **reading)
    questions = make_questions(
        loaded.rows,
        shots_loaded.rows if shots_loaded else None,
        loaded.kind,
        num_rows=args.num_rows,
        label_names=args.label_names,
        seed=args.seed,
    )
    check_shots(questions, settings)
    template = check_template(
        args.template or TEMPLATES[loaded.kind],
        loaded.kind,
        list(questions.evaluated[0].texts),
    )
    writers = []
    for run in args.runs:
        writers.append(make_writer(args, load_tokenizer(run), template, questions))
    print_counts(questions, len(loaded.rows))
    if args.show_prompt:
        shots = draw_shots(questions.pool, max(settings.shots), seed=args.seed, draw=0)
        prompt = writers[0].shown(shots, questions.evaluated[0].texts)
        print(prompt)
        return prompt
    if args.export_lm_eval:
        for writer in writers:
            check_can_export(questions, writer)
    runs = load_runs(args.runs, args.precision)
    questions = only_fitting(runs, writers, questions, settings)
    if args.export_lm_eval:
        tasks = Path(args.export_lm_eval)
        name = args.task_name or default_task_name(args.dataset_name)
        export(tasks, name, questions, Evaluator(runs[0], writers[0], settings))
        model = f"--model hf --model_args pretrained={args.runs[0]}"
        print(f"lm_eval --include_path {tasks} --tasks {name} {model}")
    cells = evaluate(runs, writers, questions, settings)
    sources = loaded.sources + (shots_loaded.sources if shots_loaded else [])
    facts = {
        "command": command_line(),
        "versions": package_versions(),
        "runs": args.runs,
        "data": sources,
        "template": template,
        "settings": asdict(settings) | {"format": args.format, "precision": args.precision},
    }
    return write(folder, questions, cells, facts)


def check_arguments(args: argparse.Namespace) -> FewShotSettings:
    """UserError for values that mean nothing, before anything is read."""
    for name in ("num_rows", "draws", "batch_size", "max_answer_length"):
        if getattr(args, name) < 1:
            raise UserError(f"--{name} {getattr(args, name)} must be at least 1")
    if min(args.shots) < 0:
        raise UserError(f"--shots {min(args.shots)} must be at least 0")
    check_unit(args.answer_unit)
    if args.task_name and not re.fullmatch(r"\w+", args.task_name):
        raise UserError(f"--task_name {args.task_name}: use letters, digits and _ only")
    return FewShotSettings(
        shots=tuple(sorted(set(args.shots))),
        draws=args.draws,
        seed=args.seed,
        batch_size=args.batch_size,
        max_answer_length=args.max_answer_length,
        answer_unit=args.answer_unit,
    )


def make_writer(
    args: argparse.Namespace, tokenizer, template: str, questions: Questions
) -> PromptWriter:
    """The writer of a run's prompts: turns of its chat template where it has one, unless --format says otherwise."""
    has_template = tokenizer.chat_template is not None
    if args.format == "chat" and not has_template:
        raise UserError(
            f"--format chat: {tokenizer.name_or_path} has no chat template: use --format text"
        )
    chat = has_template and args.format != "text"
    return PromptWriter(tokenizer, template, questions.labels, chat)


def print_counts(questions: Questions, total: int) -> None:
    """Say which rows are used, and what was dropped."""
    print(
        f"{len(questions.evaluated)} of {total} rows are evaluated, {len(questions.pool)} can be shots"
    )
    if questions.duplicates:
        print(f"{questions.duplicates} rows repeat an evaluated one and are no shots")
    if questions.unanswered:
        print(f"{questions.unanswered} rows have no answer in their context and were dropped")


def only_fitting(
    runs: list[ChatRun],
    writers: list[PromptWriter],
    questions: Questions,
    settings: FewShotSettings,
) -> Questions:
    """The questions that fit into the context of every run. The number of the others is printed."""
    kept = fitting_questions(list(zip(runs, writers)), questions, settings)
    dropped = len(questions.evaluated) - len(kept)
    if dropped:
        print(f"{dropped} rows are longer than the context of a run and were dropped")
    return replace(questions, evaluated=kept)


def default_task_name(path: str) -> str:
    """The name of the file without its endings."""
    return re.sub(r"\W+", "_", Path(path).name.split(".")[0]) or "task"


def evaluate(
    runs: list[ChatRun],
    writers: list[PromptWriter],
    questions: Questions,
    settings: FewShotSettings,
) -> list[Cell]:
    """The results of all runs, with a bar."""
    passes = sum(number_of_draws(count, settings) for count in settings.shots)
    cells = []
    with progress(len(runs) * passes * len(questions.evaluated)) as advance:
        for run, writer in zip(runs, writers):
            cells += evaluate_run(run, writer, questions, settings, advance)
    return cells


def write(folder: Path, questions: Questions, cells: list[Cell], facts: dict) -> str:
    """Write the files, print the table, and return the text of evaluation.json. facts: what the record says first."""
    results = result_rows(cells, facts["settings"]["seed"])
    baselines = {}
    if questions.is_ranked:
        baselines["majority"] = majority_baseline(questions)
        baselines["random"] = random_baseline(questions.evaluated)
    record = facts | {
        "kind": questions.kind,
        "labels": list(questions.labels),
        "rows": len(questions.evaluated),
        "pool": len(questions.pool),
        "duplicates_dropped": questions.duplicates,
        "baselines": baselines,
        "results": results,
    }
    folder.mkdir(parents=True, exist_ok=True)
    golds = [question.gold for question in questions.evaluated]
    lines = "\n".join(answer_lines(cells, golds)) + "\n"
    (folder / ANSWERS).write_text(lines, encoding="utf-8")
    text = json.dumps(record, indent=2, ensure_ascii=False)
    (folder / RESULTS).write_text(text + "\n", encoding="utf-8")
    draw_picture(results, baselines, folder / PICTURE)
    print(table(COLUMNS, table_rows(results, baselines)))
    for cell in cells:
        if cell.dropped_shots:
            print(
                f"{cell.run}, {cell.shots} shots: {cell.dropped_shots} did not fit into a context"
            )
        ties = max(cell.ties.values(), default=0)
        if ties:
            print(f"{cell.run}, {cell.shots} shots: {ties} ties, where the first answer counts")
    print(f"{folder}: {RESULTS}, {ANSWERS}, {PICTURE}")
    return text


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUN", help="run folders or Hub ids of language models")
    add("--dataset_name", required=True, metavar="FILE", help="rows with answers")
    add(
        "--shots_dataset_name",
        metavar="FILE",
        help="rows to draw shots from; default: the rows that are not evaluated",
    )
    add("--columns", help="our name = their name, as in text=sentence,label=stars")
    add("--skip_bad", action="store_true", help="drop and count bad rows of the files")
    add("--num_rows", type=int, default=200, help="rows to evaluate at most [%(default)s]")
    add("--shots", type=int, nargs="+", default=[0, 1, 4], metavar="K", help="[0 1 4]")
    add("--draws", type=int, default=3, help="of the shots, for each number [%(default)s]")
    add("--seed", type=int, default=0, help="of the rows and the shots [%(default)s]")
    add(
        "--label_names",
        nargs="+",
        metavar="NAME",
        help="texts of the labels 0, 1, ..., or label=text for each label",
    )
    add(
        "--template",
        help="text of a question with {column}; the answer follows after a space. default: by the kind of rows",
    )
    add(
        "--format",
        choices=["auto", "text", "chat"],
        default="auto",
        help="plain text, or turns of the chat template; auto: chat where there is one [%(default)s]",
    )
    add(
        "--show_prompt",
        action="store_true",
        help="print the first prompt of the first run, and stop",
    )
    add("--batch_size", type=int, default=32, help="sequences at a time [%(default)s]")
    add("--max_answer_length", type=int, default=24, help="generated tokens [%(default)s]")
    add("--answer_unit", default="word", help="of F1: word (SQuAD), character (KorQuAD)")
    add("--precision", choices=["fp32", "bf16"], default="fp32", help="of all runs [%(default)s]")
    add("--output", metavar="FOLDER", help="folder for the files; default: <last RUN>/few_shot")
    add("--json", action="store_true", help="print evaluation.json, and the table on stderr")
    add(
        "--export_lm_eval",
        metavar="FOLDER",
        help="also write the task for lm_eval, with the prompts of the first run",
    )
    add("--task_name", metavar="NAME", help="of the exported task; default: name of the file")
