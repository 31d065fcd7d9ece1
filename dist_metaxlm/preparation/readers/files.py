"""Opening the user's files, compressed or not, line by line in bounded memory; paths.py finds them.

A place is a local Path or an fsspec URL. Every error inside a file is reported in one sentence with file and position.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers.problems import REFUSE, Report

Place = Path | str

PACKED = (".gz", ".xz", ".zst", ".bz2")
WHOLE_FILE_BYTES = 256_000_000
"""Largest file of a format that is read at once (message catalogues, evaluation JSON)."""
UNBOUNDED = 1 << 30
"""Line limit, in characters, for text that has already passed the recipe's limit."""
_CLIENTS = ("httpx", "httpx2", "huggingface_hub", "aiohttp", "requests", "urllib3", "botocore", "google")
"""Packages behind fsspec's protocols whose network errors are no OSError."""
_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks -> encoding; the longer ones first, because UTF-32's begins with UTF-16's."""


def shown(place: Place) -> str:
    """The place for errors and manifests: without user name and password, undecodable bytes as `\\udce9`."""
    return re.sub(r"//[^/@]*@", "//", str(place)).encode("utf-8", "backslashreplace").decode("utf-8")


def kind(place: Place) -> str:
    """The suffix of the format, in lower case, without that of compression: `.txt` of `a.TXT.gz`."""
    path = name_of(place)
    return (path.with_suffix("") if path.suffix in PACKED else path).suffix


def name_of(place: Place) -> Path:
    """The place's own path in lower case: the first one of a chain such as `zip://a.txt::archive.zip`; without query."""
    if isinstance(place, Path):
        return Path(str(place).lower())
    path = next(part for part in place.lower().split("::") if "://" in part)
    return Path(re.split(r"[?#]", path)[0] if of_the_web(path) else path)


def of_the_web(url: str) -> bool:
    """Whether `?` begins a query, such as `?download=1`; elsewhere it is a character of a glob."""
    return url.lower().startswith(("http://", "https://"))


@contextmanager
def opened(place: Place) -> Iterator[IO[bytes]]:
    """The file's bytes, uncompressed, as a stream.

    Errors: UserError if the file does not exist or is not a complete compressed file.
    """
    suffix = name_of(place).suffix
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
        f"{shown(place)} cannot be read to its end ({sentence_of(error)}); run the command again, or copy "
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
    return UserError(f"{shown(place)} is not a whole {suffix} file ({sentence_of(error)}); compress or copy it again")


def sentence_of(error: Exception) -> str:
    """A library's error as one line."""
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
        marked = next((name for mark, name in _MARKS.items() if first and raw.startswith(mark)), "")
        what = f"begins {marked.upper()}" if marked else "is not UTF-8"
        raise UserError(
            f"{where}, byte {error.start + 1} (0x{raw[error.start]:02X}) {what}; convert the file, for "
            f"instance with iconv -f {marked or 'latin1'} -t utf-8"
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
