"""The files that a newcomer reads to understand one PPO run, in order: `python tests/reading_path.py` counts their lines.

The run has one process and a value model that starts from the reward model. Of a file with named definitions only those
are read, and its docstring.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# file: the definitions that are read, or None for the whole file
PATH = {
    "recipes/demo.sh": None,
    "recipes/ppo.py": ["PPOSettings", "main", "load_roles"],
    "rlhf/policy_gradient/roles.py": [
        "RoleSettings",
        "load_rewards",
        "load_value_model",
        "Roles",
        "make_actor_critic",
        "place",
    ],
    "rlhf/policy_gradient/rollouts.py": [
        "Prompts",
        "encode_prompts",
        "permutation",
        "choose_rows",
        "RolloutMaker",
        "RolloutLoader",
    ],
    "rlhf/completions/sample.py": None,
    "rlhf/completions/score.py": [
        "ScoringBatch",
        "RewardModelScorer",
        "WeightedSum",
        "load_scorers",
    ],
    "rlhf/completions/rollout.py": None,
    "rlhf/algorithms/__init__.py": None,
    "rlhf/algorithms/rewards.py": None,
    "rlhf/algorithms/advantages.py": ["rewards_to_go", "gae"],
    "rlhf/algorithms/losses.py": [
        "token_ratio",
        "clipped_surrogate_loss",
        "equal_tokens",
        "value_loss",
        "clipped_value_loss",
    ],
    "rlhf/policy_gradient/update.py": None,
    "rlhf/policy_gradient/trainer.py": None,
}


def lines_to_read(path: str, names: list[str] | None) -> int:
    """Lines of the file, or of its docstring and the named definitions. A name that does not exist is a KeyError."""
    source = (ROOT / path).read_text(encoding="utf-8")
    if names is None:
        return len(source.splitlines())
    body = ast.parse(source).body
    definitions = {node.name: node for node in body if hasattr(node, "name")}
    nodes = [body[0]]  # the docstring
    nodes += [definitions[name] for name in names]
    return sum(length(node) for node in nodes)


def length(node) -> int:
    """Lines of a definition, with its decorators."""
    decorators = getattr(node, "decorator_list", [])
    first = min([node.lineno, *(decorator.lineno for decorator in decorators)])
    return node.end_lineno - first + 1


def main() -> None:
    counts = {path: lines_to_read(path, names) for path, names in PATH.items()}
    for path, count in counts.items():
        print(f"{count:5d}  {path}")
    print(f"{sum(counts.values()):5d}  lines in {len(counts)} files")


if __name__ == "__main__":
    main()
