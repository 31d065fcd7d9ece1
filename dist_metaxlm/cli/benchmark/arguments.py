"""Arguments shared by several benchmarks."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TypeAlias

from dist_metaxlm.command_line import Parser

Commands: TypeAlias = "argparse._SubParsersAction[Parser]"
"""Where a benchmark registers its parser."""
Outcome = tuple[Mapping[str, object], str]
"""Figures of a benchmark, JSON-ready, and the lines to print."""


def add_recipe(parser: argparse.ArgumentParser) -> None:
    """`--recipe` and overrides of its fields."""
    parser.add_argument("--recipe", default="quickstart", help="a shipped recipe or a YAML file (default: quickstart)")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="any field of the recipe")


def add_output(parser: argparse.ArgumentParser) -> None:
    """`--output` and `--json`."""
    parser.add_argument("--output", help="also write the figures, with hardware and versions, to this JSON file")
    parser.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
