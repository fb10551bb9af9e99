"""Report of both workers: seconds of each update, the policy's weights every few updates, the logged scores.

The clock stops while weights are written. Imports neither side's packages.
"""

import json
from pathlib import Path

import torch
from clock import Clock, peak_memory_gb
from transformers import TrainerCallback


class Snapshots(TrainerCallback):
    """steps: optimiser steps per update as the trainer's global_step counts them; score: the log's name for it."""

    def __init__(self, job: dict, policy, *, steps: int, score: str):
        self.folder, self.every = Path(job["folder"]), job["every"]
        self.policy, self.steps, self.score = policy, steps, score
        self.clock, self.scores = Clock(), []

    def on_train_begin(self, args, state, control, **kwargs):
        self.clock.begin()

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.steps:
            return
        self.clock.next_update()
        done = len(self.clock.updates)
        if done % self.every == 0:
            torch.save(self.policy.state_dict(), self.folder / f"policy_{done}.pt")
        self.clock.begin()

    def on_log(self, args, state, control, logs, **kwargs):
        if self.score in logs:
            self.scores.append(logs[self.score])

    def write(self, *, optimizer_steps: int, versions: dict) -> None:
        result = {
            "updates": self.clock.updates,
            "rollout_scores": self.scores,  # of the completions trained on, after the penalty for a missing EOS
            "optimizer_steps": optimizer_steps,
            "threads": torch.get_num_threads(),
            "peak_memory_gb": peak_memory_gb(),
            "versions": versions,
        }
        (self.folder / "result.json").write_text(json.dumps(result))
