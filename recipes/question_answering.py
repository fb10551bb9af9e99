"""Question answering: questions with the place of their answer in a context -> a BERT class model that marks it.

    accelerate launch recipes/question_answering.py --config recipes/configs/question_answering/squad.yaml
    accelerate launch recipes/question_answering.py --dataset_name questions.jsonl --model_name_or_path bert-base-uncased \\
        --output_dir runs/reader

Rows {question, context, answers: {text: [...], answer_start: [...]}}, or SQuAD's own file, v1 or v2 (KorQuAD's too): a row
whose lists are empty has no answer in its context, and where training rows have none the model learns to say so. Time:
an epoch of SQuAD is some 90,000 windows, so a GPU; a few thousand short contexts take minutes on two cores.
Look at: exact match and F1 on contexts that were not trained on, and the table of mistakes; question_answering.json has
both by kind of question, predictions.json (and na_prob.json, v2) is what SQuAD's official evaluation reads.
"""

from dataclasses import dataclass, field

from transformers import DataCollatorWithPadding, set_seed

from rlhf.data.splits import load_splits
from rlhf.errors import UserError
from rlhf.models.load import load_tokenizer, save
from rlhf.models.lora import add_lora
from rlhf.models.parts import context_length
from rlhf.runs.progress import sample_table
from rlhf.runs.run import recording, start
from rlhf.runs.settings import DataSettings, ModelSettings, ScratchSettings
from rlhf.tasks.model import start_encoder
from rlhf.tasks.question_answering.encode import best_answers, encode_windows, question_ids
from rlhf.tasks.question_answering.metrics import normalize_answer, reading_report
from rlhf.tasks.trainer import EncoderConfig, EncoderTrainer


@dataclass
class ReadingSettings(DataSettings, ModelSettings, ScratchSettings):
    """What is learned, from which rows, and how contexts are read."""

    model_name_or_path: str = field(
        default="bert-base-uncased", metadata={"help": "Run folder or Hub id to start from."}
    )
    model_type: str = field(
        default="bert", metadata={"help": "Architecture of a model from scratch: bert."}
    )
    stride: int = field(
        default=128, metadata={"help": "Tokens by which two windows of a long context overlap."}
    )
    max_answer_length: int = field(
        default=30, metadata={"help": "Tokens of the longest answer. BERT: 30."}
    )
    answer_unit: str = field(
        default="word",
        metadata={"help": "What F1 counts: word, by SQuAD's rules, or character, by KorQuAD's."},
    )


@dataclass
class ReadingConfig(EncoderConfig):
    """How it is trained; see EncoderConfig."""

    max_length: int = field(
        default=384, metadata={"help": "Tokens of a window: question and context. BERT: 384."}
    )


def has_unanswerable(splits) -> bool:
    """Whether the model is to learn that a context may hold no answer."""
    train, evaluation = (
        sum(not row["answers"]["text"] for row in rows) for rows in (splits.train, splits.eval)
    )
    if evaluation and not train:
        raise UserError(
            f"{evaluation} evaluation rows have no answer in their context, and no training row shows that this may be: "
            "add such rows to the training, or remove these"
        )
    if train == len(splits.train):
        raise UserError(
            f"none of the {train} training rows has an answer: there is nothing to mark"
        )
    return train > 0


def main(settings: ReadingSettings, args: ReadingConfig) -> None:
    with recording("question_answering", settings, args) as run:
        set_seed(args.seed)
        # refuses an unknown unit before anything is read
        normalize_answer("", settings.answer_unit)
        tokenizer = load_tokenizer(settings.tokenizer_name_or_path or settings.model_name_or_path)
        splits = load_splits(settings, ("question_answering",), seed=args.seed)
        run.data(splits)
        if not splits.eval:
            raise UserError(
                "the model is evaluated on rows that it was not trained on: set eval_fraction or eval_dataset_name"
            )
        ids, unanswerable = question_ids(splits.eval), has_unanswerable(splits)

        model = start_encoder(run, settings, tokenizer, "question_answering", pairs=True)
        reading = {
            "max_length": min(args.max_length, context_length(model), tokenizer.model_max_length),
            "stride": settings.stride,
            "max_answer_length": settings.max_answer_length,
        }
        train = encode_windows(tokenizer, splits.train, **reading)
        evaluation = encode_windows(tokenizer, splits.eval, **reading)
        windows = sorted(evaluation.windows, key=lambda window: len(window.feature["input_ids"]))
        run.say(
            f"{len(splits.train)} questions in {len(train.windows)} windows of at most {reading['max_length']} tokens, "
            f"{len(splits.eval)} held out in {len(windows)}; {train.cut + evaluation.cut} questions cut, "
            f"{train.missed + evaluation.missed} answers are no span of tokens within reach"
        )
        model.config.reader_windows = reading
        if settings.use_peft:
            model = add_lora(
                model, task="QUESTION_ANS", rank=settings.lora_r, alpha=settings.lora_alpha
            )

        def judge(output) -> tuple[list[dict], dict]:
            """The best span of each evaluation row, and the report; of the logits of all windows."""
            longest = settings.max_answer_length
            found = best_answers(
                splits.eval, windows, list(zip(*output.predictions)), max_answer_length=longest
            )
            options = {"answer_unit": settings.answer_unit, "with_threshold": unanswerable}
            return found, reading_report(splits.eval, found, **options)

        def metrics(output) -> dict[str, float]:
            report = judge(output)[1]
            return {name: report[name] for name in ("exact", "f1")}

        args.label_names = ["start_positions", "end_positions"]
        trainer = EncoderTrainer(
            model=model, args=args, train=[window.feature for window in train.windows],
            evaluation=[window.feature for window in windows], metrics=("f1",), compute_metrics=metrics,
            processing_class=tokenizer, data_collator=DataCollatorWithPadding(tokenizer),
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)

        output = trainer.predict(trainer.eval_dataset, metric_key_prefix="eval")
        found, report = judge(output)
        scored = report.pop("rows_scored")
        run.metrics(
            {"exact": report["exact"], "f1": report["f1"], "eval_loss": output.metrics["eval_loss"]}
        )
        run.metrics({"eval_rows": len(splits.eval), "train_rows": len(splits.train)})
        run.metrics(
            {
                "train_windows": len(train.windows),
                "answers_out_of_reach": train.missed + evaluation.missed,
            }
        )
        if unanswerable:
            run.metrics({"no_answer_threshold": report["no_answer_threshold"]})
        if not run.main:
            return
        trained = trainer.accelerator.unwrap_model(trainer.model)
        trained.config.no_answer_threshold = report.get("no_answer_threshold")
        save(trained, tokenizer, args.output_dir)
        gold = [" | ".join(dict.fromkeys(row["answers"]["text"])) for row in splits.eval]
        mistakes = [
            {"id": name, "question": row["question"], "gold": answers, **score}
            for name, row, answers, score in zip(ids, splits.eval, gold, scored)
            if not score["exact"]
        ]
        run.write("question_answering.json", report | {"mistakes": mistakes[:100]})
        run.write(
            "predictions.json", {name: score["predicted"] for name, score in zip(ids, scored)}
        )
        if unanswerable:
            run.write(
                "na_prob.json", {name: answer["no_answer"] for name, answer in zip(ids, found)}
            )
        said = [{"question": row["question"], "context": row["context"]} for row in splits.eval]
        run.samples([row | {"predicted": score["predicted"]} for row, score in zip(said, scored)])
        if mistakes:
            run.say(
                f"{len(mistakes)} of {len(ids)} held-out questions are not answered exactly; the first:"
            )
            run.say(
                sample_table(mistakes, columns=["question", "gold", "predicted", "f1"], limit=8)
            )


if __name__ == "__main__":
    start(main, __doc__)
