"""The files that a newcomer reads to understand one PPO run, in order: `python tests/reading_path.py` counts their lines.

The run has one process and a value model that starts from the reward model. Of a file with named definitions only those
are read, and its docstring: not its imports, and nothing that such a run does not use.
"""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# file: the definitions that are read, or None for the whole file. A minus: not used by such a run.
PATH = {
    "recipes/demo.sh": None,
    "recipes/ppo.py": ["PPOSettings", "main", "prepare", "load_roles"],
    "rlhf/policy_gradient/roles.py": [
        "RoleSettings",
        "load_rewards",
        "load_value_model",
        "Roles",
        "-Roles.share_a_trunk",
        "make_actor_critic",
        "move_to_devices",
        "make_optimizer",
    ],
    "rlhf/policy_gradient/rollouts.py": [
        "encode_prompts",
        "permutation",
        "choose_rows",
        "RolloutMaker",
        "-RolloutMaker.gathered",  # several processes
        "RolloutLoader",
        "-RolloutLoader.text_batches",  # PPO-ptx
        "-RolloutLoader.texts_with",
    ],
    "rlhf/completions/sample.py": [
        "SampledTokens",
        "uniform_numbers",
        "sample_tokens",
        "decode",
    ],
    "rlhf/completions/score.py": [
        "ScoringBatch",
        "RewardModelScorer",
        "WeightedSum",
        "load_scorers",
    ],
    "rlhf/completions/rollout.py": [
        "Rollout",
        "choose",
        "Prompts",
        "CollectSettings",
        "collect",
        "forward_passes",
        "estimate",
        "statistics",
        "samples",
        "unpadded",
    ],
    "rlhf/algorithms/__init__.py": [
        "UpdateRule",
        "OPTIMIZER",
        "Algorithm",
        "call",
        "takes",
        "ALGORITHMS",
    ],
    "rlhf/algorithms/rewards.py": ["token_rewards", "missing_eos_penalty"],
    "rlhf/algorithms/advantages.py": ["rewards_to_go", "gae"],
    "rlhf/algorithms/losses.py": [
        "token_ratio",
        "clipped_surrogate_loss",
        "equal_tokens",
        "value_loss",
    ],
    "rlhf/policy_gradient/update.py": [
        "LossSettings",
        "micro_batch_loss",
        "policy_losses",
        "value_losses",
    ],
    "rlhf/policy_gradient/trainer.py": [
        "PolicyGradientTrainer",
        "-PolicyGradientTrainer._inner_training_loop",  # resuming
        "-PolicyGradientTrainer._load_from_checkpoint",
        "-PolicyGradientTrainer._load_best_model",
    ],
}


def lines_to_read(path: str, names: list[str] | None) -> int:
    """Lines of the file, or of its docstring and the named definitions. A name that does not exist is a KeyError."""
    source = (ROOT / path).read_text(encoding="utf-8")
    if names is None:
        return len(source.splitlines())
    module = ast.parse(source)
    nodes = definitions(module)
    count = length(module.body[0])  # the docstring
    for name in names:
        if name.startswith("-"):
            count -= length(nodes[name[1:]])
        else:
            count += length(nodes[name])
    return count


def definitions(module: ast.Module) -> dict[str, ast.AST]:
    """Functions, classes, their methods (Class.method) and constants of a module, by name."""
    nodes = {}
    for node in module.body:
        if isinstance(node, ast.Assign):
            nodes[ast.unparse(node.targets[0])] = node
        elif hasattr(node, "name"):
            nodes[node.name] = node
            methods = [child for child in ast.iter_child_nodes(node) if hasattr(child, "name")]
            nodes |= {f"{node.name}.{method.name}": method for method in methods}
    return nodes


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
