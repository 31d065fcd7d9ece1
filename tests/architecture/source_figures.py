"""Figures of single files: lengths, docstrings, annotations, comments, widths (no figure needs an import of the code)."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from dataclasses import dataclass, field
from pathlib import Path

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
BRANCHES = (
    ast.If,
    ast.For,
    ast.AsyncFor,
    ast.While,
    ast.IfExp,
    ast.ExceptHandler,
    ast.Assert,
    ast.comprehension,
    ast.match_case,
)
SHAPE = re.compile(r"\[[A-Za-z0-9_*+/ -]+(?:, *[A-Za-z0-9_.*+/ -]+)*\]|\bscalar\b|\bshape\b", re.IGNORECASE)
RAISES = re.compile(r"\braises?\b|\w+Error\b|\w+Exception\b|\brefuse[sd]?\b|\bfails?\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Function:
    """One function or method, nested ones too."""

    name: str
    lines: int
    """From `def` to the last line."""
    parameters: int
    """Without `self` and `cls`; `*args` and `**kwargs` count one each."""
    branches: int
    public: bool
    """A name without underscore, at the top of a module or of a public class."""
    documented: bool
    annotated: bool
    """A return annotation, or an annotation of every parameter of a function that has parameters."""
    has_any: bool
    tensor: bool
    """A tensor is in its signature."""
    gives_shape: bool
    raises: bool
    says_raises: bool


@dataclass(kw_only=True)
class SourceFile:
    """One file and its functions."""

    path: Path
    lines: int
    widest: int
    comment_lines: int
    documented: bool
    classes: list[bool] = field(default_factory=list)
    """Of every public class, whether it has a docstring."""
    functions: list[Function] = field(default_factory=list)


def measure_file(path: Path) -> tuple[SourceFile, ast.Module]:
    """Figures of one file, and its syntax tree.

    Raises:
        SyntaxError: the file is not Python.
    """
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text, filename=str(path))
    lines = text.splitlines()
    source = SourceFile(
        path=path,
        lines=len(lines),
        widest=max((len(line) for line in lines), default=0),
        comment_lines=_comment_lines(text),
        documented=ast.get_docstring(tree) is not None,
    )
    _collect(tree, source, public=True)
    return source, tree


def _comment_lines(text: str) -> int:
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return sum(1 for token in tokens if token.type == tokenize.COMMENT)


def _collect(parent: ast.AST, source: SourceFile, public: bool) -> None:
    for node in ast.iter_child_nodes(parent):
        if isinstance(node, FunctionNode):
            source.functions.append(_function(node, public))
            _collect(node, source, public=False)
        elif isinstance(node, ast.ClassDef):
            visible = public and not node.name.startswith("_")
            if visible:
                source.classes.append(ast.get_docstring(node) is not None)
            _collect(node, source, public=visible)
        else:
            _collect(node, source, public)


def _function(node: FunctionNode, public: bool) -> Function:
    arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    arguments += [argument for argument in (node.args.vararg, node.args.kwarg) if argument is not None]
    own = [argument for number, argument in enumerate(arguments) if number or argument.arg not in ("self", "cls")]
    annotations = [argument.annotation for argument in own] + [node.returns]
    signature = " ".join(ast.unparse(annotation) for annotation in annotations if annotation is not None)
    docstring = ast.get_docstring(node) or ""
    return Function(
        name=node.name,
        lines=(node.end_lineno or node.lineno) - node.lineno + 1,
        parameters=len(own),
        branches=sum(isinstance(inner, BRANCHES) for inner in ast.walk(node)),
        public=public and not node.name.startswith("_"),
        documented=bool(docstring),
        annotated=node.returns is not None or (bool(own) and all(argument.annotation is not None for argument in own)),
        has_any=re.search(r"\bAny\b", signature) is not None,
        tensor="Tensor" in signature,
        gives_shape=SHAPE.search(docstring) is not None,
        raises=any(isinstance(inner, ast.Raise) and inner.exc is not None for inner in ast.walk(node)),
        says_raises=RAISES.search(docstring) is not None,
    )
