"""Python code for the "Use" section of a model card: it loads the model and runs it on a sample. Tests run each one.

`{path}`, `{prompt}` and others are replaced by Python literals. The code of the encoder tasks is in `rlhf.task_table.TASKS`.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from rlhf.baselines.table import BASELINES
from rlhf.runs.record import RunRecord, read_object
from rlhf.task_table import TASKS

# Characters of the longest sample that a snippet uses as its input.
LONGEST_PROMPT, LONGEST_TEXT, LONGEST_CONTEXT = 80, 200, 300

_LOAD = """from transformers import {auto}, AutoTokenizer

path = {{path}}
tokenizer = AutoTokenizer.from_pretrained(path)
model = {auto}.from_pretrained(path)
"""
SNIPPETS = {
    "chat": _LOAD.format(auto="AutoModelForCausalLM")
    + """messages = [{{"role": "user", "content": {prompt}}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, sanitize_control_tokens=True, return_dict=True, return_tensors="pt"
)
output = model.generate(**inputs, max_new_tokens={length}, do_sample=True)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
""",
    "causal": _LOAD.format(auto="AutoModelForCausalLM")
    + """inputs = tokenizer({prompt}, return_tensors="pt")
output = model.generate(
    input_ids=inputs["input_ids"],
    attention_mask=inputs["attention_mask"],
    max_new_tokens={length},
    do_sample=True,
)
print(tokenizer.decode(output[0], skip_special_tokens=True))
""",
    "masked": _LOAD.format(auto="AutoModelForMaskedLM")
    + """inputs = tokenizer("A " + tokenizer.mask_token + " day.", return_tensors="pt")
index = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
print(tokenizer.decode(model(**inputs).logits[0, index].argmax()))
""",
    "score": _LOAD.format(auto="AutoModelForSequenceClassification")
    + """print(model(**tokenizer({prompt}, return_tensors="pt")).logits[0, 0].item(){centre})
""",
    "reward": _LOAD.format(auto="AutoModelForSequenceClassification")
    + """messages = [{{"role": "user", "content": {prompt}}}, {{"role": "assistant", "content": "Hello!"}}]
inputs = tokenizer.apply_chat_template(
    messages, sanitize_control_tokens=True, return_dict=True, return_tensors="pt"
)
score = model(**inputs).logits[0, 0].item(){centre}  # higher is better; only differences between answers mean something
print(score)
""",
    # An encoder reads prompt and answer as a pair of texts.
    "reward_of_pair": _LOAD.format(auto="AutoModelForSequenceClassification")
    + """inputs = tokenizer({prompt}, "Hello!", return_tensors="pt")
score = model(**inputs).logits[0, 0].item(){centre}  # higher is better; only differences between answers mean something
print(score)
""",
    # The head of a decoder reads the state after any token.
    "value": _LOAD.format(auto="AutoModelForSequenceClassification")
    + """inputs = tokenizer({prompt}, return_tensors="pt")
states = model.base_model(**inputs).last_hidden_state  # (1, tokens, hidden size)
values = model.score(states)[0, :, 0]{centre}  # after each token, the reward that is still to come
print(values.tolist())
""",
    # Beams and length are in its generation config.
    "seq2seq": """from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

path = {path}
tokenizer = AutoTokenizer.from_pretrained(path)
model = AutoModelForSeq2SeqLM.from_pretrained(path)
inputs = tokenizer({prompt}, return_tensors="pt")
output = model.generate(**inputs)
print(tokenizer.decode(output[0], skip_special_tokens=True))
""",
    "tokenizer": """from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({path})
ids = tokenizer({prompt})["input_ids"]
print(tokenizer.convert_ids_to_tokens(ids), tokenizer.decode(ids))
""",
    "word_vectors": """import json
import os

from huggingface_hub import snapshot_download
from safetensors.torch import load_file

path = {path}
folder = path if os.path.isdir(path) else snapshot_download(path)
vectors = load_file(f"{{folder}}/word_vectors.safetensors")["vectors"]  # (words, numbers of a vector)
with open(f"{{folder}}/words.json", encoding="utf-8") as file:
    words = json.load(file)["words"]
units = vectors / vectors.norm(dim=1, keepdim=True)
cosines = units @ units[0]  # with the most frequent word
print(words[0], [words[i] for i in cosines.topk(5).indices])
""",
} | {name: task.snippet for name, task in TASKS.items()}


REGISTER = """
from rlhf.baselines.table import register

register("{}")

"""
# The pipeline gives what the head gives.
CENTRED_NUMBER = "# The number is this score minus classify.model.config.score_centre.\n"


@dataclass
class Use:
    """The model that a snippet loads.

    kind: a key of SNIPPETS. path: the name to load. adapter: True for LoRA matrices alone.
    """

    kind: str
    folder: Path
    record: RunRecord
    path: str
    adapter: bool = False


def snippet(use: Use, samples: list[dict]) -> str:
    """Python code that loads the model and runs it on a sample."""
    kind, folder = use.kind, use.folder
    config = read_object(folder / "config.json")
    form = kind
    if kind == "reward" and config.get("trained_pairs"):
        form = "reward_of_pair"
    elif kind == "reward" and not has_chat_template(folder):
        form = "score"
    literals = {"prompt": first_short(samples, "prompt", LONGEST_PROMPT) or "Hello, how are you?"}
    if kind == "seq2seq":
        literals["prompt"] = (config.get("trained_prefix") or "") + literals["prompt"]
    if kind in TASKS:
        literals |= _task_inputs(kind, config, samples)
    values = {name: repr(value) for name, value in literals.items()}
    values |= {"path": json.dumps(use.path, ensure_ascii=False)}
    values["length"] = _new_tokens(config, use.record)
    # Words are tagged by their first token; where characters were tagged, each is a word of its own.
    tags_characters = config.get("trained_units") == "characters"
    values["aggregation"] = "simple" if tags_characters else "first"
    # tril(n) keeps spans of at most n + 1 tokens.
    windows = config.get("reader_windows") or {}
    values["longest"] = windows.get("max_answer_length", 30) - 1
    # Set where no weight of the model could hold the centre of its scores.
    has_centre = bool(config.get("score_centre"))
    values["centre"] = " - model.config.score_centre" if has_centre else ""
    code = SNIPPETS[form].format(**values)
    if kind in TASKS and has_centre:
        code += CENTRED_NUMBER
    if use.adapter:
        code = _of_adapter(code, kind)
    # transformers does not know the models before the Transformer.
    if config.get("model_type") in BASELINES:
        imports, _, rest = code.partition("\n\n")
        code = f"{imports}\n{REGISTER.format(config['model_type'])}{rest}"
    return code.rstrip()


def _of_adapter(code: str, kind: str) -> str:
    """The same code with a class of peft, which loads the base model and puts the adapter on it."""
    loading = re.search(r"^from transformers import (AutoModelFor\w+), AutoTokenizer$", code, re.M)
    if loading is None:  # a pipeline, which does so itself
        return code
    auto = loading[1].replace("AutoModelFor", "AutoPeftModelFor")
    imports = f"from peft import {auto}\nfrom transformers import AutoTokenizer"
    code = code.replace(loading[0], imports)
    options = ", num_labels=1" if kind == "reward" else ""
    return code.replace(
        f"{loading[1]}.from_pretrained(path)", f"{auto}.from_pretrained(path{options})"
    )


def is_adapter(folder: Path) -> bool:
    """True for a folder with LoRA matrices and without the weights of a model."""
    if not (folder / "adapter_config.json").is_file():
        return False
    return not any(folder.glob("model*.safetensors"))


def has_chat_template(folder: Path) -> bool:
    """True for a folder whose tokenizer has a chat template."""
    # transformers 5 writes a file of its own, older versions wrote into the config.
    if (folder / "chat_template.jinja").is_file():
        return True
    return "chat_template" in read_object(folder / "tokenizer_config.json")


def _task_inputs(kind: str, config: dict, samples: list[dict]) -> dict:
    """column -> a short sample or the task's example; texts: the text, or both where the model reads pairs."""
    inputs = {}
    for column, example in TASKS[kind].snippet_example.items():
        longest = LONGEST_CONTEXT if column == "context" else LONGEST_TEXT
        inputs[column] = first_short(samples, column, longest) or example
    if config.get("trained_pairs"):
        texts = {"text": inputs["text"], "text_pair": inputs["text_pair"]}
    else:
        texts = inputs.get("text")
    return inputs | {"texts": texts}


def _new_tokens(config: dict, record: RunRecord) -> int:
    """Tokens that a snippet generates: as many as in training, and at most half of the context."""
    context = config.get("n_positions") or config.get("max_position_embeddings") or 1024
    trained = int(record.config.get("max_completion_length") or 64)
    return min(trained, max(1, context // 2))


def first_short(samples: list[dict], column: str, longest: int):
    """The first short text, or list of short texts, of a column of the samples; "" where there is none."""
    for sample in samples:
        value = sample.get(column) if isinstance(sample, dict) else None
        texts = value if isinstance(value, list) else [value]
        if texts and all(_is_short(text, longest) for text in texts):
            return value
    return ""


def _is_short(text, longest: int) -> bool:
    return isinstance(text, str) and 0 < len(text) <= longest
