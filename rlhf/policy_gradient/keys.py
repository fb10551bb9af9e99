"""Keys that policy-gradient training does not read, with what to use instead (`rlhf.runs.keys`)."""

from rlhf.algorithms import ALGORITHMS, TRUST_REGION, takes
from rlhf.runs.keys import EVALUATION_LOOP, OWN_MODULE, Unused


def learns_values(run) -> bool:
    return ALGORITHMS[run.algorithm].needs_values


def takes_gae_lambda(run) -> bool:
    return takes(ALGORITHMS[run.algorithm].advantages, "gae_lambda")


def takes_gamma(run) -> bool:
    return takes(ALGORITHMS[run.algorithm].advantages, "gamma")


def clips_ratios(run) -> bool:
    return takes(ALGORITHMS[run.algorithm].policy_loss, "clip_range")


def is_trust_region(run) -> bool:
    return ALGORITHMS[run.algorithm].update is TRUST_REGION


ALGORITHM_KEYS = (
    Unused(
        ("value_learning_rate", "value_coef", "value_clip_range", "value_model"),
        "this algorithm has no value model; drop it, or use algorithm: ppo, a2c or trpo",
        learns_values,
    ),
    Unused(("gae_lambda",), "only ppo, a2c and trpo use GAE; drop it", takes_gae_lambda),
    Unused(("gamma",), "this algorithm does not discount; drop it", takes_gamma),
    Unused(("clip_range",), "the loss of this algorithm is not clipped; drop it", clips_ratios),
    Unused(
        ("max_kl",), "only algorithm: trpo has it; use kl_coef, or max_kl_stop", is_trust_region
    ),
    Unused(
        ("kl_horizon",),
        "kl_coef adapts only with a kl_target; set one",
        lambda run: run.kl_target is not None,
    ),
    Unused(
        ("ptx_dataset_name", "ptx_per_episode"),
        "plain text counts only with a ptx_coef above 0; set one (InstructGPT: 27.8)",
        lambda run: run.ptx_coef > 0,
    ),
)
TRAINER_KEYS = (
    Unused(
        ("num_train_epochs",),
        "a run is counted in completions, not in passes over the prompts; use total_episodes (and epochs_per_rollout)",
    ),
    Unused(
        ("logging_strategy", "logging_steps", "logging_first_step"),
        "there is one log per rollout; drop it",
    ),
    Unused(
        ("remove_unused_columns",), "a reward function may read every column; drop it", fixed=False
    ),
    Unused(
        ("ignore_data_skip",),
        "a resumed run makes its rollouts again from their index; drop it",
        fixed=True,
    ),
    Unused(
        (
            "dataloader_drop_last",
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_multiprocessing_context",
            "dataloader_in_order",
            "accelerator_config",
            "train_sampling_strategy",
            "length_column_name",
            "data_seed",
        ),
        "batches are rollouts, which the policy makes itself; drop it (seed orders the prompts)",
    ),
    Unused(
        ("label_smoothing_factor",),
        "no loss here has labels; entropy_coef keeps the policy from certainty",
    ),
    Unused(
        ("neftune_noise_alpha",),
        "noise in the embeddings would move every probability ratio away from 1; entropy_coef explores",
    ),
    Unused(
        ("average_tokens_across_devices",),
        "losses are means over the tokens of all processes; drop it",
        fixed=True,
    ),
    Unused(("use_cache",), "sampling always caches, training never; drop it"),
    Unused(
        ("include_num_input_tokens_seen",),
        "the log counts episodes and completion_length; drop it",
    ),
    Unused(
        ("enable_jit_checkpoint",),
        "a checkpoint is possible between rollouts only; use save_every",
    ),
    OWN_MODULE,
    EVALUATION_LOOP,
)
UNUSED = ALGORITHM_KEYS + TRAINER_KEYS
