"""The flags of `rlhf sample` that decode with a value function, and what they load. docs/value_decoding.md explains them."""

import argparse
import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

from rlhf.comparison.compare import ChatRun, discount
from rlhf.completions.guided import Guide, GuideSettings, decode_by_value
from rlhf.completions.tree_search import decode_by_search
from rlhf.data.chat import same_encoding
from rlhf.digests import weight_files
from rlhf.errors import UserError
from rlhf.models.load import load_policy, load_tokenizer
from rlhf.models.parts import freeze, stop_token_ids
from rlhf.models.snapshots import is_local_model, model_folder
from rlhf.models.value_functions import FOLDER, has_action_values, load_actor_critic
from rlhf.runs.processes import best_device

SAMPLE, VALUE, MCTS = "sample", "value", "mcts"
# Flags that each way of decoding reads, and those that both with values read.
FLAGS = {SAMPLE: (), VALUE: ("value_coef",), MCTS: ("simulations", "c_puct")}
BOTH = ("value_run", "ref_model", "kl_coef")
DEFAULTS = {
    field.name: field.default
    for field in fields(GuideSettings)
    if field.name in (*FLAGS[VALUE], *FLAGS[MCTS], "kl_coef")
}


def add_guiding_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--decoding",
        choices=list(FLAGS),
        help="value: weigh the next tokens by values; mcts: search with those of PPO [value for an ILQL run, else sample]",
    )
    add("--value_run", metavar="RUN", help="run whose value_model/ guides [RUN itself]")
    add(
        "--value_coef",
        type=float,
        help="value: weight of the advantage [1; of an ILQL run its advantage_coef]",
    )
    add("--simulations", type=int, help="mcts: for each token [16]")
    add("--c_puct", type=float, help="mcts: exploration, in units of the score [1]")
    add("--ref_model", metavar="RUN", help="reference of the KL in the reward of each token")
    add("--kl_coef", type=float, help="of that KL, as PPO had it [0]")


def check_guiding_arguments(args: argparse.Namespace) -> None:
    """Choose the decoding where no flag does. UserError for flags that it does not read, or that mean nothing."""
    of_ilql = has_action_values(args.run)
    if args.decoding is None:
        args.decoding = VALUE if of_ilql else SAMPLE
    read = FLAGS[args.decoding]
    if args.decoding == MCTS and of_ilql:
        raise UserError(
            f"--decoding mcts searches with PPO's values, and {args.run} has those of ILQL: use --decoding value"
        )
    if args.decoding != SAMPLE and not of_ilql:
        read += BOTH
    for name in (*DEFAULTS, "value_run", "ref_model"):
        if getattr(args, name) is not None and name not in read:
            raise UserError(f"--{name} is not read with --decoding {args.decoding}: drop it")
    if args.decoding == SAMPLE:
        return
    if of_ilql:  # whose values are of all tokens
        check_is_finite_from_0(args, "value_coef")
        return
    if args.top_k == 0 or args.top_p != 1:
        raise UserError(
            f"--decoding {args.decoding} looks at the --top_k likeliest tokens: give one, such as 8, and no --top_p"
        )
    if bool(args.kl_coef) != bool(args.ref_model):
        raise UserError("--kl_coef and --ref_model belong together: give both, or neither")
    if setting(args, "simulations") < 1:
        raise UserError(f"--simulations {args.simulations} must be at least 1")
    for name in ("value_coef", "c_puct", "kl_coef"):
        check_is_finite_from_0(args, name)


def check_is_finite_from_0(args: argparse.Namespace, name: str) -> None:
    if not 0 <= setting(args, name) < math.inf:
        raise UserError(f"--{name} {setting(args, name)} must be at least 0 and finite")


def advantage_coef(args: argparse.Namespace) -> float | None:
    """The weight of the advantages of an ILQL run: 0 where it is sampled without values, None for what the run says."""
    return 0.0 if args.decoding == SAMPLE else args.value_coef


def setting(args: argparse.Namespace, name: str) -> float:
    """The value of a flag, or its default."""
    value = getattr(args, name)
    if value is None:
        return DEFAULTS[name]
    return value


def guiding_settings(args: argparse.Namespace) -> dict:
    """The part of a record about the decoding: {} for plain sampling, whose records stay as they were."""
    if args.decoding == SAMPLE:
        return {}
    if has_action_values(args.run):
        # None: what the run says, whose hash is in the record.
        return {"decoding": VALUE, "value_coef": args.value_coef}
    names = (*FLAGS[args.decoding], "kl_coef")
    return {"decoding": args.decoding} | {name: setting(args, name) for name in names}


def guiding_models(args: argparse.Namespace) -> dict[str, str]:
    """Paths of the further models that decide what is sampled, by role."""
    if args.decoding == SAMPLE:
        return {}
    models = {"values": value_folder(args)}
    if args.ref_model:
        models["reference"] = args.ref_model
    return models


def value_folder(args: argparse.Namespace) -> str:
    """The folder whose weights give the values, for the record: a model, a head on the policy's trunk, or those of ILQL."""
    run = args.value_run or args.run
    folder = Path(model_folder(run)) / FOLDER
    # A commit of the Hub names the folders in it too.
    if is_local_model(run) and weight_files(folder):
        return str(folder)
    return run


def load_guide(args: argparse.Namespace, run: ChatRun) -> tuple[Guide, Callable]:
    """The guide, which counts its passes, and the function f(prompt ids, uniforms) that decodes with it."""
    model = load_actor_critic(run.model, run.tokenizer, args.run, value_run=args.value_run)
    guide = Guide(
        model,
        pad_token_id=run.pad_token_id,
        temperature=args.temperature,
        reference=load_reference(args, run),
        batch_size=args.per_device_batch_size,
    )
    settings = GuideSettings(
        top_k=args.top_k,
        stop_token_ids=tuple(stop_token_ids(run.model, run.tokenizer)),
        max_completion_length=args.max_completion_length,
        value_coef=setting(args, "value_coef"),
        simulations=setting(args, "simulations"),
        c_puct=setting(args, "c_puct"),
        kl_coef=setting(args, "kl_coef"),
        gamma=discount(args.value_run or args.run),
    )
    decode = {VALUE: decode_by_value, MCTS: decode_by_search}[args.decoding]

    def decode_prompts(prompt_ids, uniforms):
        return decode(guide, prompt_ids, settings, uniforms=uniforms)

    return guide, decode_prompts


def load_reference(args: argparse.Namespace, run: ChatRun):
    """The frozen reference, or None. Its tokens must be the policy's."""
    if not args.ref_model:
        return None
    if not same_encoding(run.tokenizer, load_tokenizer(args.ref_model)):
        raise UserError(
            f"--ref_model {args.ref_model} has another tokenizer than {args.run}: give the model that PPO started from"
        )
    return freeze(load_policy(args.ref_model)).to(best_device())
