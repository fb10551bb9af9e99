"""The evaluation as tasks of lm_eval (EleutherAI's lm-evaluation-harness): one YAML and one .jsonl for each draw.

The shots are part of the exported prompts, since lm_eval draws its own in another way. So both read the same tokens.
lm_eval would cut a prompt that is too long at its start, so the prompts are those that fit into the context of one run.
A group of the task's name runs all of them: lm_eval --include_path FOLDER --tasks NAME.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from rlhf.errors import UserError
from rlhf.few_shot.evaluate import Evaluator, number_of_draws
from rlhf.few_shot.prompts import DELIMITER, PromptWriter
from rlhf.few_shot.questions import Questions, draw_shots

# {{prompt}} is Jinja, which lm_eval fills with the columns of a row.
TASK = {
    "dataset_path": "json",
    "output_type": "multiple_choice",
    "test_split": "test",
    "doc_to_text": "{{prompt}}",
    "doc_to_choice": "{{choices}}",
    "doc_to_target": "gold",
    "target_delimiter": DELIMITER,
    "num_fewshot": 0,
    "metric_list": [
        {"metric": "acc", "aggregation": "mean", "higher_is_better": True},
        {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True},
    ],
    "metadata": {"version": 1.0},
}


def check_can_export(questions: Questions, writer: PromptWriter) -> None:
    """Refuse what lm_eval would not compute in the same way."""
    if not questions.is_ranked:
        raise UserError(
            "--export_lm_eval is for classification and multiple choice: lm_eval compares generated answers by other rules"
        )
    if writer.chat:
        raise UserError(
            "--export_lm_eval writes plain text, and these prompts are turns of a chat template: add --format text"
        )


def export(folder: Path, name: str, questions: Questions, evaluator: Evaluator) -> list[str]:
    """Write the tasks and their group, and return the names of the tasks. evaluator: of the run that reads the prompts."""
    settings = evaluator.settings
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for count in settings.shots:
        for draw in range(number_of_draws(count, settings)):
            task = task_name(name, count, draw)
            shots = draw_shots(questions.pool, count, seed=settings.seed, draw=draw)
            data = folder / f"{task}.jsonl"
            data.write_text("".join(rows(questions, evaluator, shots)), encoding="utf-8")
            # lm_eval looks for relative paths where it was started.
            content = TASK | {"dataset_kwargs": {"data_files": {"test": str(data.resolve())}}}
            write_yaml(folder / f"{task}.yaml", {"task": task} | content)
            names.append(task)
    write_yaml(folder / f"{name}.yaml", {"group": name, "task": names})
    return names


def task_name(name: str, shots: int, draw: int) -> str:
    return f"{name}_{shots}_shots_draw_{draw}"


def rows(questions: Questions, evaluator: Evaluator, shots: list) -> Iterator[str]:
    """The lines of the .jsonl of a task."""
    for question in questions.evaluated:
        _, kept = evaluator.fit(question, shots)
        row = {"prompt": evaluator.writer.text(kept, question.texts)}
        row |= {"choices": list(question.answers), "gold": question.gold}
        yield json.dumps(row, ensure_ascii=False) + "\n"


def write_yaml(path: Path, content: dict) -> None:
    """JSON is YAML too, and every string in it keeps its type."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
