"""Steps and weights that are not finite, in every trainer."""

import pytest

from rlhf.errors import UserError
from rlhf.runs.nonfinite import NonFiniteSteps

# ---- steps that are not finite ----


def test_not_finite_steps_are_counted_and_the_run_stops_after_so_many_in_a_row(tmp_path):
    steps = NonFiniteSteps(limit=3, output_dir=str(tmp_path))
    for found in (True, True, False, True, True):
        steps.count(found)
    assert steps.take() == 4 and steps.take() == 0
    for name in ("checkpoint-8", "checkpoint-16", "plots"):
        (tmp_path / name).mkdir()
    with pytest.raises(UserError) as caught:
        steps.count(True)
    assert "3 updates in a row" in str(caught.value) and "learning_rate" in str(caught.value)
    assert f"--resume_from_checkpoint {tmp_path / 'checkpoint-16'}" in str(caught.value)


@pytest.mark.parametrize("folder", ["", "not/there"])
def test_without_a_checkpoint_the_error_says_so(tmp_path, refused, folder):
    steps = NonFiniteSteps(limit=1, output_dir=str(tmp_path / folder))
    assert "there is no checkpoint" in refused(steps.count, True)


def test_the_count_in_a_row_can_be_resumed(tmp_path, refused):
    steps = NonFiniteSteps(limit=3, output_dir=str(tmp_path))
    steps.in_a_row = 2
    assert "3 updates" in refused(steps.count, True)
