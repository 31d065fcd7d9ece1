"""The graph of imports between the modules of a tree, its cycles, and the arrows between packages that point upwards."""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

Edges = Mapping[str, set[str]]
MAIN = "__main__"


@dataclass(kw_only=True)
class ImportGraph:
    """Modules by name and what each imports from the same tree."""

    files: dict[str, Path]
    eager: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Imports at module level; `if TYPE_CHECKING:` is none."""
    lazy: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """Imports inside functions, and those for type checkers only."""
    imported: dict[str, int] = field(default_factory=dict)
    """Of every module, how many different modules it imports, other distributions' included."""
    packages: set[str] = field(default_factory=set)
    """Top-level packages, as against folders of scripts."""

    @property
    def all(self) -> dict[str, set[str]]:
        """Eager and lazy imports together."""
        return {name: self.eager[name] | self.lazy[name] for name in self.files}


def build(roots: Mapping[str, Path], trees: Mapping[Path, ast.Module]) -> ImportGraph:
    """The graph of the modules below `roots` (dotted prefix -> folder)."""
    files = {
        _module_name(prefix, root, path): path for prefix, root in roots.items() for path in trees if root in path.parents
    }
    packages = {prefix.split(".")[0] for prefix, root in roots.items() if (root / "__init__.py").is_file()}
    graph = ImportGraph(files=files, packages=packages)
    for name, path in files.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        targets = list(_imports(trees[path], package))
        graph.imported[name] = len({module for module, _, _ in targets})
        for module, attributes, lazy in targets:
            edges = graph.lazy if lazy else graph.eager
            edges[name] |= _known(files, module, attributes) - {name}
    return graph


def cycles(files: Mapping[str, Path], edges: Edges) -> list[list[str]]:
    """Groups of two or more modules that import each other (strongly connected components), largest first."""
    order, seen = [], set[str]()
    for start in files:
        _postorder(start, edges, seen, order)
    reverse: dict[str, set[str]] = defaultdict(set)
    for name in files:
        for target in edges.get(name, ()):
            reverse[target].add(name)
    groups, taken = [], set[str]()
    for start in reversed(order):
        group: list[str] = []
        _postorder(start, reverse, taken, group)
        if len(group) > 1:
            groups.append(sorted(group))
    return sorted(groups, key=lambda group: (-len(group), group))


def package_arrows(graph: ImportGraph, depth: int) -> Counter[tuple[str, str]]:
    """How many imports lead from one package to another; a package is the first `depth` parts of a module's name.

    Trees that hold no package (folders of scripts) have no arrows.
    """
    arrows: Counter[tuple[str, str]] = Counter()
    for name, targets in graph.all.items():
        for target in targets:
            ends = (package_of(name, depth), package_of(target, depth))
            if ends[0] != ends[1] and "" not in ends and name.split(".")[0] in graph.packages:
                arrows[ends] += 1
    return arrows


def package_of(module: str, depth: int) -> str:
    """`a.b.c` -> `a.b` at depth 2; "" for the package that holds all others."""
    parts = module.split(".")
    return ".".join(parts[:depth]) if len(parts) >= depth else ""


def upward_by_layers(arrows: Counter[tuple[str, str]], layers: Mapping[str, int]) -> list[tuple[str, str]]:
    """Arrows that do not lead to a lower layer. `layers` has the last part of each package's name."""

    def layer(package: str) -> int:
        return layers.get(package.rpartition(".")[2], -1)

    return sorted(ends for ends in arrows if layer(ends[0]) <= layer(ends[1]))


def upward_by_order(arrows: Counter[tuple[str, str]]) -> list[tuple[str, str]]:
    """Arrows against the best order that a greedy search finds (Eades, Lin and Smyth 1993); [] where there is no cycle.

    For trees that declare no layers. The order is not always the best one, so the number is an upper bound.
    """
    left = {end for ends in arrows for end in ends}
    head: list[str] = []
    tail: list[str] = []
    while left:
        leaving, entering = Counter[str](), Counter[str]()
        for source, target in arrows:
            if source in left and target in left:
                leaving[source] += 1
                entering[target] += 1
        sinks = sorted(name for name in left if not leaving[name])
        sources = sorted(name for name in left if not entering[name])
        name = (sinks or sources or sorted(left, key=lambda n: (entering[n] - leaving[n], n)))[0]
        (tail if sinks else head).append(name)
        left.discard(name)
    place = {name: number for number, name in enumerate([*head, *reversed(tail)])}
    return sorted(ends for ends in arrows if place[ends[0]] > place[ends[1]])


def _module_name(prefix: str, root: Path, path: Path) -> str:
    parts = [prefix, *path.relative_to(root).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _postorder(start: str, edges: Edges, seen: set[str], order: list[str]) -> None:
    """Append to `order` all that is reached from `start` and not in `seen`, the farthest first; without recursion."""
    if start in seen:
        return
    seen.add(start)
    stack = [(start, iter(sorted(edges.get(start, ()))))]
    while stack:
        name, targets = stack[-1]
        target = next((target for target in targets if target not in seen), None)
        if target is None:
            order.append(name)
            stack.pop()
        else:
            seen.add(target)
            stack.append((target, iter(sorted(edges.get(target, ())))))


def _imports(tree: ast.Module, package: str) -> list[tuple[str, list[str], bool]]:
    """Every import as (module, names taken from it, lazy)."""
    result: list[tuple[str, list[str], bool]] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                result.extend((alias.name, [], lazy) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                result.append((_absolute(child, package), [alias.name for alias in child.names], lazy))
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                types_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
                visit(child, lazy or function or types_only)

    visit(tree, lazy=False)
    return result


def _absolute(node: ast.ImportFrom, package: str) -> str:
    if not node.level:
        return node.module or ""
    parts = package.split(".")
    base = ".".join(parts[: len(parts) - node.level + 1])
    return f"{base}.{node.module}" if node.module else base


def _known(files: Mapping[str, Path], module: str, attributes: list[str]) -> set[str]:
    """The modules of the tree that an import names: `from a import b` is `a.b` where that is a module, else `a`."""
    inner = {f"{module}.{name}" for name in attributes if f"{module}.{name}" in files}
    if inner and len(inner) == len(attributes):
        return inner
    return inner | ({module} if module in files else set())
