"""Files of a task by language, from patterns such as `udpos/train-{lang}.tsv` (see tasks/spec.py)."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.files.question_files import question_languages
from dist_metaxlm.evaluation.tasks.files import labelled_languages
from dist_metaxlm.evaluation.tasks.languages import canonical, without_script
from dist_metaxlm.preparation.readers.files import PACKED

PLACE = "{lang}"
Place = TypeVar("Place")


def files_by_language(root: Path, patterns: list[str], what: str) -> dict[str, tuple[Path, str]]:
    """Canonical language -> (file, code as spelled in its name), sorted, from the first pattern that names any file.

    Errors: UserError as `all_files_by_language`, or if a language has several files.
    """
    files = {}
    for language, (paths, code) in all_files_by_language(root, patterns, what).items():
        if len(paths) > 1:
            raise _two_files(what, paths, language)
        files[language] = (paths[0], code)
    return files


def all_files_by_language(root: Path, patterns: list[str], what: str) -> dict[str, tuple[list[Path], str]]:
    """Canonical language -> (files, code as spelled in their names), sorted, from the first pattern that names any file.

    A language has several files only if they differ where the pattern has `*`, such as several treebanks; they are sorted
    by name, the order in which XTREME joins treebanks. A pattern without `{lang}` names one file for all its languages:
    those in the column `language` of labelled pairs, or in the identities of questions.

    Errors: UserError if no pattern matches, a name has an unknown language code, or a language has two files that are one
    (two codes of it, or compressed and not).
    """
    for pattern in patterns:
        files: dict[str, tuple[list[Path], str]] = {}
        for path, code in _matches(root, pattern):
            language = canonical(code, f"{what}: {path}")
            paths, first = files.setdefault(language, ([], code))
            if paths and ("*" not in pattern or code != first or _unpacked(path) in map(_unpacked, paths)):
                raise _two_files(what, [*paths, path], language)
            paths.append(path)
            paths.sort(key=lambda path: path.name)
        files = _without_scripts(files)
        if PLACE not in pattern:
            for path in _packed(root, pattern)[:1]:
                named = question_languages(path) if _unpacked(path).endswith(".json") else labelled_languages(path)
                files = {language: ([path], language) for language in named}
        if files:
            return dict(sorted(files.items()))
    raise nothing_there(root, patterns, what)


def _two_files(what: str, paths: list[Path], language: str) -> UserError:
    return UserError(f"{what}: {paths[0]} and {paths[-1]} are both of language {language!r}; keep one")


def _unpacked(path: Path) -> str:
    """The path without the suffix of a compressed file."""
    return next((str(path)[: -len(suffix)] for suffix in PACKED if path.name.endswith(suffix)), str(path))


def nothing_there(root: Path, patterns: list[str], what: str) -> UserError:
    """The error for a task without any file."""
    if not root.is_dir():
        return UserError(f"{what}: there is no folder {root}; name the one that has the task's files with --task_data")
    return UserError(
        f"{what}: no file {' or '.join(str(root / pattern) for pattern in patterns) or 'is named'}; give the "
        "folder of the task's files with --task_data, or say in --tasks_file where they are"
    )


def _without_scripts(files: Mapping[str, Place]) -> dict[str, Place]:
    """Shorten `ja-Jpan` to `ja` if the language has no file in another script."""
    scripts = Counter(map(without_script, files))
    return {plain if scripts[plain := without_script(language)] == 1 else language: of for language, of in files.items()}


def pivot_files(root: Path, patterns: list[str], languages: Iterable[str], what: str) -> dict[str, Path]:
    """Language -> file with the English sentences: one of its own, or one that serves all `languages`.

    Errors: UserError as `files_by_language`.
    """
    for pattern in patterns:
        if PLACE not in pattern and (shared := _packed(root, pattern)):
            return dict.fromkeys(languages, shared[0])
        if _matches(root, pattern):
            break
    by_language = [pattern for pattern in patterns if PLACE in pattern]
    return {language: path for language, (path, _) in files_by_language(root, by_language or patterns, what).items()}


def files_of_all_patterns(root: Path, patterns: list[str], what: str) -> dict[str, tuple[Path, str]]:
    """Canonical language -> (file, pattern that names it), sorted; if two patterns match a language, the first wins.

    Errors: UserError if a name has an unknown language code, or two files of one pattern have the same language.
    """
    files: dict[str, tuple[Path, str]] = {}
    for pattern in patterns:
        for path, code in _matches(root, pattern):
            language = canonical(code, f"{what}: {path}")
            if files.setdefault(language, (path, pattern)) != (path, pattern) and files[language][1] == pattern:
                raise UserError(f"{what}: {files[language][0]} and {path} are both of language {language!r}; keep one")
    return dict(sorted(files.items()))


def files_of(root: Path, patterns: list[str], language: str, what: str) -> list[Path]:
    """The files of one language, from the first pattern that matches; a pattern without `{lang}` serves any language.

    Errors: UserError as `all_files_by_language`; of a language without files it names the languages that have some.
    """
    others: set[str] = set()
    for pattern in patterns:
        if PLACE not in pattern:
            for path in _packed(root, pattern):
                return [path]
            continue
        matches = _matches(root, pattern)
        if mine := [path for path, code in matches if _same(code, language)]:
            if len(mine) > 1 and ("*" not in pattern or len(set(map(_unpacked, mine))) < len(mine)):
                raise _two_files(what, mine, language)
            return sorted(mine, key=lambda path: path.name)
        others |= {code for _, code in matches}
    missing = nothing_there(root, [pattern.replace(PLACE, language) for pattern in patterns], what)
    if not others:
        raise missing
    raise UserError(
        f"{what}: no file of {language!r} to learn from, only of {', '.join(sorted(others))} (such as "
        f"{root / patterns[0].replace(PLACE, min(others))}); name one of them with --train_language, or add the file"
    )


def file_of(root: Path, patterns: list[str], language: str, what: str) -> Path:
    """The only file of one language. Errors: UserError as `files_of`, or if it has several."""
    paths = files_of(root, patterns, language, what)
    if len(paths) > 1:
        raise _two_files(what, paths, language)
    return paths[0]


def _same(code: str, language: str) -> bool:
    try:
        return language in (canonical(code, ""), without_script(canonical(code, "")))
    except UserError:
        return False


def _matches(root: Path, pattern: str) -> list[tuple[Path, str]]:
    """(file, code) of all files of a pattern; the code is the match of the first `{lang}`, the others must equal it."""
    if PLACE not in pattern:
        return []
    head, *rest = (re.escape(part).replace(r"\*", "[^/]*") for part in pattern.split(PLACE))
    expression = head + "(?P<lang>[A-Za-z]+(?:-[A-Za-z]+|_[A-Z][a-z]{3})?)" + "(?P=lang)".join(rest)
    # Only * and {lang} are wildcards of a pattern; brackets and ? are escaped for glob.
    matcher = re.compile(expression + f"({'|'.join(map(re.escape, PACKED))})?")
    codes = {}
    for path in sorted(
        path
        for pathname in {pattern, *(pattern + suffix for suffix in PACKED)}
        for path in root.glob(re.sub(r"[\[?]", r"[\g<0>]", pathname).replace(PLACE, "*"))
    ):
        match = matcher.fullmatch(path.relative_to(root).as_posix())
        if match and path.is_file():
            codes[path] = match["lang"]
    return list(codes.items())


def _packed(root: Path, name: str) -> list[Path]:
    return [path for suffix in ("", *PACKED) if (path := root / f"{name}{suffix}").is_file()]
