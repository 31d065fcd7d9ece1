"""TMX 1.4 translation memories, streamed; entity definitions are refused (defusedxml), memory is bounded by a limit.

Source of the format: https://www.ttt.org/oscarStandards/tmx/ (LISA OSCAR, TMX 1.4b).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

from defusedxml import DefusedXmlException
from defusedxml.ElementTree import ParseError, iterparse

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.readers.files import Place, opened, shown, too_long
from dist_metaxlm.preparation.readers.problems import REFUSE, Report
from dist_metaxlm.preparation.readers.records import checked, one_line

if TYPE_CHECKING:
    from xml.etree.ElementTree import Element

_LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_CODES = {"bpt", "ept", "ph", "it", "ut"}
"""Elements of a segment that hold the markup of another format, not text."""


class _Metered:
    """A stream that raises after 4 * `limit` bytes without a call of `unit`: expat keeps an element in memory."""

    def __init__(self, file: IO[bytes], place: Place, limit: int) -> None:
        self._file, self._place, self._limit = file, place, limit
        self._since = self.units = 0

    def read(self, size: int = -1) -> bytes:
        if self._since > 4 * self._limit:
            raise too_long(self._place, self.units, self._limit, "what comes after translation unit")
        chunk = self._file.read(min(size, 1 << 16) if size > 0 else 1 << 16)
        self._since += len(chunk)
        return chunk

    def unit(self) -> None:
        self.units += 1
        self._since = 0


def tmx_pairs(place: Place, languages: Sequence[str], limit: int, report: Report = REFUSE) -> Iterator[tuple[str, str]]:
    """Both sides of every unit that has both languages; a regional variant (`en-US`) is used if the code is missing.

    Elements are matched by name, in the namespace of TMX 1.4b (`http://www.lisa.org/tmx14`), another one or none.

    Errors: UserError if the file defines entities, is not well-formed (line and column), or one unit has more than
    `limit` characters; to `report` a unit with invalid text.
    """
    with opened(place) as file:
        metered = _Metered(file, place, limit)
        try:
            root: Any = None
            # defusedxml refuses entities and external references; a DOCTYPE without them is in most TMX files.
            for event, element in iterparse(
                metered, events=("start", "end"), forbid_dtd=False, forbid_entities=True, forbid_external=True
            ):
                root = element if root is None else root
                if event == "end" and _name(element) == "tu":
                    metered.unit()
                    try:
                        sides = _unit(element, f"{shown(place)}, unit {metered.units}")
                    except UserError as error:
                        report.record(error)
                        sides = {}
                    left, right = (_pick(sides, language) for language in languages)
                    if left is not None and right is not None:
                        yield one_line(left), one_line(right)
                    element.clear()
                    for parent in root:
                        if _name(parent) == "body":
                            parent.clear()
        except DefusedXmlException as error:
            raise UserError(
                f"{shown(place)} defines XML entities ({type(error).__name__}), which can blow up or fetch "
                "other files; remove the definitions from its DOCTYPE"
            ) from None
        except (ParseError, UnicodeError, LookupError) as error:
            raise UserError(
                f"{shown(place)} is not well-formed XML ({error}) after unit {metered.units}; correct or export it again"
            ) from None


def _unit(element: Element, where: str) -> dict[str, str]:
    sides: dict[str, str] = {}
    for variant in (child for child in element.iter() if _name(child) == "tuv"):
        segment = next((child for child in variant if _name(child) == "seg"), None)
        code = variant.get(_LANGUAGE) or variant.get("lang")
        if segment is None or not code:
            continue
        for inner in segment.iter():
            if _name(inner) in _CODES:
                inner.text = None
        sides.setdefault(_folded(code), checked("".join(segment.itertext()), where))
    return sides


def _name(element: Element) -> str:
    """An element's name without its namespace; empty for a comment or an instruction, whose tag is a function."""
    return element.tag.rpartition("}")[2] if isinstance(element.tag, str) else ""


def _pick(sides: dict[str, str], language: str) -> str | None:
    wanted = _folded(language)
    if wanted in sides:
        return sides[wanted]
    return next((text for code, text in sides.items() if code.split("_")[0] == wanted), None)


def _folded(code: str) -> str:
    return code.strip().replace("-", "_").casefold()
