"""Loading and saving models and tokenizers: every weight and every tokenizer of a run is read here.

Weights are read from safetensors, or from a pickle that holds nothing but tensors (torch's `weights_only`, which refuses
all else), and remote code is never run. An error names the folder, what it holds and the remedy.
"""

import json
import os
import pickle
import re
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
)
from transformers.utils import logging

from rlhf.baselines.table import register_checkpoint
from rlhf.errors import UserError
from rlhf.models.architectures import (
    check_has_scores,
    check_policy,
    check_seq2seq,
    check_usable,
)
from rlhf.models.parts import base_of, freeze_other_parts, label_maps, set_causal_loss
from rlhf.models.quantized import check_can_be_quantized, keep_layout, merged, quantization_config
from rlhf.models.scores import HEADS, forget_centre, reads_pairs, score_head
from rlhf.models.snapshots import is_hub_name, model_folder
from rlhf.models.stale_weights import replacing_weights

ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
DTYPES = ("float32", "bfloat16", "float16")
# What transformers raises for a folder without a model, a cut file, or a pickle with code in it.
LOADING_ERRORS = (
    OSError,
    ValueError,
    ImportError,
    RuntimeError,
    EOFError,
    pickle.UnpicklingError,
    SafetensorError,
)
# How transformers begins a line about a setting of a generation config that has no effect.
UNUSED_SETTING = re.compile(r"^- `(\w+)`:", re.MULTILINE)
RENAMED = 0.05  # of the ids of a tokenizer: BERT reserves 3 %
TOKENIZERS = ("tokenizer*", "vocab*", "*.model")  # names of the files of one, in any form
FILES_SHOWN = 12  # names of a folder that an error lists
REASON_CHARACTERS = 300  # of transformers' messages, which run over pages


def load_tokenizer(path: str, *, revision: str | None = None):
    """Load the tokenizer of a run folder or Hub id. UserError where there is none."""
    tokenizer = _from_pretrained(AutoTokenizer, path, revision=revision)
    folder = Path(model_folder(path, revision, weights=False))
    has_files = any(list(folder.glob(pattern)) for pattern in TOKENIZERS)
    # transformers makes an empty one for a model without a tokenizer, and every text would have no tokens.
    if not has_files or len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise UserError(
            f"{path}: it holds no tokenizer (such as tokenizer.json): give one with tokenizer_name_or_path, or put its "
            "files next to the model"
        )
    return tokenizer


def check_same_ids(tokenizer, own, path: str) -> None:
    """Refuse a tokenizer under which the trained embeddings of a model would mean other tokens.

    own: the model's own tokenizer; path: of the model.
    Some ids may differ: models reserve ids that their users rename.
    """
    trained = {token_id: token for token, token_id in own.get_vocab().items()}
    shared, changed = 0, 0
    for token, token_id in tokenizer.get_vocab().items():
        if token_id in trained:
            shared += 1
            changed += token != trained[token_id]
    if changed > RENAMED * shared:
        raise UserError(
            f"tokenizer_name_or_path: under {tokenizer.name_or_path!r} {changed} of {shared} ids are other tokens than "
            f"{path} was trained with: drop the key, or give a tokenizer that only adds tokens to the model's own; for a "
            "new vocabulary set from_scratch: true, or put the tokenizer's files into the folder of the model"
        )


def load_policy(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    quantization: str | None = None,
) -> PreTrainedModel:
    """Load a causal language model. A LoRA folder is merged into the base model that it names.

    attn_implementation: one of ATTENTIONS; None: transformers' own choice.
    quantization: "4bit" or "8bit" stores the matrices so, for LoRA (`models.quantized`).
    """
    options = {"revision": revision, "dtype": dtype, "attn_implementation": attn_implementation}
    config = _config_of(path, revision)
    if config is not None:
        check_policy(config, path)
    # Before the weights are read, which takes long.
    if quantization is not None:
        check_can_be_quantized(config, path, quantization)
        options["quantization"] = quantization
    folder = model_folder(path, revision)
    if os.path.isfile(os.path.join(folder, "adapter_config.json")):
        from peft import AutoPeftModelForCausalLM

        if quantization is not None:
            raise UserError(
                f"{path} holds LoRA matrices, which cannot be merged into {quantization[0]} bits without losing most of "
                f"them: drop load_in_{quantization}, or give a run folder of a recipe, whose model is merged"
            )
        check_base_of_adapter(folder)
        adapted = _from_pretrained(AutoPeftModelForCausalLM, path, **options)
        check_policy(adapted.get_base_model().config, path)
        drop_unused_settings(adapted.get_base_model())
        return adapted.merge_and_unload()
    model, info = _from_pretrained(AutoModelForCausalLM, path, output_loading_info=True, **options)
    # A tied output layer is not missing. A reward model or encoder lacks one.
    if info["missing_keys"]:
        raise UserError(
            f"{path} is not a language model: {_first(info['missing_keys'])} would be random"
        )
    drop_unused_settings(model)
    freeze_other_parts(model)
    return set_causal_loss(model)


def check_base_of_adapter(folder: str) -> None:
    """Refuse an adapter whose base model would be refused. Afterwards the base is in the cache.

    folder: with adapter_config.json.
    """
    text = Path(folder, "adapter_config.json").read_text(encoding="utf-8")
    try:
        config = json.loads(text)
        base, revision = config.get("base_model_name_or_path"), config.get("revision")
    except (ValueError, AttributeError):
        return  # loading it says what is wrong
    if base:
        model_folder(base, revision)


def drop_unused_settings(model: PreTrainedModel) -> None:
    """Drop from the generation config what has no effect, as Llama 2's temperature without do_sample.

    transformers saves such a config only as long as nothing in it changes, and `fit_embeddings` gives it stop tokens.
    """
    config = getattr(model, "generation_config", None)
    if config is None:
        return
    try:
        config.validate(strict=True)
    except ValueError as error:
        for name in UNUSED_SETTING.findall(str(error)):
            setattr(config, name, None)


def load_reward_model(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    new_head: bool = False,
    quantization: str | None = None,
) -> PreTrainedModel:
    """Load a sequence classification model with one output. A head that is missing from the weights is an error.

    new_head=True is for training one: the head may be new, and starts at 0 so that every first score is 0.
    """
    check_reward_model(path, revision=revision, new_head=new_head)
    if quantization is not None:
        check_can_be_quantized(_config_of(path, revision), path, quantization)
    model, info = _from_pretrained(
        AutoModelForSequenceClassification,
        path,
        revision=revision,
        dtype=dtype,
        attn_implementation=attn_implementation,
        quantization=quantization,
        num_labels=1,
        output_loading_info=True,
        ignore_mismatched_sizes=new_head,
    )
    # Its pooler is trained in full, which packed weights cannot be.
    if quantization is not None and reads_pairs(model):
        raise UserError(
            f"{path}: load_in_{quantization} is for decoders, and an encoder such as this one is small: drop the key"
        )
    if new_head:
        head = score_head(model)
        forget_centre(model)
        nn.init.zeros_(head.weight)
        if head.bias is not None:
            nn.init.zeros_(head.bias)
        return model
    missing = sorted(info["missing_keys"])
    if not reads_pairs(model):
        # Only the head of a decoder is new to it.
        missing = [key for key in missing if key.startswith(HEADS)]
    if missing:
        raise UserError(
            f"{path} holds no reward head ({_first(missing)} would be random): "
            "train one with recipes/reward.py and give its run folder"
        )
    return model


def check_reward_model(path: str, *, revision: str | None = None, new_head: bool = False) -> None:
    """Refuse by its config alone what `load_reward_model` would refuse; the weights are not read."""
    config = _from_pretrained(AutoConfig, path, revision=revision)
    check_has_scores(path, config)
    labels = _labels_of(config)
    if len(labels) > 1 and not new_head:
        raise UserError(
            f"{path} is a classifier with {len(labels)} labels ({', '.join(labels[:3])}, ...), not a reward model with "
            "one score: train one with recipes/reward.py and give its run folder"
        )


def reward_model_outline(path: str, *, revision: str | None = None) -> PreTrainedModel:
    """The reward model that a checkpoint would become, without its weights: layers that hold no numbers.

    It takes no time and no memory, moves no random numbers, and tells what kind of model it is.
    """
    config = _from_pretrained(AutoConfig, path, revision=revision)
    check_has_scores(path, config)
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config)


def load_encoder(
    path: str,
    head: str,
    *,
    labels: list[str] | None = None,
    problem_type: str | None = None,
    new_head: bool = False,
    revision: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Load a model with a head.

    head: name of an Auto class, such as "AutoModelForTokenClassification".
    labels: output i is labels[i]. None keeps the labels of the config.

    A head that is missing from the weights is an error. new_head=True is for training one: then weights may be random,
    and `model.new_weights` names them. A trained head is drawn again when its labels differ, even if their number is equal.
    """
    check_usable(path, _from_pretrained(AutoConfig, path, revision=revision), head)
    options = {}
    if labels is not None:
        options |= label_maps(labels)
    if problem_type:
        options["problem_type"] = problem_type
    model, info = _from_pretrained(
        getattr(transformers, head),
        path,
        revision=revision,
        dtype=dtype,
        attn_implementation=attn_implementation,
        output_loading_info=True,
        ignore_mismatched_sizes=new_head,
        **options,
    )
    if info["missing_keys"] and not new_head:
        raise UserError(
            f"{path} has no trained head for {head} "
            f"(missing weights: {_first(info['missing_keys'])}): "
            "give the run folder of a recipe that trained one"
        )
    if new_head and labels is not None:
        # transformers keeps a head of the right size, whatever its outputs mean.
        trained = trained_labels(path, revision=revision)
        if trained not in ([], labels):
            layer = score_head(model)
            forget_centre(model)
            nn.init.normal_(layer.weight, std=model.config.initializer_range)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    model.new_weights = sorted(info["missing_keys"])
    return model


def load_seq2seq(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    attn_implementation: str | None = None,
) -> PreTrainedModel:
    """Load an encoder-decoder model, which reads a text and writes another one: T5, BART, Marian, or one of ours."""
    config = _config_of(path, revision)
    if config is not None:
        check_seq2seq(config, path)
    options = {"revision": revision, "dtype": dtype}
    if attn_implementation is not None:
        options["attn_implementation"] = attn_implementation
    model, info = _from_pretrained(AutoModelForSeq2SeqLM, path, output_loading_info=True, **options)
    if info["missing_keys"]:
        raise UserError(
            f"{path} is not a trained encoder-decoder model: {_first(info['missing_keys'])} would be random"
        )
    drop_unused_settings(model)
    return model


def trained_labels(path: str, *, revision: str | None = None) -> list[str]:
    """Labels of a checkpoint that has a trained head for texts or tokens, in the order of its outputs; else []."""
    return _labels_of(_from_pretrained(AutoConfig, path, revision=revision))


def _labels_of(config) -> list[str]:
    labelled = ("SequenceClassification", "TokenClassification")
    if not any(name.endswith(labelled) for name in config.architectures or ()):
        return []
    return [config.id2label[i] for i in range(config.num_labels)]


def _config_of(path: str, revision: str | None):
    """The config of a folder or Hub id. None if there is none: loading the model then says what is wrong."""
    try:
        folder = model_folder(path, revision, weights=False)
        register_checkpoint(folder)
        return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except LOADING_ERRORS:
        return None


def save(model: PreTrainedModel, tokenizer, folder: str | os.PathLike) -> None:
    """Write a plain `from_pretrained` folder: LoRA merged, weights as safetensors, the tokenizer with its template.

    Weights of an earlier model in the folder are removed, whatever their files are called.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    if hasattr(model, "peft_config"):
        # A copy: merging would remove the LoRA matrices that are in training.
        model = merged(model)
    with replacing_weights(folder):
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _from_pretrained(
    auto_class,
    path: str,
    *,
    dtype: str | None = None,
    attn_implementation: str | None = None,
    revision: str | None = None,
    quantization: str | None = None,
    **options,
):
    """Call `auto_class.from_pretrained` without remote code. What cannot be loaded is a UserError.

    path: a folder, or a name of the Hub, as `models.snapshots` reads it.
    """
    if dtype is not None:
        if dtype not in DTYPES:
            raise UserError(f"dtype={dtype!r}: use one of {', '.join(DTYPES)}")
        options["dtype"] = getattr(torch, dtype)
    if attn_implementation is not None:
        check_attention(attn_implementation)
        options["attn_implementation"] = attn_implementation
    if quantization is not None:
        options["quantization_config"] = quantization_config(quantization, options["dtype"])
    check_folder(path)
    has_weights = auto_class not in (AutoConfig, AutoTokenizer)
    folder = model_folder(path, revision, weights=has_weights)
    register_checkpoint(folder)
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the callers report missing weights in their own words
    try:
        loaded = auto_class.from_pretrained(folder, trust_remote_code=False, **options)
        if quantization is not None:
            keep_layout(loaded[0])  # with its loading info
        if attn_implementation is not None:
            model = loaded[0] if isinstance(loaded, tuple) else loaded  # with its loading info
            base_of(model).attention_is_chosen = True  # `kernels` leaves it alone
        if folder != path:
            _name_after(loaded, path, commit=Path(folder).name)
        return loaded
    except LOADING_ERRORS as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        reason = lines[0][:REASON_CHARACTERS]
        if attn_implementation is not None and "attention" in reason.lower():
            raise UserError(
                f"{path}: attn_implementation={attn_implementation} does not work here: {reason}; drop the key, or use "
                "eager or sdpa"
            ) from error
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{path}: it needs Python code that comes with it, and such code is never run here: take a model of an "
                "architecture that transformers has"
            ) from error
        if reason.startswith("Unrecognized configuration class"):
            raise UserError(
                f"{path}: cannot be loaded as {auto_class.__name__}: transformers has no such head for "
                f"{type_of_config(reason)} models; start from another architecture, such as bert-base-uncased"
            ) from error
        raise UserError(
            f"{path}: cannot be loaded as {auto_class.__name__}: {reason}\n  {_what_is_there(folder)}"
        ) from error
    finally:
        logging.set_verbosity(verbosity)


def _name_after(loaded, name: str, commit: str) -> None:
    """Give a model or tokenizer of the Hub its name there, not the path of the cache. A model knows its commit, too."""
    if isinstance(loaded, tuple):  # with its loading info
        loaded = loaded[0]
    if isinstance(loaded, PreTrainedModel):
        loaded.name_or_path = loaded.config._name_or_path = name
        loaded.hub_commit = commit  # for adapters of it
    elif hasattr(loaded, "name_or_path"):  # a tokenizer
        loaded.name_or_path = name


def check_folder(path: str) -> None:
    """Refuse a folder that is missing. What may be a Hub id is not looked up."""
    # One slash may be a Hub id (owner/name), unless the owner is a folder here; more can only be a folder.
    if os.path.sep in path and not os.path.isdir(path) and not is_hub_name(path):
        parent = os.path.dirname(path)
        raise UserError(
            f"{path}: no such model folder; give a run folder of a recipe or a Hub id such as gpt2; {_what_is_there(parent)}"
        )


def check_attention(name: str) -> None:
    """Refuse an attention that is none of ATTENTIONS. Others are code of the Hub, which is never run."""
    if name not in ATTENTIONS:
        raise UserError(f"attn_implementation={name!r}: use one of {', '.join(ATTENTIONS)}")


def type_of_config(message: str) -> str:
    """Return the architecture in transformers' message about "<class '...GPT2Config'>", here GPT2."""
    name = re.search(r"(\w+)Config'", message)
    return name[1] if name else "such"


def _what_is_there(path: str) -> str:
    if not os.path.isdir(path):
        return (
            "it is neither a local folder nor reachable on the Hub; check the name or the network"
        )
    names = sorted(os.listdir(path))[:FILES_SHOWN]
    return f"the folder holds {', '.join(names) or 'nothing'}"


def _first(keys) -> str:
    """The first three names, in alphabetical order."""
    return ", ".join(sorted(keys)[:3])
