"""Checks of a policy-gradient run before its first step: what would otherwise stop it in its first rollout, or later.

Those of the settings need no model, so that a wrong one costs no download. None of them moves the random numbers of the
run.
"""

from itertools import chain

from rlhf.algorithms import ALGORITHMS
from rlhf.completions.functions import kept_surroundings
from rlhf.completions.score import (
    FunctionScorer,
    RewardModelScorer,
    ScoringBatch,
    WeightedSum,
    column_names,
)
from rlhf.data.chat import as_text, same_encoding
from rlhf.errors import UserError
from rlhf.models.load import check_reward_model
from rlhf.policy_gradient.rollouts import check_texts
from rlhf.runs.checkpoints import check_is_measured

# The numbers of `completions.rollout.statistics` that an evaluation gives, whatever the rewards are.
EVALUATED = (
    "score",
    "score_std",
    "kl",
    "completion_length",
    "eos_rate",
    "entropy",
    "surprise",
    "unique_completions",
    "distinct_2",
    "repetition",
)
TRIED_ROWS = 3  # prompts that each reward function scores before the training
TRIED_COMPLETION = "Yes."  # that each reward model scores


def check_roles(settings, args, splits) -> None:
    """UserError where the settings name no reward, or models or functions that cannot be used.

    settings: RoleSettings, ModelSettings and ptx_dataset_name. args: a PolicyGradientConfig. splits: the rows.
    """
    if not settings.ptx_dataset_name:
        check_texts(None, args, context=0)  # refuses ptx_coef without a text
    models = list(settings.reward_model_path)
    # Their number must fit the weights; the scorers themselves are loaded later.
    names = [*models, *settings.reward_functions]
    rewards = {f"{number}: {name}": None for number, name in enumerate(names, start=1)}
    WeightedSum(rewards, settings.reward_weights)
    if settings.watch_reward_model_path:
        models.append(settings.watch_reward_model_path)
    if ALGORITHMS[args.algorithm].needs_values:
        models += value_model_paths(settings)
    for path in models:
        check_reward_model(path)
    group = args.num_generations
    for path in settings.reward_functions:
        scorer = FunctionScorer.load(path, settings.call_limits())
        try_function(scorer, splits.train, splits.eval, group=group)


def value_model_paths(settings) -> list[str]:
    """The folder or Hub id that the setting value_model names itself, in a list, or []."""
    if settings.value_model == "reward_model" and not settings.reward_model_path:
        raise UserError(
            "value_model: reward_model needs a reward_model_path; with functions alone use value_model: shared"
        )
    if settings.value_model in ("reward_model", "shared"):
        return []
    return [settings.value_model]


def try_function(
    scorer: FunctionScorer, rows: list[dict], eval_rows: list[dict], *, group: int
) -> None:
    """Call a reward function on the first training prompts, with completions made of the rows' own text.

    UserError where it raises or returns anything but a finite number per completion. It may be called again, as in training.
    group: completions of each prompt, which are next to each other as in a rollout.
    """
    prompts, completions, names = [], [], []
    columns: dict[str, list] = {name: [] for name in column_names(chain(rows, eval_rows))}
    for i, row in enumerate(rows[:TRIED_ROWS]):
        completion = row.get("completion")
        if not isinstance(completion, str):
            completion = as_text(row["prompt"])
        for _ in range(group):
            prompts.append(row["prompt"])
            completions.append(completion)
            names.append(f"training row {i}")
            for name, values in columns.items():
                values.append(row.get(name))
    # The scorer gives copies to the function, and puts the random states back.
    scorer(ScoringBatch(prompts, completions, columns, row_names=names))


def check_before_training(trainer) -> None:
    """UserError where a PolicyGradientTrainer would fail later: on its best metric, or as a reward model scores."""
    scorers = trainer.roles.rewards.scorers
    names = [*EVALUATED, *(f"score_{name}" for name in scorers)]
    check_is_measured(trainer.args.metric_for_best_model, [f"eval_{name}" for name in names])
    for name, scorer in scorers.items():
        if isinstance(scorer, RewardModelScorer):
            check_reading_length(trainer, name, scorer)
            try_reward_model(trainer, scorer)


def check_reading_length(trainer, name: str, scorer: RewardModelScorer) -> None:
    """UserError where the longest prompt with the longest completion has more tokens than a reward model reads.

    A reward model with a tokenizer of its own is not checked: how many tokens it makes of a completion is not known.
    """
    if scorer.inputs.pairs or not same_encoding(trainer.tokenizer, scorer.tokenizer):
        return
    prompt = trainer.rollouts.prompts.longest
    if trainer.rollouts.eval_prompts is not None:
        prompt = max(prompt, trainer.rollouts.eval_prompts.longest)
    completion = trainer.args.max_completion_length
    if prompt + completion > scorer.limit:
        raise UserError(
            f"{name} reads at most {scorer.limit} tokens, and the longest prompt has {prompt}, which leaves no room for "
            f"max_completion_length={completion}: lower it, or set max_prompt_length to {scorer.limit - completion}"
        )


def try_reward_model(trainer, scorer: RewardModelScorer) -> None:
    """Score one completion of the first training prompt. The scorer refuses a score that is not finite."""
    tokenizer, prompts = trainer.tokenizer, trainer.rollouts.prompts
    ids = tokenizer(TRIED_COMPLETION, add_special_tokens=False)["input_ids"]
    # No longer than the check of the lengths has allowed for.
    ids = ids[: trainer.args.max_completion_length]
    batch = ScoringBatch(
        prompts=[prompts.rows[0]["prompt"]],
        completions=[TRIED_COMPLETION],
        tokenizer=tokenizer,
        prompt_ids=[prompts.ids[0]],
        completion_ids=[ids],
    )
    # The policy's layers may be those of the reward model.
    model = trainer.accelerator.unwrap_model(trainer.model)
    training = model.training
    model.eval()
    with kept_surroundings(seed=0), trainer.accelerator.autocast():
        scorer(batch)
    model.train(training)
