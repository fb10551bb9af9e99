"""Fine-tuning an encoder for a task: `TASKS` holds what differs, one folder per task holds its code."""

from rlhf.task_table import TASKS

__all__ = ["TASKS"]
