"""Loading models and tokenizers: the only caller of `from_pretrained`, so that safety and errors stand in one place.

Weights are read from safetensors, remote code is never run. Works with transformers' tied weights: adding tokens resizes
input and output embeddings together.
"""

import copy
import os
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.utils import logging

from rlhf.errors import UserError

# What an encoder can be asked for. masked_nsp: BERT's own two heads, masked words and next sentence.
HEADS = {
    "classifier": AutoModelForSequenceClassification,
    "tagger": AutoModelForTokenClassification,
    "reader": AutoModelForQuestionAnswering,
    "masked": AutoModelForMaskedLM,
    "masked_nsp": AutoModelForPreTraining,
}


def load_tokenizer(path: str, *, revision: str | None = None):
    """The tokenizer of a run folder or Hub id."""
    return _from_pretrained(AutoTokenizer, path, revision=revision)


def load_policy(path: str, *, revision: str | None = None, dtype: str = "float32") -> PreTrainedModel:
    """A causal language model. A LoRA folder is merged into its base, which the adapter names itself."""
    if os.path.isfile(os.path.join(path, "adapter_config.json")):
        from peft import AutoPeftModelForCausalLM

        return _from_pretrained(AutoPeftModelForCausalLM, path, revision=revision, dtype=dtype).merge_and_unload()
    model, info = _from_pretrained(AutoModelForCausalLM, path, revision=revision, dtype=dtype, output_loading_info=True)
    if info["missing_keys"]:
        raise UserError(
            f"{path} is not a language model: {', '.join(sorted(info['missing_keys'])[:3])} would be random"
        )
    return _named_loss(model)


def load_reward_model(
    path: str, *, revision: str | None = None, dtype: str = "float32", new_head: bool = False
) -> PreTrainedModel:
    """A sequence classification model with one output. A head that is not in the weights is an error.

    new_head=True is for training one: then the head is expected to be new, and starts at 0 so that every first score is 0.
    """
    model, info = _from_pretrained(
        AutoModelForSequenceClassification,
        path,
        revision=revision,
        dtype=dtype,
        num_labels=1,
        output_loading_info=True,
        ignore_mismatched_sizes=new_head,
    )
    head = score_head(model)
    fresh = [key for key in info["missing_keys"] if key.split(".")[0] in ("score", "classifier")]
    if new_head:
        nn.init.zeros_(head.weight)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    elif fresh:
        raise UserError(
            f"{path} holds no reward head ({', '.join(fresh)} would be random): "
            "train one with recipes/reward.py and give its run folder"
        )
    return model


def load_encoder(
    path: str,
    task: str,
    *,
    labels: list[str] | None = None,
    problem_type: str | None = None,
    new_head: bool = False,
    revision: str | None = None,
    dtype: str = "float32",
) -> PreTrainedModel:
    """A model with the head of `task`, a key of HEADS. Output i is labels[i]; None keeps those of its config.

    A head that is not in the weights is an error; new_head=True is for training one: then it may be random, which
    `model.new_weights` names, and it is where the checkpoint's labels are others, even as many.
    """
    options = _label_maps(labels) if labels is not None else {}
    if problem_type:
        options["problem_type"] = problem_type
    model, info = _from_pretrained(
        HEADS[task],
        path,
        revision=revision,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=new_head,
        **options,
    )
    if info["missing_keys"] and not new_head:
        raise UserError(
            f"{path} is no finished {task}: {', '.join(sorted(info['missing_keys'])[:3])} would be random; give the run "
            "folder of a recipe that trained one"
        )
    if new_head and labels is not None and trained_labels(path, revision=revision) not in ([], labels):
        head = score_head(model)
        nn.init.normal_(head.weight, std=model.config.initializer_range)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
    model.new_weights = sorted(info["missing_keys"])
    return model


def trained_labels(path: str, *, revision: str | None = None) -> list[str]:
    """The labels of a checkpoint that holds a trained classifier or tagger, in the order of its outputs; [] of others."""
    config = _from_pretrained(AutoConfig, path, revision=revision)
    if not any(name.endswith(("SequenceClassification", "TokenClassification")) for name in config.architectures or ()):
        return []
    return [config.id2label[place] for place in range(config.num_labels)]


def _label_maps(labels: list[str]) -> dict:
    return {"id2label": dict(enumerate(labels)), "label2id": {label: place for place, label in enumerate(labels)}}


def _from_pretrained(auto_class, path: str, *, dtype: str | None = None, **options):
    if dtype is not None:
        options["dtype"] = getattr(torch, dtype)
    if os.path.sep in path and not os.path.isdir(path) and path.count("/") != 1:
        raise UserError(f"{path}: no such model folder; give a run folder of a recipe or a Hub id such as gpt2")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing from the weights is judged by the callers, in their own words
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        known = os.path.isdir(path) and f"the folder holds {', '.join(sorted(os.listdir(path))[:12]) or 'nothing'}"
        raise UserError(
            f"{path}: cannot be loaded as {auto_class.__name__}: {reason}\n"
            f"  {known or 'it is neither a folder here nor reachable on the Hub; check the name or the network'}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def fit_embeddings(model: PreTrainedModel, tokenizer) -> None:
    """Make room for tokens the tokenizer has gained, and tell the model its special tokens."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    for config in (model.config, getattr(model, "generation_config", None)):
        if config is not None:
            config.pad_token_id = tokenizer.pad_token_id
            config.eos_token_id = tokenizer.eos_token_id
            config.bos_token_id = tokenizer.bos_token_id


def fit_tokenizer(tokenizer, model, *, pairs: bool) -> None:
    """What a GPT-2 class tokenizer lacks: EOS pads, on the right, and stands between the texts of a pair (GPT-1 put a
    delimiter)."""
    tokenizer.padding_side = tokenizer.init_kwargs["padding_side"] = (
        "right"  # left is for generation: places would move
    )
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise UserError(f"the tokenizer {tokenizer.name_or_path!r} has no pad_token: set one in its folder")
        tokenizer.pad_token = tokenizer.eos_token
    if pairs and tokenizer.sep_token is None:
        eos = (tokenizer.eos_token, tokenizer.eos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A", pair=["$A", eos[0], "$B"], special_tokens=[eos]
        )
    # BERT was pretrained with token types, and a tokenizer made by hand gives none; GPT-2 takes them too, as *words* 0
    # and 1. So it follows the model, in this process and in the saved folder (init_kwargs).
    typed = (getattr(model.config, "type_vocab_size", None) or 1) > 1
    tokenizer.model_input_names = ["input_ids", *(["token_type_ids"] if typed else []), "attention_mask"]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names


def new_policy(
    tokenizer, *, model_type: str, hidden_size: int, layers: int, heads: int, context: int, dropout: float = 0.1
) -> PreTrainedModel:
    """A GPT-2 class model with random weights, sized for `tokenizer`."""
    config = _new_config(tokenizer, ("gpt2",), model_type, hidden_size, layers, heads, context, dropout)
    return _named_loss(AutoModelForCausalLM.from_config(config))


def _named_loss(model: PreTrainedModel) -> PreTrainedModel:
    model.loss_type = "ForCausalLM"  # transformers guesses it from the class name and warns at GPT2LMHeadModel
    return model


def new_encoder(
    tokenizer, task: str, *, model_type: str, hidden_size: int, layers: int, heads: int, context: int,
    dropout: float = 0.1, labels: list[str] | None = None, problem_type: str | None = None,
) -> PreTrainedModel:  # fmt: skip
    """A BERT (or, for a classifier or tagger, GPT-2) class model with random weights, sized for `tokenizer`."""
    allowed = ("bert", "gpt2") if task in ("classifier", "tagger") else ("bert",)
    config = _new_config(tokenizer, allowed, model_type, hidden_size, layers, heads, context, dropout)
    for name, value in (_label_maps(labels) if labels is not None else {}).items():
        setattr(config, name, value)
    config.problem_type = problem_type
    return HEADS[task].from_config(config)


def _new_config(
    tokenizer, allowed: tuple[str, ...], model_type: str, hidden_size: int, layers: int, heads: int, context: int,
    dropout: float,
) -> PretrainedConfig:  # fmt: skip
    if hidden_size % heads:
        valid = [n for n in range(1, hidden_size + 1) if hidden_size % n == 0]
        nearest = min(valid, key=lambda n: abs(n - heads))
        raise UserError(f"hidden_size={hidden_size} is not a multiple of heads={heads}: use heads={nearest}")
    if model_type not in allowed:
        raise UserError(f"model_type={model_type!r}: use one of {', '.join(allowed)}")
    names = {
        "gpt2": dict(
            n_embd=hidden_size,
            n_layer=layers,
            n_head=heads,
            n_positions=context,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
        ),
        "bert": dict(
            hidden_size=hidden_size,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            intermediate_size=4 * hidden_size,
            max_position_embeddings=context,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        ),
    }
    special = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    # The 0.02 of BERT and GPT-2 is for their width of 768. A BERT of width 128 learned 64 topics to 46 % in five epochs
    # with it, to 84 % in four with this.
    scale = 0.02 * (768 / hidden_size) ** 0.5
    return AutoConfig.for_model(
        model_type, vocab_size=len(tokenizer), initializer_range=scale, **special, **names[model_type]
    )


def add_lora(model: PreTrainedModel, *, task: str, rank: int, alpha: int, dropout: float = 0.0):
    """Freeze a model and put trainable rank-`rank` matrices beside all its linear layers (arXiv 2106.09685).

    task: CAUSAL_LM, SEQ_CLS, TOKEN_CLS or QUESTION_ANS; the heads of all but the first are trained in full and saved, and
    so is a pooler that the checkpoint did not have (a model pretrained on masked words alone).
    """
    from peft import LoraConfig, get_peft_model

    whole = ["score"] if task == "SEQ_CLS" and hasattr(model, "score") else []
    whole += ["pooler"] if any(".pooler." in name for name in getattr(model, "new_weights", ())) else []
    # peft keeps the first ones whole by itself, and LoRA on what is kept whole would make it fail
    without = {"TOKEN_CLS": ["classifier", "score"], "QUESTION_ANS": ["qa_outputs"]}.get(task, [])
    config = LoraConfig(
        task_type=task,
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules="all-linear",
        modules_to_save=whole or None,
        exclude_modules=without + ["pooler.dense"] * ("pooler" in whole) or None,
        fan_in_fan_out=model.config.model_type == "gpt2",
    )
    return get_peft_model(model, config)


def disable_dropout(model: nn.Module) -> nn.Module:
    """Set every dropout probability to 0, for train mode too; the config on disk keeps its values."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout"):  # models that call F.dropout (Llama, OPT)
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def freeze(model: nn.Module) -> nn.Module:
    """Evaluation mode, no gradients, no dropout: for reference and reward models."""
    return disable_dropout(model).eval().requires_grad_(False)


def context_length(model: PreTrainedModel) -> int:
    """The longest sequence, in tokens, that the model has positions for."""
    return getattr(model.config, "max_position_embeddings", None) or 1_000_000


def score_head(model: PreTrainedModel) -> nn.Linear:
    """The layer that turns a hidden state into the score: the last linear layer of a classification model."""
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    head = getattr(model, "score", None) or getattr(model, "classifier", None)
    head = head.modules_to_save["default"] if hasattr(head, "modules_to_save") else head  # LoRA trains a copy of it
    layers = [layer for layer in head.modules() if isinstance(layer, nn.Linear)]
    return layers[-1]


def sequence_scores(model: PreTrainedModel, input_ids: Tensor, mask: Tensor) -> Tensor:
    """One score per right-padded row, read at its last real token. Shapes (B, L), (B, L) bool -> (B,), fp32.

    Decoders are read by length, never by searching the pad token, so that pad == EOS hides nothing.
    """
    if not hasattr(model, "score"):  # encoders pool the first token themselves
        return model(input_ids=input_ids, attention_mask=mask.long()).logits.squeeze(-1).float()
    hidden = trunk_of(model)(input_ids=input_ids, attention_mask=mask.long()).last_hidden_state  # (B, L, H)
    last = mask.sum(1) - 1
    return model.score(hidden[torch.arange(len(hidden), device=hidden.device), last]).squeeze(-1).float()


def trunk_of(model: nn.Module) -> nn.Module:
    """The transformer under a causal LM or classification head, LoRA or not."""
    inner = model.get_base_model() if hasattr(model, "peft_config") else model
    return getattr(inner, inner.base_model_prefix)


@torch.no_grad()
def scale_scores(model: PreTrainedModel, factor: float) -> None:
    """Multiply every score the model gives by `factor`, inside its weights."""
    head = score_head(model)
    head.weight *= factor
    if head.bias is not None:
        head.bias *= factor


@torch.no_grad()
def shift_scores(model: PreTrainedModel, amount: float) -> None:
    """Add `amount` to every score the model gives, inside its weights, so that any loader gets the same scores.

    A head with a bias takes it. GPT-2's head has none: score = w . (LN(x) + b) there, so the shift goes into the bias b
    of the final layer norm along w: b += amount * w / |w|^2. A model with neither is an error.
    """
    head = score_head(model)
    if head.bias is not None:
        head.bias += amount
        return
    trunk = trunk_of(model)
    norms = [m for name, m in trunk.named_children() if isinstance(m, nn.LayerNorm) and m.bias is not None]
    weight = head.weight[0]
    if not norms or not weight.any():
        raise UserError(f"{type(model).__name__} has no bias to store the centre of its scores in")
    norms[-1].bias += amount * weight / weight.dot(weight)


def save(model: PreTrainedModel, tokenizer, folder: str | os.PathLike) -> None:
    """A plain `from_pretrained` folder: LoRA is merged, weights are safetensors, the tokenizer brings its template."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        model = copy.deepcopy(model).merge_and_unload()  # of a copy: merging takes the matrices out of the training
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
