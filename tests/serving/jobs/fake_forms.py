"""The keys of a recipe that does not exist, in the form in which the app gets them."""


def key(name: str, kind: str = "text", **facts) -> dict:
    """A key with the facts that the app reads."""
    base = {
        "name": name,
        "group": "Data",
        "kind": kind,
        "choices": [],
        "default": None,
        "help": f"Help of {name}.",
    }
    return base | {"range": ""} | facts


FORMS = {
    "sft": {
        "summary": "A recipe of the tests.",
        "keys": [
            key("seconds", "float", range="at least 0"),
            key("ends", "int", default=0),
            key("model_name_or_path", default="gpt2"),
            key("dataset_name"),
            key("columns"),
            key("use_peft", "bool", default=False),
            key("reward_model_path", "list", default=[]),
            key("reward_functions", "list", default=[]),
            key("overlap", choices=["error", "drop"], default="error"),
            key("resume_from_checkpoint"),
        ],
        "configs": [{"name": "demo", "purpose": "For tests.", "values": {"seconds": 0.1}}],
    }
}
FORMS["reward"] = FORMS["sft"]
FORMS["ppo"] = FORMS["sft"]


class FakeForms:
    """Answers at once. refuses: the problem that it has with any settings."""

    is_ready = True

    def __init__(self, refuses: str | None = None):
        self.refuses = refuses

    def forms(self) -> dict:
        return FORMS

    def check(self, recipe: str, argv: list[str], coming: list[str]) -> str | None:
        return self.refuses

    def warm(self) -> None:
        pass

    def close(self) -> None:
        pass
