"""English prose from the documentation strings of installed packages: parsed, never imported.

Sentences and paragraphs are kept; code, doctests, parameter headings, formulas and tables are dropped.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from dist_metaxlm.preparation.workers.processes import WORKERS, available_cores

PACKAGES = (
    "numpy",
    "networkx",
    "matplotlib",
    "sympy",
    "torch",
    "huggingface_hub",
    "pydantic",
    "hypothesis",
    "fsspec",
    "deepspeed",
    "megatron",
    "pip",
    "transformers",
)
PROSE_BYTES = 6_000_000
DOCUMENT_WORDS = 200
MIN_WORDS = 8
MAX_PROCESSES = 8

_SKIPPED_FOLDERS = {"tests", "test", "testing", "_vendor", "__pycache__", "kernels"}
_HEADING = re.compile(
    r"^\s*(?:[*`]{0,2}\w[\w.*, `]{0,60}(?: *\([^)]*\))? ?:(?!:)(?: .{0,80})?"  # parameter: its type; Section:
    r"|[-=~^*#]{3,}|:\w+.*:.*|\.\. .*|@\w+.*)$"
)  # underlines, fields, directives, tags
_ENTRY = re.compile(r"^\s*(?:[-*+•]\s+)?`{0,2}[\w.*]+`{0,2} *(?:\([^)]*\))?:\s+(?=[A-Z])")
_CODE = re.compile(r"^\s*(?:>>>|\.\.\.|In \[|\$ |#|\||```|import |from \w+ import|@)")
_ROLE = re.compile(r":[\w:+-]+:`~?\.?(?:[^`<]*?\s*<)?([^`<>]+)>?`")
_LINK = re.compile(r"`([^`<]+?)\s*<[^`>]+>`_{0,2}|\[([^\]]+)\]\([^)\s]+\)")
_MARKUP = re.compile(r"``?([^`]*)``?_{0,2}|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*|\[\w+\]_")
_SPACE = re.compile(r"\s+")
_NOISE = re.compile(r"[\\{}|=<>_@$^~#\[\]/*]")


def prose_documents(extra: Iterable[bytes] = (), budget: int = PROSE_BYTES) -> list[list[str]]:
    """Documents, each a list of paragraphs, in a fixed order, at most about `budget` bytes; no paragraph twice.

    `extra` holds sources of Python files read before those of the installed PACKAGES. The files are parsed by one
    process per core; the result does not depend on their number.
    """
    seen: set[str] = set()
    documents: list[list[str]] = []
    taken = 0
    with WORKERS.Pool(min(available_cores(), MAX_PROCESSES)) as pool:
        for paragraphs in pool.imap(_module_list, _sources(extra), chunksize=16):
            new = [paragraph for paragraph in dict.fromkeys(paragraphs) if paragraph.casefold() not in seen]
            seen.update(paragraph.casefold() for paragraph in new)
            taken += sum(len(paragraph.encode()) + 1 for paragraph in new)
            documents += _documents(new)
            if taken >= budget:
                break
    return documents


def _documents(paragraphs: list[str]) -> Iterator[list[str]]:
    """Runs of paragraphs of at least DOCUMENT_WORDS words (the last one: the rest)."""
    document: list[str] = []
    for paragraph in paragraphs:
        document.append(paragraph)
        if sum(text.count(" ") + 1 for text in document) >= DOCUMENT_WORDS:
            yield document
            document = []
    if document:
        yield document


def _module_list(source: bytes | str) -> list[str]:
    if isinstance(source, str):
        source = Path(source).read_bytes()
    return list(module_paragraphs(source))


def _sources(extra: Iterable[bytes]) -> Iterator[bytes | str]:
    yield from extra
    site = Path(sysconfig.get_paths()["purelib"])
    for package in PACKAGES:
        for path in _python_files(site / package):
            yield str(path)
    for path in sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        yield str(path)


def _python_files(folder: Path) -> Iterator[Path]:
    if not folder.is_dir():
        return
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in _SKIPPED_FOLDERS:
            yield from _python_files(path)
        elif path.suffix == ".py" and path.is_file():
            yield path


def module_paragraphs(source: bytes) -> Iterator[str]:
    """Paragraphs of prose in the documentation strings of one Python file, in the order of the file."""
    if source.count(b'"""') < 2:
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError):
        return
    for text in _docstrings(tree):
        yield from paragraphs(text)


def _docstrings(node: ast.AST) -> Iterator[str]:
    body = getattr(node, "body", None)
    if not isinstance(body, list):
        return
    if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
        text = body[0].value.value
        if isinstance(text, str):
            yield inspect.cleandoc(text)
    for child in body:
        if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.If)):
            yield from _docstrings(child)


def paragraphs(text: str) -> Iterator[str]:
    """The paragraphs of prose of one documentation string."""
    code_below = -1
    for block in _blocks(text.splitlines()):
        indent = _indent(block[0])
        if 0 <= code_below < indent:
            continue
        code_below = indent if block[-1].rstrip().endswith("::") else -1
        if any(_CODE.match(line) for line in block):
            continue
        paragraph = plain(" ".join(block))
        if is_prose(paragraph):
            yield paragraph


def _blocks(lines: list[str]) -> Iterator[list[str]]:
    """Runs of lines that belong together: cut at blank lines, headings, list items and changes of indentation."""
    block: list[str] = []
    for line in lines:
        indent = _indent(line)
        entry = _ENTRY.match(line)
        left_out = not line.strip() or _is_heading(line)
        if block and (left_out or entry or indent != _indent(block[-1])):
            yield block
            block = []
        if not left_out:
            block.append(_ENTRY.sub(" " * indent, line) if entry else line)
    if block:
        yield block


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _is_heading(line: str) -> bool:
    return _HEADING.match(line) is not None and not line.rstrip().endswith((".", "::"))


def plain(text: str) -> str:
    """Text without markup of reStructuredText and Markdown, with single white space."""
    text = _ROLE.sub(lambda match: match[1].split(".")[-1], text)
    text = _LINK.sub(lambda match: match[1] or match[2], text)
    text = _MARKUP.sub(lambda match: match[1] or match[2] or match[3] or "", text)
    return _SPACE.sub(" ", text).strip(" -*+•")


def is_prose(text: str) -> bool:
    """Whether a paragraph reads as sentences: long enough, begins and ends like a sentence, few symbols typical of code."""
    if text.count(" ") + 1 < MIN_WORDS or not text[0].isupper() or text[-1] not in ".!?":
        return False
    letters = sum(character.isalpha() or character == " " for character in text)
    return letters >= 0.9 * len(text) and len(_NOISE.findall(text)) <= 0.015 * len(text)


if __name__ == "__main__":
    for document in prose_documents():
        sys.stdout.write("\n".join(document) + "\n\n")
