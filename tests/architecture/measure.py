"""Measure how a Python tree is built: sizes, imports, documentation, types, words.

    python tests/architecture/measure.py dist_metaxlm kernels launch
    python tests/architecture/measure.py dist_metaxlm kernels launch --output docs/results/2026-12-01-architecture.md
    python tests/architecture/measure.py PATH/TO/torchtitan/torchtitan --tests PATH/TO/torchtitan/tests

Prints a Markdown table; `--output FILE.md` writes it there with FILE.json beside it. Nothing of the tree is imported or
run. `--compare` puts the columns of `anchors.json` (other trainers, measured at the commits that it names) next to it.
"""

from __future__ import annotations

import argparse
import ast
import json
import math
import platform
import re
import statistics
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import banned_words
import import_graph
import picture
from source_figures import Function, SourceFile, measure_file

ROWS = {
    "files": "files",
    "lines": "lines",
    "file_lines": "lines a file: median / mean / p90 / max",
    "functions": "functions",
    "function_lines": "lines a function: median / mean / p90 / p99 / max",
    "functions_over_40": "functions over 40 lines",
    "functions_over_60": "functions over 60 lines",
    "parameters": "parameters (without `kernels/`): p90 / p99 / max",
    "branches": "branches a function: p99 / max",
    "imports": "modules imported by a file: mean / p90 / max",
    "most_imports": "file with most imports",
    "cycles": "import cycles at module level (files in them)",
    "lazy_cycles": "import cycles with lazy imports (files of the largest)",
    "upward": "arrows between packages that point upwards",
    "module_docstrings": "modules with docstring, %",
    "function_docstrings": "public functions with docstring, %",
    "class_docstrings": "public classes with docstring, %",
    "shapes": "public functions on tensors whose docstring gives a shape, % (heuristic)",
    "raises": "public functions that raise and say so, % (heuristic)",
    "annotated": "annotated functions, %",
    "any": "functions with `Any` in the signature, %",
    "comments": "comment lines in 100 lines",
    "widest": "widest line, characters",
    "fullest_folder": "modules in the fullest folder / in the median folder",
    "test_ratio": "test lines a code line",
    "banned": "banned words",
}


def measure(paths: Sequence[Path], tests: Path | None, words: Sequence[Path] = ()) -> dict[str, Any]:
    """The figures of the trees below `paths`, by the keys of `ROWS`; `words` are more files to search for banned words."""
    files = files_below(paths)
    measured = {file: measure_file(file) for file in files}
    sources = [source for source, _ in measured.values()]
    graph = import_graph.build(roots_of(paths), {file: tree for file, (_, tree) in measured.items()})
    functions = [function for source in sources for function in source.functions]
    offenders = {str(path): banned_words.count([path]) for path in (*files, *words)}
    return {
        **_sizes(sources, functions),
        **_imports(graph, layers_near(paths[0])),
        **_documentation(sources, functions),
        "test_ratio": round(_lines_below(tests) / sum(s.lines for s in sources), 2) if tests else None,
        "long_functions": [f"{s.path}:{f.name} ({f.lines})" for s in sources for f in s.functions if f.lines > 60],
        "banned": sum(offenders.values()),
        "banned_by_file": {path: number for path, number in offenders.items() if number},
    }


def files_below(paths: Sequence[Path]) -> list[Path]:
    """Every Python file that is not empty."""
    return sorted({file for path in paths for file in path.rglob("*.py") if file.read_text(encoding="utf-8").strip()})


def roots_of(paths: Sequence[Path]) -> dict[str, Path]:
    """Dotted prefix -> folder. A folder that setuptools installs under another name has that name (package-dir)."""
    project = paths[0].resolve().parent / "pyproject.toml"
    names: dict[str, str] = {}
    if project.is_file():
        settings = tomllib.loads(project.read_text(encoding="utf-8")).get("tool", {}).get("setuptools", {})
        names = {folder: name for name, folder in settings.get("package-dir", {}).items()}
    return {names.get(path.name, path.name): path for path in paths}


def layers_near(path: Path) -> dict[str, int]:
    """LAYERS of `tests/test_architecture.py` beside the tree; {} where it declares none."""
    test = path.resolve().parent / "tests" / "test_architecture.py"
    if not test.is_file():
        return {}
    for node in ast.parse(test.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "LAYERS":
            return dict(ast.literal_eval(node.value))
    return {}


def _sizes(sources: list[SourceFile], functions: list[Function]) -> dict[str, Any]:
    lines = [source.lines for source in sources]
    lengths = [function.lines for function in functions]
    parameters = [function.parameters for s in sources if "kernels" not in s.path.parts for function in s.functions]
    branches = [function.branches for function in functions]
    folders = Counter(source.path.parent for source in sources)
    return {
        "files": len(sources),
        "lines": sum(lines),
        "file_lines": [_median(lines), round(statistics.mean(lines)), _percentile(lines, 90), max(lines)],
        "functions": len(functions),
        "function_lines": [
            _median(lengths),
            round(statistics.mean(lengths), 1),
            _percentile(lengths, 90),
            _percentile(lengths, 99),
            max(lengths),
        ],
        "functions_over_40": sum(length > 40 for length in lengths),
        "functions_over_60": sum(length > 60 for length in lengths),
        "parameters": [_percentile(parameters, 90), _percentile(parameters, 99), max(parameters)],
        "branches": [_percentile(branches, 99), max(branches)],
        "comments": round(100 * sum(source.comment_lines for source in sources) / sum(lines), 1),
        "widest": max(source.widest for source in sources),
        "fullest_folder": [max(folders.values()), _median(list(folders.values()))],
    }


def _imports(graph: import_graph.ImportGraph, layers: dict[str, int]) -> dict[str, Any]:
    counts = list(graph.imported.values())
    eager = import_graph.cycles(graph.files, graph.eager)
    every = import_graph.cycles(graph.files, graph.all)
    arrows = import_graph.package_arrows(graph, depth=2)
    if layers:
        upward = import_graph.upward_by_layers(arrows, layers)
    else:
        upward = import_graph.upward_by_order(arrows)
    most = max(graph.imported, key=lambda name: (graph.imported[name], name))
    return {
        "imports": [round(statistics.mean(counts), 1), _percentile(counts, 90), max(counts)],
        "most_imports": most,
        "cycles": [len(eager), sum(len(group) for group in eager)],
        "lazy_cycles": [len(every), max((len(group) for group in every), default=0)],
        "upward": len(upward),
        "upward_arrows": [" -> ".join(ends) for ends in upward],
        "cycle_members": {"module level": eager, "with lazy imports": every},
    }


def _documentation(sources: list[SourceFile], functions: list[Function]) -> dict[str, Any]:
    public = [function for function in functions if function.public]
    return {
        "module_docstrings": _share([source.documented for source in sources]),
        "function_docstrings": _share([function.documented for function in public]),
        "class_docstrings": _share([documented for source in sources for documented in source.classes]),
        "shapes": _share([function.gives_shape for function in public if function.tensor]),
        "raises": _share([function.says_raises for function in public if function.raises]),
        "annotated": _share([function.annotated for function in functions]),
        "any": _share([function.has_any for function in functions]),
    }


def _median(values: list[int]) -> int:
    return math.floor(statistics.median(values))


def _percentile(values: list[int], percent: int) -> int:
    """The smallest value that `percent` of the values do not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(len(values) * percent / 100) - 1)]


def _share(answers: list[bool]) -> int | None:
    return round(100 * sum(answers) / len(answers)) if answers else None


def _lines_below(folder: Path) -> int:
    return sum(len(path.read_text(encoding="utf-8").splitlines()) for path in folder.rglob("*.py"))


def table(columns: dict[str, dict[str, Any]]) -> str:
    """A Markdown table with a row a figure and a column a tree."""
    lines = ["| | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for key, label in ROWS.items():
        lines.append(f"| {label} | " + " | ".join(_cell(key, column.get(key)) for column in columns.values()) + " |")
    return "\n".join(lines)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, list):
        if key in ("cycles", "lazy_cycles"):
            return f"{value[0]} ({value[1]})"
        return " / ".join(str(part) for part in value)
    return f"`{value}`" if key == "most_imports" else f"{value:,}" if isinstance(value, int) else str(value)


def environment() -> dict[str, str]:
    """Commit, date and Python; the figures depend on nothing else."""
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return {"commit": commit.stdout.strip(), "date": date.today().isoformat(), "python": platform.python_version()}


def report(columns: dict[str, dict[str, Any]], command: str, anchors: dict[str, Any]) -> str:
    """The page of results."""
    facts = environment()
    lines = [
        "# Architecture",
        "",
        f"`{command}`, commit {facts['commit']}, {facts['date']}, Python {facts['python']}.",
        "",
        table(columns),
    ]
    if anchors:
        commits = ", ".join(f"{name} {commit}" for name, commit in anchors["commits"].items())
        lines += ["", f"Other columns: {commits}; {anchors['note']}"]
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paths", nargs="+", type=Path, help="folders of a tree; the first one names the column")
    parser.add_argument("--tests", type=Path, help="folder of its tests (default: tests/ beside the first path)")
    parser.add_argument("--output", type=Path, help="write the table to this .md file, and all figures to .json beside it")
    parser.add_argument("--compare", action="store_true", help="add the columns of anchors.json")
    parser.add_argument("--picture", type=Path, help="draw packages and layers into this SVG file")
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    options = parse()
    for path in options.paths:
        if not any(path.rglob("*.py")):
            print(f"error: {path} has no Python files; give folders of a Python tree", file=sys.stderr)
            return 2
    tests = options.tests or options.paths[0].resolve().parent / "tests"
    words = sorted(options.paths[0].resolve().parent.glob("*.md"))
    words += sorted(
        path for path in (options.paths[0].resolve().parent / "docs").rglob("*.md") if "results" not in path.parts
    )
    columns = {options.paths[0].name: measure(options.paths, tests if tests.is_dir() else None, words)}
    anchors: dict[str, Any] = {}
    if options.compare:
        anchors = json.loads((Path(__file__).parent / "anchors.json").read_text(encoding="utf-8"))
        columns |= anchors["columns"]
    command = "python " + " ".join(re.sub(r"^.*(?=tests/architecture/)", "", word) for word in sys.argv)
    if options.picture:
        picture.draw(import_graph_of(options.paths), layers_near(options.paths[0]), options.picture)
    if options.output:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(report(columns, command, anchors), encoding="utf-8")
        facts = {"command": command, "environment": environment(), "columns": columns}
        options.output.with_suffix(".json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    print(table(columns))
    return 0


def import_graph_of(paths: Sequence[Path]) -> import_graph.ImportGraph:
    """The import graph of the trees below `paths`."""
    files = files_below(paths)
    return import_graph.build(roots_of(paths), {file: ast.parse(file.read_text(encoding="utf-8")) for file in files})


if __name__ == "__main__":
    raise SystemExit(main())
