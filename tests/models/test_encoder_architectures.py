"""Every architecture that transformers knows for the head of a task, as a tiny random model.

For each: what our encoding gives is what the model's own forward gives on the tokenizer's plain call, alone as in a batch.
Training moves every trainable parameter, with LoRA and without. A saved folder predicts the same. The context is usable to
its last token. Models that cannot do so are in `models.architectures.UNUSABLE` with the reason, and loading one says it.

The sweep is slow. A sample runs in `make test`.
"""

from collections import Counter

import pytest
import torch
import transformers
from tokenizers.processors import TemplateProcessing
from transformers import AutoConfig, DataCollatorForTokenClassification, DataCollatorWithPadding
from transformers.models.auto import modeling_auto

from rlhf.algorithms.losses import kwise_ranking_loss
from rlhf.completions.reward_inputs import RewardInputs
from rlhf.completions.score import RewardModelScorer
from rlhf.data.chat import add_chat_template
from rlhf.errors import UserError
from rlhf.models.architectures import UNUSABLE, unusable
from rlhf.models.load import load_encoder, load_reward_model, load_tokenizer, save
from rlhf.models.lora import add_lora
from rlhf.models.parts import context_length, fit_embeddings, fit_tokenizer
from rlhf.models.scores import reads_pairs, score_head
from rlhf.reward_model.rankings import collate_rankings, encode_rankings
from rlhf.reward_model.trainer import ScoreModel
from rlhf.task_table import PRETRAINING_HEADS, TASKS
from rlhf.tasks.classification.encode import encode_texts
from rlhf.tasks.forward import load_trained, run_batches
from rlhf.tasks.multiple_choice.encode import PadChoices, choice_loss, training_rows
from rlhf.tasks.multiple_choice.predictor import OneChoiceAtATime
from rlhf.tasks.ner.encode import cut_windows, stored_windows, to_train_on
from rlhf.tasks.pretraining.encode import MaskedRows, Masking, PadRows, masked_blocks
from rlhf.tasks.pretraining.masked_lm import MaskedPlacesOnly
from rlhf.tasks.question_answering.encode import question_windows

CONTEXT = 24  # tokens of the tiny models
SIZES = dict(
    hidden_size=32, d_model=32, n_embd=32, dim=32, emb_dim=32, embedding_size=16, num_hidden_layers=2, n_layer=2,
    n_layers=2, num_layers=2, encoder_layers=2, decoder_layers=2, num_decoder_layers=2, num_attention_heads=2, n_head=2,
    n_heads=2, num_heads=2, encoder_attention_heads=2, decoder_attention_heads=2, num_key_value_heads=2,
    intermediate_size=32, ffn_dim=32, d_ff=32, d_inner=32, hidden_dim=32, encoder_ffn_dim=32, decoder_ffn_dim=32,
    d_kv=16, head_dim=16, d_head=16, max_position_embeddings=CONTEXT, n_positions=CONTEXT, max_seq_len=CONTEXT,
    n_ctx=CONTEXT, word_embed_proj_dim=32, pooler_hidden_size=32, moe_intermediate_size=16, num_experts=4,
    num_experts_per_tok=2, num_local_experts=4, n_routed_experts=4, shared_expert_intermediate_size=16,
    sliding_window=16, decoder_start_token_id=2,
)  # fmt: skip
# Without dropout two forwards can be compared.
LATENT = dict(
    qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16, kv_lora_rank=8, q_lora_rank=8, n_group=1, topk_group=1
)  # fmt: skip
ROPE = dict(rope_type="default", rope_theta=10000.0)
# None: the config does not take the size.
EXTRA = {
    "axk1": LATENT,
    "axk2": LATENT,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "minicpm3": LATENT,
    "mistral4": LATENT,
    "cohere_compass_text": dict(
        layer_types=["full_attention", "sliding_attention"],
        rope_parameters={"full_attention": ROPE, "sliding_attention": ROPE},
    ),
    "gpt_neo": dict(attention_types=[[["global", "local"], 1]]),
    "gptj": dict(rotary_dim=8),
    "falcon": dict(head_dim=None),
    "funnel": dict(num_hidden_layers=None, block_sizes=[1, 1]),
    "luke": dict(entity_vocab_size=10, entity_emb_size=16),
    "squeezebert": dict(embedding_size=32),
    "reformer": dict(
        axial_pos_embds=False, attn_layers=["local", "local"], local_attn_chunk_length=8
    ),
    "qwen3_next": dict(layer_types=["linear_attention", "full_attention"]),
    "qwen3_5_text": dict(layer_types=["linear_attention", "full_attention"]),
    "jamba": dict(
        attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1
    ),
    "longformer": dict(sep_token_id=3),
    "t5": dict(decoder_start_token_id=0),
    "zamba": dict(num_hidden_layers=3, layer_types=["mamba", "hybrid", "hybrid"]),
    "zamba2": dict(num_hidden_layers=2, layers_block_type=["mamba", "hybrid"]),
}
# Kinds that cannot be made small from outside, with the reason.
NOT_SMALL = {
    "mistral4": "the width of its rotary positions follows from no other size",
    "t5gemma": "its sizes are in the configs of its two halves",
}
WITHOUT_LORA = ("ibert", "squeezebert")  # their layers are quantised, and convolutions
MAPPINGS = {
    "classification": "SEQUENCE_CLASSIFICATION",
    "reward": "SEQUENCE_CLASSIFICATION",
    "ner": "TOKEN_CLASSIFICATION",
    "question_answering": "QUESTION_ANSWERING",
    "multiple_choice": "MULTIPLE_CHOICE",
    "masked": "MASKED_LM",
}
HEADS = {name: task.head for name, task in TASKS.items()}
HEADS |= {"reward": TASKS["classification"].head, "masked": PRETRAINING_HEADS["masked"]}
SAMPLE = (
    "bert",
    "distilbert",
    "roberta",
    "deberta-v2",
    "albert",
    "electra",
    "modernbert",
    "gpt2",
    "llama",
)
LABELS = ["O", "B-x", "I-x"]
SHORT = {"text": "a b", "text_pair": "c", "label": "O"}
LONG = {"text": "d e f g", "text_pair": "h a b c d", "label": "B-x"}
TAGGED = [
    {"tokens": ["a", "b"], "tags": ["O", "B-x"]},
    {"tokens": ["d", "e", "f", "g", "h"], "tags": ["B-x", "I-x", "O", "O", "B-x"]},
]
QUESTIONS = [
    {"question": "a b", "context": "c d", "answers": {"text": ["d"], "answer_start": [2]}},
    {"question": "e", "context": "f g h a b", "answers": {"text": ["g h"], "answer_start": [2]}},
]
CHOICES = [
    {"text": "a b", "choices": ["c", "d e f"], "label": 0},
    {"text": "d", "choices": ["e f", "g", "h a"], "label": 2},
]
RANKINGS = [
    {"prompt": "a b", "completions": ["c", "d e f"], "ranks": [0, 1]},
    {"prompt": "e f g", "completions": ["h", "c d a b"], "ranks": [1, 0]},
]


def kinds_of(task: str) -> list[str]:
    return list(getattr(modeling_auto, f"MODEL_FOR_{MAPPINGS[task]}_MAPPING_NAMES"))


def cases(sample: bool) -> list[tuple[str, str]]:
    pairs = []
    for task in MAPPINGS:
        for kind in kinds_of(task):
            if (kind in SAMPLE) == sample:
                pairs.append((task, kind))
    return pairs


# ---- tiny models -------------------------------------------------------------------------------


def tiny_config(kind: str, vocabulary: int):
    defaults = AutoConfig.for_model(kind)
    # Some configs have names that they do not let be set.
    sizes = {name: value for name, value in SIZES.items() if name in known_names(defaults)}
    sizes |= dict(vocab_size=vocabulary, pad_token_id=0, bos_token_id=2, eos_token_id=3)
    sizes |= EXTRA.get(kind, {})
    return AutoConfig.for_model(kind, **{k: v for k, v in sizes.items() if v is not None})


def known_names(config) -> set[str]:
    names = set(config.to_dict()) | set(config.attribute_map)
    return names | {name for name in ("head_dim",) if hasattr(config, name)}


@pytest.fixture
def start(make_tokenizer, tmp_path):
    """f(task, kind) -> (model, tokenizer) as a recipe starts from a checkpoint, and the checkpoint's folder."""

    def start(task: str, kind: str):
        torch.manual_seed(0)
        tokenizer = make_tokenizer()
        if AutoConfig.for_model(kind).is_encoder_decoder:
            tokenizer.eos_token = "[SEP]"
        if kind == "modernbert-decoder":
            tokenizer.bos_token = "[CLS]"  # its config wants one
        if kind == "longformer":  # counts the separators that RoBERTa's tokenizer writes
            tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
                single="[CLS] $A [SEP]",
                pair="[CLS] $A [SEP] [SEP] $B [SEP]",
                special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
            )
        config = tiny_config(kind, len(tokenizer))
        if task in ("classification", "ner"):
            config.id2label = dict(enumerate(LABELS))
            config.label2id = {label: i for i, label in enumerate(LABELS)}
        if task == "reward":
            config.num_labels = 1
        base = getattr(transformers, HEADS[task]).from_config(config)
        with torch.no_grad():
            for parameter in base.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(5)  # so that inputs are told apart
        folder = tmp_path / "base"
        save(base, tokenizer, folder)
        tokenizer = load_tokenizer(str(folder))
        if task == "reward":
            model = load_reward_model(str(folder))
        else:
            labels = LABELS if task in ("classification", "ner") else None
            model = load_encoder(str(folder), HEADS[task], labels=labels, new_head=True)
        if task == "reward" and not reads_pairs(model):
            tokenizer.eos_token = "[SEP]"
            add_chat_template(tokenizer)
        else:
            fit_tokenizer(tokenizer, model, pairs=task not in ("ner", "masked"))
        fit_embeddings(model, tokenizer)
        return model.eval(), tokenizer

    return start


# ---- what each task makes of its rows ----------------------------------------------------------


def features_of(task: str, model, tokenizer) -> list[dict]:
    """Encoded rows without labels, as the predictor makes them."""
    limit = min(context_length(model), CONTEXT)
    if task == "classification":
        return encode_texts(tokenizer, [SHORT, LONG], pairs=True, max_length=limit)[0]
    if task == "ner":
        windows = cut_windows(tokenizer, TAGGED, units="words", max_length=limit)
        return [window.inputs for window in windows]
    if task == "question_answering":
        rows = [{"question": row["question"], "context": row["context"]} for row in QUESTIONS]
        sizes = dict(max_length=limit, stride=4, max_answer_length=4)
        windows = question_windows(tokenizer, rows, Counter(), **sizes)
        return [window.feature for window in windows]
    if task == "multiple_choice":
        rows, _ = training_rows(tokenizer, CHOICES, max_length=limit)
        names = [name for name in rows[0] if name != "labels"]
        return [{name: row[name][1] for name in names} for row in rows]
    blocks, _ = masked_blocks(tokenizer, ["a b", "d e f g h"], limit, cross_documents=False)
    return [
        {"input_ids": block.ids.tolist(), "attention_mask": [1] * len(block.ids)}
        for block in blocks
    ]


def plain_inputs(task: str, tokenizer) -> list:
    """The tokenizer's plain call on the same rows."""
    options = dict(return_tensors="pt")
    if task == "classification":
        return [tokenizer(row["text"], row["text_pair"], **options) for row in (SHORT, LONG)]
    if task == "ner":
        return [tokenizer(row["tokens"], is_split_into_words=True, **options) for row in TAGGED]
    if task == "question_answering":
        return [tokenizer(row["question"], row["context"], **options) for row in QUESTIONS]
    if task == "multiple_choice":
        return [tokenizer(row["text"], row["choices"][1], **options) for row in CHOICES]
    return [tokenizer(text, **options) for text in ("a b", "d e f g h")]


def batch_of(task: str, model, tokenizer) -> dict:
    """A training batch with labels."""
    limit = min(context_length(model), CONTEXT)
    if task == "classification":
        rows = features_of(task, model, tokenizer)
        for row, label in zip(rows, (0, 1)):
            row["labels"] = label
        return DataCollatorWithPadding(tokenizer)(rows)
    if task == "ner":
        sizes = dict(labels=LABELS, units="words", max_length=limit)
        rows = to_train_on(stored_windows(tokenizer, TAGGED, **sizes))
        return DataCollatorForTokenClassification(tokenizer)(list(rows))
    if task == "question_answering":
        sizes = dict(max_length=limit, stride=4, max_answer_length=4)
        windows = question_windows(tokenizer, QUESTIONS, Counter(), **sizes)
        return DataCollatorWithPadding(tokenizer)([window.feature for window in windows])
    if task == "multiple_choice":
        return PadChoices(tokenizer)(training_rows(tokenizer, CHOICES, max_length=limit)[0])
    if task == "reward":
        pairs = RewardInputs(model, tokenizer).pairs
        encoded, _ = encode_rankings(tokenizer, RANKINGS, max_length=limit, pairs=pairs)
        return collate_rankings(encoded, tokenizer.pad_token_id)
    blocks, _ = masked_blocks(
        tokenizer, ["a b c d e f g h", "d e f g h"], limit, cross_documents=False
    )
    rows = MaskedRows(blocks, Masking(tokenizer, whole_words=False), seed=1)
    return PadRows(tokenizer.pad_token_id)([rows[0], rows[1]])


def loss_of(task: str, model, batch: dict):
    if task == "multiple_choice":
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        return choice_loss(model(**inputs).logits, batch["labels"]).mean()
    if task == "reward":
        ranks, valid = batch["ranks"], batch["valid"]
        flat = ScoreModel(model)(batch["input_ids"], batch["mask"], batch.get("token_type_ids"))
        scores = torch.zeros(ranks.shape).masked_scatter(valid, flat)
        return kwise_ranking_loss(scores, ranks, valid)[0].mean()
    return model(**batch).loss


# ---- checks ------------------------------------------------------------------------------------


def outputs_of(task: str, model, tokenizer, features: list[dict], batch_size: int) -> list:
    runner = OneChoiceAtATime(model) if task == "multiple_choice" else model
    results = [None] * len(features)
    for i, outputs in run_batches(runner, tokenizer, features, batch_size=batch_size):
        outputs.pop("loss", None)
        results[i] = [outputs[name] for name in outputs if name.endswith("logits")]
    return results


def assert_same(found: list, expected: list) -> None:
    for ours, theirs in zip(found, expected, strict=True):
        for first, second in zip(ours, theirs, strict=True):
            torch.testing.assert_close(first.squeeze(), second.squeeze(), atol=2e-4, rtol=1e-3)


def check_outputs(task: str, model, tokenizer) -> list:
    """Ours in a batch = alone = the model's own on the plain call; returns ours."""
    features = features_of(task, model, tokenizer)
    together = outputs_of(task, model, tokenizer, features, 2)
    assert_same(together, outputs_of(task, model, tokenizer, features, 1))
    own = []
    for inputs in plain_inputs(task, tokenizer):
        if task == "multiple_choice":
            inputs = {name: value.unsqueeze(1) for name, value in inputs.items()}
        with torch.no_grad():
            output = model(**inputs)
        own.append([output[name][0] for name in output if name.endswith("logits")])
    assert_same(together, own)
    return together


def check_scores(model, tokenizer) -> torch.Tensor:
    scorer = RewardModelScorer(model, tokenizer)
    inputs = []
    for row in RANKINGS:
        inputs += scorer.inputs.encode(row["prompt"], row["completions"])
    together = scorer.score(inputs)
    alone = torch.cat([scorer.score([one]) for one in inputs])
    torch.testing.assert_close(together, alone, atol=2e-4, rtol=1e-3)
    own = []
    for one in inputs:
        with torch.no_grad():
            ids = torch.tensor([one.ids])
            more = {} if one.types is None else {"token_type_ids": torch.tensor([one.types])}
            own.append(model(input_ids=ids, attention_mask=torch.ones_like(ids), **more).logits[0])
    torch.testing.assert_close(together, torch.cat(own).float(), atol=2e-4, rtol=1e-3)
    if scorer.inputs.pairs:
        plain = tokenizer("a b", "c", return_tensors="pt")
        with torch.no_grad():
            torch.testing.assert_close(model(**plain).logits[0], together[:1], atol=2e-4, rtol=1e-3)
    return together


def check_training(task: str, model, batch: dict, steps: int) -> None:
    """Every trainable parameter that the forward uses moves, and the loss is finite."""
    model.train()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert trainable
    before = {name: p.detach().clone() for name, p in trainable.items()}
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2, weight_decay=0.0)
    for _ in range(steps):
        loss = loss_of(task, model, batch)
        assert torch.isfinite(loss)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    still = [name for name, p in trainable.items() if torch.equal(p, before[name])]
    # Modules that this head does not read.
    unused = [name for name in still if trainable[name].grad is None and "entity" not in name]
    flat = []
    for name in still:
        gradient = trainable[name].grad
        if gradient is not None and not gradient.any():
            flat.append(name)
    moved = len(trainable) - len(still)
    assert moved and len(unused) <= MOST_UNUSED * len(trainable), unused
    allowed = NATURAL
    if task in ("reward", "multiple_choice"):
        allowed += HEAD_BIASES  # the loss compares scores, and a bias shifts all alike
    flat = [name.replace(".modules_to_save.default", "") for name in flat]
    flat = [name for name in flat if not any(part in name for part in allowed)]
    assert not flat, flat
    model.eval()


MOST_UNUSED = (
    0.35  # share of the parameters that a head may not read, such as a pooler or a second stream
)


# Parameters whose gradient is 0 by their nature: keys' biases shift all scores of a query alike, and experts and their
# routers may be idle or flat on a few tokens.
NATURAL = ("key.bias", "k_proj.bias", "k_lin.bias", "key_proj.bias", "expert", "router", "gate")
NATURAL += ("qa_outputs.bias",)  # a softmax over the tokens
# Doge's window is wider than these texts. Longformer's head reads a token that attends by other matrices.
# Funnel's knows no distance.
NATURAL += (
    "dt_proj",
    "funnel.encoder.blocks.1.0.attention.",
    "longformer.encoder.layer.1.attention.self.",
)
HEAD_BIASES = ("classifier.bias", "out_proj.bias", "summary.bias", "linear_out.bias")
HEAD_BIASES += (
    "ln_f.bias",
    "final_layer_norm.bias",
    "final_layernorm.bias",
    "norm.bias",
    "layer_norm.bias",
    "ln_2.bias",
    "layer_norm2.1.bias",
)


def is_refused(task: str, kind: str, tmp_path) -> bool:
    """True if the product refuses the kind for the task; loading it must say the reason."""
    config = AutoConfig.for_model(kind)
    reason = unusable(config, HEADS[task])
    if not reason:
        return False
    config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match="cannot be used here") as caught:
        if task == "reward":
            load_reward_model(str(tmp_path))
        else:
            load_encoder(str(tmp_path), HEADS[task], new_head=True)
    assert reason in str(caught.value)
    return True


def check(task: str, kind: str, start, tmp_path) -> None:
    if is_refused(task, kind, tmp_path):
        pytest.skip(f"refused: {UNUSABLE.get(kind, 'by its config or head')}")
    if kind in NOT_SMALL:
        pytest.skip(f"cannot be made small: {NOT_SMALL[kind]}")
    model, tokenizer = start(task, kind)
    if task == "reward":
        before = check_scores(model, tokenizer)
        model.requires_grad_(True)
    else:
        before = check_outputs(task, model, tokenizer)
    if task in ("classification", "reward"):
        assert score_head(model).out_features == model.config.num_labels

    # the last token of the context
    context = context_length(model)
    if context <= 2 * CONTEXT:
        ids = torch.full((1, context), 5)
        # [SEP]: BART reads its score at the last, and Longformer wants three.
        ids[0, [2, 3, -1]] = 3
        if task == "multiple_choice":
            ids = ids.unsqueeze(1)
        with torch.no_grad():
            model(input_ids=ids, attention_mask=torch.ones_like(ids))

    # The folder that a recipe saves.
    save(model, tokenizer, tmp_path / "saved")
    if task == "reward":
        again = check_scores(load_reward_model(str(tmp_path / "saved")), tokenizer)
        torch.testing.assert_close(again, before, atol=1e-5, rtol=1e-4)
    elif task != "masked":
        loaded, its_tokenizer = load_trained(tmp_path / "saved", task)
        assert_same(check_outputs(task, loaded, its_tokenizer), before)

    batch = batch_of(task, model, tokenizer)
    if task == "masked":
        whole = model(**batch).loss
        MaskedPlacesOnly(model)
        torch.testing.assert_close(model(**batch).loss, whole, atol=1e-4, rtol=1e-4)
    check_training(task, model, batch, steps=1)
    if task == "masked":  # recipes/pretrain.py trains all weights
        return
    peft_type = TASKS["classification" if task == "reward" else task].peft_type
    if kind in WITHOUT_LORA:
        with pytest.raises(UserError, match="set use_peft to false"):
            add_lora(model, task=peft_type, rank=2, alpha=4)
        return
    lora = add_lora(model, task=peft_type, rank=2, alpha=4)
    check_training(task, lora, batch, steps=2)


@pytest.mark.parametrize(("task", "kind"), cases(sample=True))
def test_a_usual_encoder_computes_what_its_model_means(task, kind, start, tmp_path):
    check(task, kind, start, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "kind"), cases(sample=False))
def test_every_encoder_computes_what_its_model_means(task, kind, start, tmp_path):
    check(task, kind, start, tmp_path)
