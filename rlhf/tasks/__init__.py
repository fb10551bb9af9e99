"""Fine-tuning an encoder for a task: `TASKS` holds what differs, one folder per task holds its code."""

from rlhf.tasks.table import TASKS

__all__ = ["TASKS"]
