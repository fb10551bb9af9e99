"""The runs that are killed: every recipe that trains, on a few rows and the smallest models, in a second or two."""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path

LETTERS = "a b c d e f g h".split()
COLOURS = ["red", "green", "blue", "grey"]
WORDS = [*LETTERS, *COLOURS, "yes", "no", "which", "colour"]
ROWS = 40

QUICK = "--use_cpu true --report_to none --per_device_train_batch_size 4 --logging_steps 1 --eval_fraction 0.2"
SCRATCH = "--from_scratch true --hidden_size 16 --layers 1 --heads 2 --context 32"
# Every fourth step of some sixteen is evaluated and saved.
STEPS = (
    "--num_train_epochs 2 --save_strategy steps --save_steps 4 --eval_strategy steps --eval_steps 4"
)
ENCODER = (
    f"{QUICK} {SCRATCH} --tokenizer_name_or_path DATA/bert --max_length 16 --learning_rate 1e-3"
)
GPT2 = f"{SCRATCH} --tokenizer_name_or_path DATA/gpt2"
PPO = (
    "--use_cpu true --report_to none --per_device_train_batch_size 4 --eval_fraction 0.2 "
    "--dataset_name DATA/prompts.jsonl --model_name_or_path DATA/sft --learning_rate 1e-3 "
    "--total_episodes 48 --rollout_batch_size 8 --max_completion_length 6 --save_every 2 --eval_every 2"
)
SCORED = "--reward_model_path DATA/reward"


@dataclass(frozen=True)
class Case:
    """One run. flags: of its command line, where DATA is the folder of data and models."""

    recipe: str
    flags: str
    processes: int = 1

    def command(self, data: Path, output: Path) -> list[str]:
        """The command line without the script."""
        flags = self.flags.replace("DATA", str(data)).split()
        return [*flags, "--output_dir", str(output)]


SFT = f"{QUICK} --dataset_name DATA/demonstrations.jsonl --precision fp32"
REWARD = f"{QUICK} --dataset_name DATA/rankings.jsonl --model_name_or_path DATA/sft"
LORA = "--use_peft true --lora_r 2"
GROUPS = "--num_generations 2"

# The models that later runs start from, in their order.
BASES = {
    "sft": Case("sft", f"{SFT} {GPT2} --max_steps 4 --save_strategy no"),
    "reward": Case("reward", f"{REWARD} --max_steps 4 --save_strategy no"),
}
CASES = {
    "sft": Case("sft", f"{SFT} {STEPS} {GPT2}"),
    "sft-lora": Case("sft", f"{SFT} {STEPS} --model_name_or_path DATA/sft {LORA}"),
    # Logged between two saves, so that a checkpoint falls into the middle of what is added up for a log.
    "sft-logs": Case("sft", f"{SFT} {STEPS} {GPT2} --logging_steps 3"),
    "sft-two": Case("sft", f"{SFT} {STEPS} {GPT2} --save_total_limit 1", processes=2),
    "reward": Case("reward", f"{REWARD} {STEPS}"),
    "reward-two": Case("reward", f"{REWARD} {STEPS} --logging_steps 3", processes=2),
    "classification": Case("classification", f"{ENCODER} {STEPS} --dataset_name DATA/topics.jsonl"),
    "classification-two": Case(
        "classification", f"{ENCODER} {STEPS} --dataset_name DATA/topics.jsonl", processes=2
    ),
    # The defaults: evaluated and saved after each epoch, and the best one kept.
    "ner": Case("ner", f"{ENCODER} --dataset_name DATA/tags.jsonl"),
    "question_answering": Case(
        "question_answering",
        f"{ENCODER} {STEPS} --dataset_name DATA/questions.jsonl --stride 2 --answer_unit word",
    ),
    "multiple_choice": Case(
        "multiple_choice", f"{ENCODER} {STEPS} --dataset_name DATA/choices.jsonl"
    ),
    "pretrain-masked": Case(
        "pretrain",
        f"{QUICK} {SCRATCH} {STEPS} --objective masked --tokenizer_name_or_path DATA/bert --block_size 16 "
        "--dataset_name DATA/text.txt --bf16 false",
    ),
    "pretrain-causal": Case(
        "pretrain",
        f"{QUICK} {GPT2} {STEPS} --block_size 16 --dataset_name DATA/text.txt --bf16 false",
    ),
    "ppo": Case("ppo", f"{PPO} {SCORED} --epochs_per_rollout 2 --kl_target 1"),
    "ppo-ema": Case("ppo", f"{PPO} {SCORED} --value_model shared --ema_decay 0.9"),
    "ppo-lora": Case("ppo", f"{PPO} {SCORED} {LORA}"),
    "trpo": Case("ppo", f"{PPO} {SCORED} --algorithm trpo"),
    "rloo": Case("ppo", f"{PPO} {SCORED} --algorithm rloo {GROUPS}"),
    "grpo": Case("ppo", f"{PPO} {SCORED} --algorithm grpo {GROUPS}"),
    "ppo-two": Case("ppo", f"{PPO} {SCORED}", processes=2),
    "grpo-two": Case("ppo", f"{PPO} {SCORED} --algorithm grpo {GROUPS}", processes=2),
}


def write_data(folder: Path) -> None:
    """Write the rows of every recipe, and the two tokenizers."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = [" ".join(letters) for letters in itertools.product(LETTERS, repeat=3)][:: 512 // ROWS]
    rows: dict[str, list[dict]] = {}
    for i, text in enumerate(texts[:ROWS]):
        colour = COLOURS[i % len(COLOURS)]
        add(rows, "demonstrations", prompt=f"{text} which", completion=colour)
        add(rows, "prompts", prompt=f"{text} which")
        add(rows, "rankings", prompt=text, completions=["yes yes", "yes", "no"], ranks=[0, 1, 2])
        add(rows, "topics", text=f"{text} {colour}", label=colour)
        tags = ["O", "O", "O", "B-colour"]
        add(rows, "tags", tokens=[*text.split(), colour], tags=tags)
        answers = {"text": [colour], "answer_start": [len(text) + 1]}
        question = {"id": f"n{i}", "question": "which colour", "context": f"{text} {colour}"}
        add(rows, "questions", **question, answers=answers)
        add(rows, "choices", text=f"{text} {colour}", choices=["yes", "no"], label=i % 2)
    for name, content in rows.items():
        lines = [json.dumps(row) + "\n" for row in content]
        (folder / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    words = itertools.cycle(WORDS)
    lines = [" ".join(itertools.islice(words, 5 + i % 9)) + "\n" for i in range(2 * ROWS)]
    (folder / "text.txt").write_text("".join(lines), encoding="utf-8")
    write_tokenizer(folder / "gpt2", ["<eos>", "<unk>"], eos_token="<eos>", unk_token="<unk>")
    frame = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    write_tokenizer(folder / "bert", list(frame.values()), **frame)


def add(rows: dict[str, list[dict]], name: str, **columns) -> None:
    """Add a row to a file that will be written."""
    rows.setdefault(name, []).append(columns)


def write_tokenizer(folder: Path, special: list[str], **names: str) -> None:
    """Write a tokenizer of whole words. names: cls_token and others; with one, a text is framed as BERT's are."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=names["unk_token"]))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if "cls_token" in names:
        frame = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
        inner.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
        )
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=inputs, **names)
    tokenizer.save_pretrained(folder)
