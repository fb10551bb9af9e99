"""A reward trainer on a tiny model, for the tests of its loss and of its keys."""

import pytest

from rlhf.reward_model.rankings import encode_rankings
from rlhf.reward_model.trainer import RewardConfig, RewardTrainer


@pytest.fixture
def make_reward_trainer(tokenizer, tmp_path):
    """f(model, rows, folder, **settings): trains and evaluates on the same rows."""

    def make(model, rows, folder, **settings):
        encoded, _ = encode_rankings(tokenizer, rows, max_length=40)
        defaults = dict(
            per_device_train_batch_size=4, per_device_eval_batch_size=4, num_train_epochs=2, report_to="none",
            use_cpu=True, disable_tqdm=True, logging_steps=1, save_strategy="no", seed=1,
        )  # fmt: skip
        args = RewardConfig(output_dir=str(tmp_path / folder), **defaults | settings)
        return RewardTrainer(
            model=model, tokenizer=tokenizer, args=args, train_rows=encoded, eval_rows=encoded
        )

    return make
