"""Opening the user's files: paths, globs and fsspec URLs, compressed or not, line by line in bounded memory.

A place is a local Path or a URL. Every error inside a file is reported in one sentence with the file and the position.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers.problems import REFUSE, Empty, Report, WrongRecipe

Place = Path | str

PACKED = (".gz", ".xz", ".zst", ".bz2")
WHOLE_FILE_BYTES = 256_000_000
"""Largest file of a format that is read at once (message catalogues, evaluation JSON)."""
UNBOUNDED = 1 << 30
"""Line limit, in characters, for text that has already passed the recipe's limit."""
_CLIENTS = ("httpx", "httpx2", "huggingface_hub", "aiohttp", "requests", "urllib3", "botocore", "google")
"""Packages behind fsspec's protocols whose network errors are no OSError."""
_MARKER = re.compile(r"_(success|metadata|common_metadata|(started|committed|vacuum)_\d+)(\.crc)?")
"""Names, in lower case, of the files that Spark, Hadoop and Databricks write next to the shards of a job."""


def shown(place: Place) -> str:
    """The place for errors and manifests: without user name and password, undecodable bytes as `\\udce9`."""
    return re.sub(r"//[^/@]*@", "//", str(place)).encode("utf-8", "backslashreplace").decode("utf-8")


def kind(place: Place) -> str:
    """The suffix of the format, in lower case, without that of compression: `.txt` of `a.TXT.gz`."""
    path = _name(place)
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix


def _name(place: Place) -> Path:
    """The place's own path in lower case: the first one of a chain such as `zip://a.txt::archive.zip`; without query."""
    if isinstance(place, Path):
        return Path(str(place).lower())
    path = next(part for part in place.lower().split("::") if "://" in part)
    return Path(re.split(r"[?#]", path)[0] if _of_the_web(path) else path)


def _of_the_web(url: str) -> bool:
    """Whether `?` begins a query, such as `?download=1`; elsewhere it is a character of a glob."""
    return url.lower().startswith(("http://", "https://"))


def expand(patterns: Iterable[str], field: str, report: Report = REFUSE, keep_empty: bool = False) -> list[Place]:
    """The files of paths, globs and URLs, each once, sorted within a glob.

    Names of existing folders and files are literal, including brackets; only other patterns are globs. With several files,
    those that Spark and others write next to their shards (`_SUCCESS`) are skipped.

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
        shards = [(place, size) for place, size in files if not _MARKER.fullmatch(_name(place).name)]
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


def _literal(pattern: str, exists: Callable[[str], bool]) -> str:
    """The glob with its longest existing prefix, such as `data[1]`, escaped to be literal."""
    ends = [match.start() for match in re.finditer("/", pattern)] + [len(pattern)]
    for end in reversed(ends):
        head = pattern[:end]
        if end and exists(head):
            return glob.escape(head) + pattern[end:]
        if not glob.has_magic(head):
            break
    return pattern


def _expand_local(pattern: str) -> list[tuple[Place, int | None]]:
    names = sorted(glob.glob(_literal(pattern, os.path.lexists), recursive=True))
    paths = [Path(name) for name in names] or [Path(pattern)]
    return [(path, path.stat().st_size) for path in paths if path.is_file()]


def _expand_url(pattern: str, field: str) -> list[tuple[Place, int | None]]:
    import fsspec  # local import: most corpora are local files, and the import takes a twentieth of a second

    try:
        system, path = fsspec.core.url_to_fs(pattern)
        if glob.has_magic(re.sub(r"\?.*", "", path) if _of_the_web(path) else path):
            names = sorted(system.glob(_literal(path, system.exists)))
        else:
            names = [path] if system.exists(path) else []
        files = [name for name in names if system.isfile(name)]
        return [
            (_spelled(pattern, name) if "::" in pattern else system.unstrip_protocol(name), system.size(name))
            for name in files
        ]
    except Exception as error:  # every protocol has a package of its own, with its own classes of errors
        raise WrongRecipe(
            f"{field}: {shown(pattern)!r} cannot be read ({_sentence(error)}); correct the URL, or install the "
            "package that its protocol needs"
        ) from None


def _spelled(pattern: str, name: str) -> str:
    """The chained URL of one of the files that match a chain with a glob."""
    parts = pattern.split("::")
    place = next(number for number, part in enumerate(parts) if "://" in part)
    parts[place] = name if "://" in name else f"{parts[place].split('://')[0]}://{name}"
    return "::".join(parts)


@contextmanager
def opened(place: Place) -> Iterator[IO[bytes]]:
    """The file's bytes, uncompressed, as a stream.

    Errors: UserError if the file does not exist or is not a complete compressed file.
    """
    suffix = _name(place).suffix
    try:
        with ExitStack() as stack:
            yield _unpacked(stack.enter_context(_raw(place)), suffix, stack)
    except FileNotFoundError:
        raise UserError(f"{shown(place)} no longer exists; correct the path") from None
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise _damaged(place, suffix, error) from None
    except Exception as error:
        if not isinstance(error, OSError):
            if isinstance(place, str) and type(error).__module__.split(".")[0] in _CLIENTS:
                raise _unreachable(place, error) from None
            raise
        # Errors about the stream itself, of Arrow and bz2, have no errno.
        if error.errno is None and suffix in (".zst", ".bz2"):
            raise _damaged(place, suffix, error) from None
        if isinstance(place, str):
            raise _unreachable(place, error) from None
        raise


def _unreachable(place: Place, error: Exception) -> UserError:
    return UserError(
        f"{shown(place)} cannot be read to its end ({_sentence(error)}); run the command again, or copy "
        "the file to this machine"
    )


def _raw(place: Place) -> Any:
    if isinstance(place, Path):
        return place.open("rb")
    import fsspec

    return fsspec.open(place, "rb")


def _unpacked(raw: IO[bytes], suffix: str, stack: ExitStack) -> IO[bytes]:
    if suffix == ".gz":
        return cast(IO[bytes], stack.enter_context(gzip.GzipFile(fileobj=raw, mode="rb")))
    if suffix == ".xz":
        return cast(IO[bytes], stack.enter_context(lzma.LZMAFile(raw)))
    if suffix == ".bz2":
        return cast(IO[bytes], stack.enter_context(bz2.BZ2File(raw)))
    if suffix == ".zst":
        # Local import: Arrow takes a third of a second. The zstandard package reads a truncated frame as if it were
        # complete; Arrow raises an error.
        import pyarrow

        stream = stack.enter_context(pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, mode="r"), "zstd"))
        return cast(IO[bytes], io.BufferedReader(stream, 1 << 16))
    if isinstance(raw, io.BufferedIOBase):
        return raw
    # fsspec's own files for HTTP, S3 and others have no readline with a size limit.
    return cast(IO[bytes], io.BufferedReader(cast(io.RawIOBase, raw), 1 << 16))


def _damaged(place: Place, suffix: str, error: Exception) -> UserError:
    return UserError(f"{shown(place)} is not a whole {suffix} file ({_sentence(error)}); compress or copy it again")


def _sentence(error: Exception) -> str:
    return " ".join(shown(str(error)).split()) or type(error).__name__


def whole(place: Place) -> bytes:
    """All bytes of a small file. Errors: UserError if it has more than WHOLE_FILE_BYTES; otherwise as for `opened`."""
    with opened(place) as file:
        content = file.read(WHOLE_FILE_BYTES + 1)
    if len(content) > WHOLE_FILE_BYTES:
        raise UserError(
            f"{shown(place)} has more than {WHOLE_FILE_BYTES} bytes, too many for a file that is read at once; split it"
        )
    return content


def decoded(raw: bytes, where: str, first: bool = True) -> str:
    """UTF-8 bytes as text, without byte order mark if `first`. Errors: UserError naming `where` and the byte, from 1."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{where}, byte {error.start + 1} (0x{raw[error.start]:02X}) is not UTF-8; convert the file, for "
            "instance with iconv -f latin1 -t utf-8"
        ) from None
    if "\0" in text:
        raise UserError(
            f"{where}, byte {raw.index(0) + 1} is a NUL byte, which no text has; the file is binary or UTF-16: "
            "convert it, for instance with iconv -f utf-16 -t utf-8"
        )
    return text.removeprefix("\ufeff") if first else text


def lines(place: Place, limit: int = UNBOUNDED, report: Report = REFUSE) -> Iterator[tuple[int, str]]:
    """Line numbers from 1 and lines without their ends and without a byte order mark.

    Errors, to `report`: UserError naming file and line if it has more than `limit` characters (detected after at most
    4 * limit bytes), is not UTF-8 or has a NUL byte.
    """
    for number, text in lines_or_none(place, limit, report):
        if text is not None:
            yield number, text


def lines_or_none(place: Place, limit: int, report: Report) -> Iterator[tuple[int, str | None]]:
    """As `lines`, with None for a reported line, so that the lines of two files stay aligned."""
    most = 4 * limit + 4
    with opened(place) as file:
        number = 0
        while raw := file.readline(most):
            number += 1
            text: str | None = None
            try:
                text = _line(raw, place, number, limit)
            except UserError as error:
                report.record(error)
            while len(raw) >= most and not raw.endswith(b"\n"):
                raw = file.readline(most)
            yield number, text


def _line(raw: bytes, place: Place, number: int, limit: int) -> str:
    if len(raw) >= 4 * limit + 4 and not raw.endswith(b"\n"):
        raise too_long(place, number, limit)
    text = decoded(raw, f"{shown(place)}, line {number}", number == 1).rstrip("\r\n")
    if len(text) > limit:
        raise too_long(place, number, limit)
    return text


def too_long(place: Place, number: int, limit: int, unit: str = "line") -> UserError:
    """The error for a line, row or unit that is longer than the recipe allows."""
    return UserError(
        f"{shown(place)}, {unit} {number} has more than {limit} characters; break it into lines, or raise "
        "data.reading.max_line_characters"
    )
