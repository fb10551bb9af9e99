"""Tiny tokenizers, models and trainers, made on the spot: no test needs the network, and each takes milliseconds."""

import gc
import gzip
import json
import os
import subprocess
import sys
import tempfile
from importlib import util
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
CACHE = tempfile.TemporaryDirectory(prefix="rlhf-cache-")  # of checked rows; not the user's own
os.environ["RLHF_CACHE"] = CACHE.name

# Each worker of pytest-xdist gets a core of its own. Recipes use all cores that they may, and two workers with two threads
# each take three times as long on two cores.
WORKER = os.environ.get("PYTEST_XDIST_WORKER", "")
if WORKER and hasattr(os, "sched_setaffinity"):
    CORES = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {CORES[int(WORKER.removeprefix("gw")) % len(CORES)]})

import pytest  # noqa: E402
import torch  # noqa: E402
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers  # noqa: E402
from transformers import (  # noqa: E402
    GPT2Config,
    GPT2ForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from rlhf.data.chat import add_chat_template  # noqa: E402
from rlhf.errors import UserError  # noqa: E402
from rlhf.models.parts import fit_embeddings  # noqa: E402
from rlhf.models.scratch import new_policy  # noqa: E402
from rlhf.runs import plots  # noqa: E402

torch.set_num_threads(1)
# A figure of full size takes as long as the training of a tiny model. Recipes in processes of their own draw it.
plots.DPI, plots.LAYOUT = 30, None

ROOT = Path(__file__).resolve().parents[1]
WORDS = "a b c d e f g h".split()


def pytest_collection_finish() -> None:
    """Keep what the imports have made out of garbage collection: each trainer looked through it, half a second a time."""
    gc.freeze()


def word_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """One token per letter a to h: 0 is EOS, 1 unknown, 2 "a", 3 "b", 4 "c"; then the role tokens and the pad token."""
    vocabulary = {word: place for place, word in enumerate(["<eos>", "<unk>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = {"eos_token": "<eos>", "unk_token": "<unk>", "bos_token": "<eos>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, **special)
    if chat:
        add_chat_template(tokenizer)
    return tokenizer


def byte_tokenizer(chat: bool = True) -> PreTrainedTokenizerFast:
    """Byte-level BPE, GPT-2's kind, with a few merges."""
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    inner.train_from_iterator(
        ["a red bridge over a red river", "the river runs under the bridge"], trainer
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<|endoftext|>", bos_token="<|endoftext|>"
    )
    if chat:
        add_chat_template(tokenizer)
    return tokenizer


@torch.no_grad()
def enlarge(model, factor: float):
    """Larger weights: a freshly initialised model hardly tells its inputs apart, and would hide a wrong position."""
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(factor)
    return model


def whole_word_tokenizer(words=WORDS, kind: str = "bert") -> PreTrainedTokenizerFast:
    """One token per word; "bert" has BERT's special tokens and frame, "gpt2" only EOS. Other words are unknown."""
    special = (
        ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"] if kind == "bert" else ["<eos>", "<unk>"]
    )
    vocabulary = {word: place for place, word in enumerate([*special, *words])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=special[1]))
    inner.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if kind == "gpt2":
        return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")
    frame = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=frame
    )
    names = {f"{token[1:-1].lower()}_token": token for token in special}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_input_names=inputs, **names)


def tiny_policy(
    tokenizer, *, seed: int = 0, factor: float = 10.0, hidden_size=16, layers=2, heads=2, context=48
):
    torch.manual_seed(seed)
    sizes = dict(hidden_size=hidden_size, layers=layers, heads=heads, context=context)
    return enlarge(new_policy(tokenizer, model_type="gpt2", **sizes), factor).eval()


def tiny_llama(tokenizer, *, seed: int = 0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=48, tie_word_embeddings=False, attention_dropout=0.1,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    fit_embeddings(model, tokenizer)
    return enlarge(model, 10.0).eval()


def tiny_reward_model(tokenizer, *, seed: int = 0):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(tokenizer), n_embd=16, n_layer=2, n_head=2, n_positions=48, num_labels=1
    )
    model = GPT2ForSequenceClassification(config)
    fit_embeddings(model, tokenizer)
    return enlarge(model, 10.0).eval()


def tiny_trainer(
    tokenizer,
    folder,
    *,
    score=None,
    policy=None,
    rows=None,
    eval_rows=None,
    models=None,
    **settings,
):
    """A PolicyGradientTrainer on the eight one-letter prompts; settings are those of PolicyGradientConfig.

    score: f(prompts, completions, **columns) -> numbers
    models: value_model ("shared", the default, is a head on the policy's trunk), ref_model, and texts of the trainer
    """
    from rlhf.completions.score import FunctionScorer, WeightedSum
    from rlhf.models.actor_critic import ValueHead
    from rlhf.policy_gradient.config import PolicyGradientConfig
    from rlhf.policy_gradient.roles import Roles
    from rlhf.policy_gradient.trainer import PolicyGradientTrainer
    from rlhf.runs.progress import use_run_progress

    def say_c(prompts, completions, **columns):
        return [sum(word == "c" for word in completion.split()) / 4 for completion in completions]

    defaults = dict(
        algorithm="ppo", total_episodes=32, rollout_batch_size=16, per_device_train_batch_size=4,
        per_device_eval_batch_size=8, max_completion_length=6, learning_rate=1e-3, report_to="none", use_cpu=True,
        disable_tqdm=True, seed=1,
    )  # fmt: skip
    args = PolicyGradientConfig(output_dir=str(folder), **defaults | settings)
    if policy is None:
        policy = tiny_policy(tokenizer, factor=2.0, seed=1, context=32)
    models = dict(models or {})
    texts = models.pop("texts", None)
    if models.get("value_model", "shared") == "shared":
        models["value_model"] = ValueHead(policy.config.hidden_size)
    rewards = WeightedSum({"score": FunctionScorer(score or say_c, "score")})
    trainer = PolicyGradientTrainer(
        roles=Roles(policy, rewards, **models),
        tokenizer=tokenizer,
        args=args,
        rows=rows or [{"prompt": word} for word in WORDS],
        eval_rows=eval_rows,
        texts=texts,
    )
    use_run_progress(trainer, folder)
    return trainer


def load_recipe(name: str):
    """The module of recipes/<name>.py, which is no package."""
    path = ROOT / "recipes" / f"{name}.py"
    spec = util.spec_from_file_location(f"recipe_{name}", path)
    module = util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def run_launched(script, *flags, layout: str = "ddp_cpu", **options) -> subprocess.CompletedProcess:
    """The script under `accelerate launch` with recipes/accelerate/<layout>.yaml; options as subprocess.run has them."""
    launcher = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--quiet",
        "--main_process_port",
        "0",
    ]
    layout = ["--config_file", str(ROOT / "recipes" / "accelerate" / f"{layout}.yaml")]
    command = [*launcher, *layout, str(script), *map(str, flags)]
    return subprocess.run(command, **{"check": True, "cwd": ROOT, "timeout": 600} | options)


@pytest.fixture(scope="session")
def launch():
    return run_launched


@pytest.fixture(scope="session")
def make_architecture():
    """A function from a model type to a tiny causal language model of it."""
    path = ROOT / "tests" / "models" / "tiny_architectures.py"
    spec = util.spec_from_file_location("tiny_architectures", path)
    module = util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.tiny_causal_lm


@pytest.fixture(scope="session")
def recipe_module():
    return load_recipe


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer():
    return word_tokenizer()


@pytest.fixture(scope="session")
def bytes_tokenizer():
    return byte_tokenizer()


@pytest.fixture(scope="session")
def bert_tokenizer():
    return whole_word_tokenizer()


@pytest.fixture(scope="session")
def make_tokenizer():
    return whole_word_tokenizer


@pytest.fixture
def plain_tokenizer():
    """Byte-level BPE without a chat template and without a pad token, as GPT-2's is."""
    return byte_tokenizer(chat=False)


@pytest.fixture
def eos_is_pad():
    """The word-level tokenizer with pad == EOS."""
    tokenizer = word_tokenizer()
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@pytest.fixture(scope="session")
def make_policy():
    return tiny_policy


@pytest.fixture(scope="session")
def make_llama():
    return tiny_llama


@pytest.fixture(scope="session")
def make_reward_model():
    return tiny_reward_model


@pytest.fixture
def make_trainer(tokenizer, tmp_path):
    def make(folder="run", tokenizer=tokenizer, **settings):
        return tiny_trainer(tokenizer, tmp_path / folder, **settings)

    return make


@pytest.fixture
def refused():
    """The message of the UserError that a call raises."""

    def refused(call, *args, **kwargs):
        with pytest.raises(UserError) as caught:
            call(*args, **kwargs)
        return str(caught.value)

    return refused


@pytest.fixture
def write(tmp_path):
    def write(name, content):
        path = tmp_path / name
        if isinstance(content, list):
            content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
        data = content.encode() if isinstance(content, str) else content
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(path)

    return write


@pytest.fixture(scope="session")
def real_data():
    """Finds a file of the development data, which are in the folder RLHF_TEST_DATA. Skips the test without them."""

    def find(name: str) -> str:
        folder = os.environ.get("RLHF_TEST_DATA")
        if not folder:
            pytest.skip("RLHF_TEST_DATA, the folder of the development data, is not set")
        path = Path(folder, name)
        if not path.is_file():
            pytest.skip(f"RLHF_TEST_DATA has no {name}")
        return str(path)

    return find


@pytest.fixture
def hub(monkeypatch):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    splits = {
        "train": datasets.Dataset.from_dict(
            {"text": ["a", "b"], "label": [1, 0]}, features=features
        ),
        "test": datasets.Dataset.from_dict({"text": ["c"], "label": [-1]}, features=features),
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config=None: splits)
