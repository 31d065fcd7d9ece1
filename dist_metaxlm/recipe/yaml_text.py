"""YAML as recipes use it: `no` is a string (Norwegian), 1e-3 is a number, and duplicate keys are errors.

PyYAML reads YAML 1.1, where no, yes, on and off are truth values, 2026-11-22 is a date, 1e-3 is text, 010 is eight, 1:30 is
ninety, and the last of duplicate keys silently wins. The rest of its safe reader is kept.
"""

from __future__ import annotations

import re

import yaml

_TAG = "tag:yaml.org,2002:"
_FLOAT = re.compile(
    r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*(?:[eE][-+]?[0-9]+)?|\.[0-9][0-9_]*(?:[eE][-+]?[0-9]+)?"
    r"|[0-9][0-9_]*[eE][-+]?[0-9]+|\.(?:inf|Inf|INF))$|\.(?:nan|NaN|NAN)$"
)
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)$")
_BOOL = re.compile(r"(?:true|True|TRUE|false|False|FALSE)$")


class _Loader(yaml.SafeLoader):
    """The safe reader with other rules for plain words."""

    yaml_implicit_resolvers = {
        first: [(tag, rule) for tag, rule in rules if tag.removeprefix(_TAG) not in ("bool", "int", "float", "timestamp")]
        for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver(f"{_TAG}bool", _BOOL, list("tTfF"))
_Loader.add_implicit_resolver(f"{_TAG}int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


class _Dumper(yaml.SafeDumper):
    """The safe writer, which also quotes text that `_Loader` would read as another type."""


_Dumper.add_implicit_resolver(f"{_TAG}float", _FLOAT, list("-+0123456789."))


def write_yaml(value: object) -> str:
    """A value as text that `read_yaml` reads as the same value."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def read_yaml(text: str, name: str = "value") -> object:
    """The value of a YAML text; `name` is its name in messages.

    Errors: yaml.YAMLError with the line, also for a duplicate key in a section.
    """
    loader = _Loader(text)
    loader.name = name
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_keys(node, set())
        return loader.construct_document(node)
    except (ValueError, RecursionError) as error:
        raise yaml.YAMLError(str(error)) from None
    finally:
        loader.dispose()


def _check_keys(node: yaml.Node, known: set[int]) -> None:
    """Refuse duplicate keys in a section: the first value would be lost silently."""
    if id(node) in known:
        return
    known.add(id(node))
    if isinstance(node, yaml.MappingNode):
        marks: dict[str, yaml.Mark] = {}
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in marks:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value} occurs twice in a section, first in line {marks[key.value].line + 1} and again",
                    problem_mark=key.start_mark,
                )
            if isinstance(key, yaml.ScalarNode) and key.value != "<<":
                marks[key.value] = key.start_mark
            _check_keys(value, known)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _check_keys(item, known)
