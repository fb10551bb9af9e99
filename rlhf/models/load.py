"""Loading models and tokenizers: the only caller of `from_pretrained`, so that safety and errors stand in one place.

Weights are read from safetensors, remote code is never run. Works with transformers' tied weights: adding tokens resizes
input and output embeddings together.
"""

import copy
import os
import re
from pathlib import Path

import torch
import transformers
from tokenizers.processors import TemplateProcessing
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging

from rlhf.errors import UserError
from rlhf.models.scores import score_head


def load_tokenizer(path: str, *, revision: str | None = None):
    """The tokenizer of a run folder or Hub id."""
    return _from_pretrained(AutoTokenizer, path, revision=revision)


def load_policy(
    path: str, *, revision: str | None = None, dtype: str = "float32"
) -> PreTrainedModel:
    """A causal language model. A LoRA folder is merged into its base, which the adapter names itself."""
    if os.path.isfile(os.path.join(path, "adapter_config.json")):
        from peft import AutoPeftModelForCausalLM

        return _from_pretrained(
            AutoPeftModelForCausalLM, path, revision=revision, dtype=dtype
        ).merge_and_unload()
    model, info = _from_pretrained(
        AutoModelForCausalLM, path, revision=revision, dtype=dtype, output_loading_info=True
    )
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
    head: str,
    *,
    labels: list[str] | None = None,
    problem_type: str | None = None,
    new_head: bool = False,
    revision: str | None = None,
    dtype: str = "float32",
) -> PreTrainedModel:
    """A model with a head, the name of an Auto class such as "AutoModelForTokenClassification".

    labels: output i is labels[i]; None keeps those of its config.

    A head that is not in the weights is an error; new_head=True is for training one: then it may be random, which
    `model.new_weights` names, and it is where the checkpoint's labels are others, even as many.
    """
    options = _label_maps(labels) if labels is not None else {}
    if problem_type:
        options["problem_type"] = problem_type
    model, info = _from_pretrained(
        getattr(transformers, head),
        path,
        revision=revision,
        dtype=dtype,
        output_loading_info=True,
        ignore_mismatched_sizes=new_head,
        **options,
    )
    if info["missing_keys"] and not new_head:
        raise UserError(
            f"{path} has no trained head for {head} "
            f"(missing weights: {', '.join(sorted(info['missing_keys'])[:3])}): "
            "give the run folder of a recipe that trained one"
        )
    if (
        new_head
        and labels is not None
        and trained_labels(path, revision=revision) not in ([], labels)
    ):
        layer = score_head(model)
        nn.init.normal_(layer.weight, std=model.config.initializer_range)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
    model.new_weights = sorted(info["missing_keys"])
    return model


def trained_labels(path: str, *, revision: str | None = None) -> list[str]:
    """The labels of a checkpoint with a trained head for texts or tokens, in the order of its outputs; [] of others."""
    config = _from_pretrained(AutoConfig, path, revision=revision)
    if not any(
        name.endswith(("SequenceClassification", "TokenClassification"))
        for name in config.architectures or ()
    ):
        return []
    return [config.id2label[place] for place in range(config.num_labels)]


def _label_maps(labels: list[str]) -> dict:
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {label: place for place, label in enumerate(labels)},
    }


def _from_pretrained(auto_class, path: str, *, dtype: str | None = None, **options):
    if dtype is not None:
        options["dtype"] = getattr(torch, dtype)
    if os.path.sep in path and not os.path.isdir(path) and path.count("/") != 1:
        raise UserError(
            f"{path}: no such model folder; give a run folder of a recipe or a Hub id such as gpt2"
        )
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what is missing from the weights is judged by the callers, in their own words
    try:
        return auto_class.from_pretrained(path, trust_remote_code=False, **options)
    except (OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0][:300]
        if reason.startswith("Unrecognized configuration class"):
            architecture = type_of_config(reason)
            raise UserError(
                f"{path}: cannot be loaded as {auto_class.__name__}: transformers has no such head for {architecture} "
                "models; start from another architecture, such as bert-base-uncased"
            ) from error
        known = (
            os.path.isdir(path)
            and f"the folder holds {', '.join(sorted(os.listdir(path))[:12]) or 'nothing'}"
        )
        raise UserError(
            f"{path}: cannot be loaded as {auto_class.__name__}: {reason}\n"
            f"  {known or 'it is neither a folder here nor reachable on the Hub; check the name or the network'}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def type_of_config(message: str) -> str:
    """The architecture in transformers' message about "<class '...GPT2Config'>", here GPT2."""
    name = re.search(r"(\w+)Config'", message)
    return name[1] if name else "such"


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
            raise UserError(
                f"the tokenizer {tokenizer.name_or_path!r} has no pad_token: set one in its folder"
            )
        tokenizer.pad_token = tokenizer.eos_token
    if pairs and tokenizer.sep_token is None:
        eos = (tokenizer.eos_token, tokenizer.eos_token_id)
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="$A", pair=["$A", eos[0], "$B"], special_tokens=[eos]
        )
    # BERT was pretrained with token types, and a tokenizer made by hand gives none; GPT-2 takes them too, as *words* 0
    # and 1. So it follows the model, in this process and in the saved folder (init_kwargs).
    typed = (getattr(model.config, "type_vocab_size", None) or 1) > 1
    tokenizer.model_input_names = [
        "input_ids",
        *(["token_type_ids"] if typed else []),
        "attention_mask",
    ]
    tokenizer.init_kwargs["model_input_names"] = tokenizer.model_input_names


def _named_loss(model: PreTrainedModel) -> PreTrainedModel:
    model.loss_type = (
        "ForCausalLM"  # transformers guesses it from the class name and warns at GPT2LMHeadModel
    )
    return model


def save(model: PreTrainedModel, tokenizer, folder: str | os.PathLike) -> None:
    """A plain `from_pretrained` folder: LoRA is merged, weights are safetensors, the tokenizer brings its template."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        model = copy.deepcopy(
            model
        ).merge_and_unload()  # of a copy: merging takes the matrices out of the training
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
