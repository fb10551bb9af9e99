import pytest
import torch

from rlhf.policy_gradient.update_metrics import UpdateMetrics


def test_metrics_are_means_over_the_updates_that_were_made():
    metrics = UpdateMetrics()
    for policy_loss, kept in ((1.0, True), (float("nan"), False), (3.0, True)):
        for share in (0.25, 0.75):  # two micro-batches
            metrics.add({"policy_loss": torch.tensor(share * policy_loss)})
        if kept:
            metrics.keep_update()
            metrics.add_common({"grad_norm_policy": torch.tensor(policy_loss)})
        else:
            metrics.drop_update()
    metrics.add({"first_ratio_error": torch.tensor(0.1)})
    metrics.add({"first_ratio_error": torch.tensor(0.3)})

    def two_processes(rows):
        return torch.cat([rows, rows])

    found = metrics.take(two_processes, "cpu")
    # Shares are summed over processes; norms are the same on all of them.
    assert found == pytest.approx(
        {"policy_loss": 4.0, "grad_norm_policy": 2.0, "first_ratio_error": 0.3}
    )
    assert metrics.take(two_processes, "cpu") == {}
