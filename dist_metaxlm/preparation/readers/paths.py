"""The files that paths, globs and fsspec URLs of a recipe name.

Names as people have them contain brackets (`corpus [v2]/part*.txt`). So every component of a pattern is first read as a
name, then as a name with literal brackets in which `*` and `?` are wildcards, and only then as a glob (docs/data.md).
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers.files import Place, name_of, of_the_web, sentence_of, shown
from dist_metaxlm.preparation.readers.problems import REFUSE, Empty, Report, WrongRecipe

_MARKER = re.compile(r"_(success|metadata|common_metadata|(started|committed|vacuum)_\d+)(\.crc)?")
"""Names, in lower case, of the files that Spark, Hadoop and Databricks write next to the shards of a job."""


def expand(patterns: Iterable[str], field: str, report: Report = REFUSE, keep_empty: bool = False) -> list[Place]:
    """The files of paths, globs and URLs, each once, sorted within a glob; `~` begins the user's home folder.

    Names of existing folders and files are literal, including brackets; only other components are globs. With several
    files, those that Spark and others write next to their shards (`_SUCCESS`) are skipped.

    Errors, to `report`: UserError naming `field` (a recipe field) and the pattern that names no file, or an empty file
    unless `keep_empty`.
    """
    places: dict[Place, None] = {}
    for pattern in patterns:
        try:
            files = _expand_url(pattern, field) if "://" in pattern else _expand_local(pattern)
            if not files:
                raise _names_nothing(pattern, field)
        except UserError as error:
            report.file(error)
            continue
        shards = [(place, size) for place, size in files if not _MARKER.fullmatch(name_of(place).name)]
        for place, size in shards or files:
            if size == 0 and not keep_empty:
                report.file(Empty(f"{field}: {shown(place)} is empty; put text into it or take it out of the recipe"))
            else:
                places[place] = None
    return list(places)


def _names_nothing(pattern: str, field: str) -> UserError:
    if "://" not in pattern and Path(pattern).is_dir():
        return WrongRecipe(f"{field}: {shown(pattern)!r} is a folder; name the files in it, such as {shown(pattern)}/*.txt")
    return WrongRecipe(
        f"{field}: {shown(pattern)!r} names no file; correct the path or glob (it is relative to the working directory)"
    )


def matching(pattern: str, exists: Callable[[str], bool], find: Callable[[str], list[str]]) -> list[str]:
    """Sorted paths that a pattern names, component by component; from `**` on, the rest is one glob.

    `exists` says whether a path exists, `find` lists the paths of a glob (as glob.glob, recursive).
    """
    heads, parts = [""], pattern.split("/")
    for number, part in enumerate(parts):
        last = part == "**"
        rest = "/".join(parts[number:]) if last else part
        heads = [path for head in heads for path in _under(head, rest, exists, find)]
        if last or not heads:
            break
        if number < len(parts) - 1:
            heads = [f"{head}/" for head in heads]
    return sorted(dict.fromkeys(heads))


def _under(head: str, part: str, exists: Callable[[str], bool], find: Callable[[str], list[str]]) -> list[str]:
    """Paths of a component, or of the components after `**`, below `head`."""
    if not glob.has_magic(part) or exists(head + part):
        return [head + part]
    literal_brackets = part.replace("[", "[[]")
    for reading in dict.fromkeys((literal_brackets, part)):
        if paths := find(glob.escape(head) + reading):
            return paths
    return []


def _expand_local(pattern: str) -> list[tuple[Place, int | None]]:
    if pattern.startswith("~") and not os.path.lexists(pattern):
        pattern = os.path.expanduser(pattern)
    names = matching(pattern, os.path.lexists, lambda name: glob.glob(name, recursive=True))
    return [(path, path.stat().st_size) for path in map(Path, names) if path.is_file()]


def _expand_url(pattern: str, field: str) -> list[tuple[Place, int | None]]:
    import fsspec  # local import: most corpora are local files, and the import takes a twentieth of a second

    try:
        system, path = fsspec.core.url_to_fs(pattern)
        if glob.has_magic(re.sub(r"\?.*", "", path) if of_the_web(path) else path):
            # Each question costs a request: only names with brackets, which may be literal, are looked at one by one.
            names = matching(path, system.exists, system.glob) if "[" in path else sorted(system.glob(path))
        else:
            names = [path] if system.exists(path) else []
        files = [name for name in names if system.isfile(name)]
        return [
            (_spelled(pattern, name) if "::" in pattern else system.unstrip_protocol(name), system.size(name))
            for name in files
        ]
    except Exception as error:  # every protocol has a package of its own, with its own classes of errors
        raise WrongRecipe(
            f"{field}: {shown(pattern)!r} cannot be read ({sentence_of(error)}); correct the URL, or install the "
            "package that its protocol needs"
        ) from None


def _spelled(pattern: str, name: str) -> str:
    """The chained URL of one of the files that match a chain with a glob."""
    parts = pattern.split("::")
    place = next(number for number, part in enumerate(parts) if "://" in part)
    parts[place] = name if "://" in name else f"{parts[place].split('://')[0]}://{name}"
    return "::".join(parts)
