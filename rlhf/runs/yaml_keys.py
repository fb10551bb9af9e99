"""YAML in which a key may occur once only: of two, YAML itself would take the last without a word."""

import yaml


class DuplicateKeyError(yaml.YAMLError):
    """A key occurs twice in one map."""


class UniqueKeyLoader(yaml.SafeLoader):
    """Reads as yaml.safe_load does, and refuses a key that occurs twice in one map."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        first_lines: dict[str, int] = {}
        for key_node, _ in node.value:
            name = str(key_node.value)
            line = key_node.start_mark.line + 1  # people count from 1
            if name in first_lines:
                raise DuplicateKeyError(
                    f"the key {name!r} is on line {first_lines[name]} and again on line {line}: keep one"
                )
            first_lines[name] = line
        return super().construct_mapping(node, deep)


def load_yaml(text: str):
    """The content of a YAML document. yaml.YAMLError where it is not one, or names a key twice."""
    return yaml.load(text, Loader=UniqueKeyLoader)
