"""The quickstart corpus, from tiny wheels made here: catalogues, languages, cleaning, order, prose; no network."""

from __future__ import annotations

import gettext
import io
import struct
import zipfile
from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.preparation.corpus import corpus, quickstart, quickstart_prose, quickstart_wheels
from dist_metaxlm.preparation.corpus.quickstart_prose import is_prose, module_paragraphs, paragraphs, prose_documents
from dist_metaxlm.preparation.corpus.quickstart_wheels import Package
from dist_metaxlm.preparation.readers.catalogues import base_language, clean, read_mo, read_po_order, usable

HEADER = "Content-Type: text/plain; charset=UTF-8\nPlural-Forms: nplurals=2; plural=(n != 1);\n"


def compiled(strings: dict[str, str], order: str = "<") -> bytes:
    """A `.mo` file."""
    items = sorted({"": HEADER, **strings}.items(), key=lambda item: item[0].encode())
    texts = [text.encode() for side in range(2) for text in (item[side] for item in items)]
    start, table, body = 28 + 16 * len(items), b"", b""
    for text in texts:
        table += struct.pack(f"{order}2I", len(text), start + len(body))
        body += text + b"\0"
    return struct.pack(f"{order}7I", 0x950412DE, 0, len(items), 28, 28 + 8 * len(items), 0, 0) + table + body


def wheel(path: Path, files: dict[str, bytes]) -> Package:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return Package("tiny 1", path, tuple(sorted(files)))


def place(locale: str, kind: str = "mo") -> str:
    return f"app/locale/{locale}/LC_MESSAGES/django.{kind}"


@pytest.mark.parametrize("order", ["<", ">"])
def test_compiled_catalogues_are_read_in_both_byte_orders(order: str) -> None:
    blob = compiled({"verb\x04Open": "Öffnen", "%d page\x00%d pages": "%d Seite\x00%d Seiten"}, order)
    assert gettext.GNUTranslations(io.BytesIO(blob)).ngettext("%d page", "%d pages", 2) == "%d Seiten"
    assert set(read_mo(blob)) == {("Open", "Öffnen"), ("%d page", "%d Seite"), ("%d pages", "%d Seiten")}


def test_singulars_are_left_out_where_the_forms_do_not_tell() -> None:
    one_form = compiled({"%d page\x00%d pages": "%dページ"})
    six_forms = compiled({"%d page\x00%d pages": "\x00".join(f"{n}" for n in range(6))})
    assert list(read_mo(one_form)) == [("%d pages", "%dページ")]
    assert list(read_mo(six_forms)) == [("%d pages", "5")]


@pytest.mark.parametrize("blob", [b"", b"x" * 40, compiled({"a": "b"})[:30]])
def test_damaged_catalogues_are_errors(blob: bytes) -> None:
    with pytest.raises(ValueError):
        list(read_mo(blob))


def test_order_of_a_source_catalogue() -> None:
    text = (
        'msgid ""\nmsgstr ""\n"Header: x\\n"\n\n#, fuzzy\nmsgid "Zebra"\nmsgstr ""\n\nmsgid ""\n'
        '"A \\"long\\" "\n"one"\nmsgid_plural "Many"\nmsgstr[0] ""\n'
    )
    assert read_po_order(text) == ["Zebra", 'A "long" one', "Many"]


def test_cleaning_takes_markup_off_and_keeps_placeholders() -> None:
    assert clean('<p>See <a href="%(url)s">the&nbsp;page</a><br>of %(name)s</p>\n') == "See the page of %(name)s"
    assert clean("a < b and b > c") == "a < b and b > c"


@pytest.mark.parametrize(
    ("source", "translation", "kept"),
    [
        ("Delete %(name)s", "%(name)s löschen", True),
        ("%(count)d / {total}", "%(count)d : {total}", False),
        ("OK", "ok", False),
        ("https://example.org", "https://example.org/de", False),
        ("12 %", "12 Prozent", False),
    ],
)
def test_usable_pairs(source: str, translation: str, kept: bool) -> None:
    assert usable(source, translation) is kept


@pytest.mark.parametrize(
    ("locale", "language"),
    [
        ("pt_BR", "pt"),
        ("is_IS", "is"),
        ("zh_Hans", "zh"),
        ("zh_Hant", None),
        ("zh_TW", None),
        ("sr_Latn", None),
        ("sr@latin", None),
        ("be_Latn", None),
        ("sr_Cyrl", "sr"),
        ("no", "nb"),
        ("nn", "nn"),
        ("en_GB", None),
        ("de", "de"),
        ("es_419", "es"),
    ],
)
def test_one_code_a_language(locale: str, language: str | None) -> None:
    assert base_language(locale) == language


def test_translations_merge_variants_and_keep_the_order_of_the_source(tmp_path: Path) -> None:
    order = 'msgid "Save this page"\nmsgstr ""\n\nmsgid "Delete this page"\nmsgstr ""\n'
    package = wheel(
        tmp_path / "a.whl",
        {
            place("pt_BR"): compiled({"Save this page": "Salvar esta página", "Delete this page": "Excluir esta página"}),
            place("pt"): compiled({"Save this page": "Guardar esta página"}),
            place("de"): compiled({"Save this page": "Diese Seite speichern", "Delete this page": "Delete this page"}),
            place("fr"): compiled({"%d": "%d!"}),
            place("en", "po"): order.encode(),
            place("xx"): b"broken",
        },
    )
    found = quickstart.read_translations([package], min_pairs=1)
    assert found.documents == [["Save this page", "Delete this page"]]
    assert found.languages == {
        "pt": {"Save this page": "Salvar esta página", "Delete this page": "Excluir esta página"},
        "de": {"Save this page": "Diese Seite speichern"},
    }
    assert found.dropped == {
        "no letters or not translated": 2,
        "second translation of a string": 1,
        "unreadable catalogues": 1,
        "languages below the minimum": 1,
    }
    assert list(quickstart.read_translations([package], min_pairs=2).languages) == ["pt"]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with one wheel of two languages, and no installed prose."""
    cache = tmp_path / "xdg" / "dist_metaxlm" / "wheels"
    cache.mkdir(parents=True)
    doc = b'"""This sentence describes a module in enough plain words to be kept."""\nx = """y"""\n'
    wheel(
        cache / "tiny-1-py3-none-any.whl",
        {
            place("de"): compiled({"Save this page": "Diese Seite speichern", "Delete this page": "Diese Seite löschen"}),
            place("fr"): compiled({"Save this page": "Enregistrer cette page"}),
            "app/a.py": doc,
        },
    )
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.setattr(quickstart_wheels, "WHEELS", {"tiny": "1"})
    monkeypatch.setattr(quickstart, "MIN_PAIRS", 1)
    monkeypatch.setattr(quickstart, "MIN_LANGUAGES", 2)
    monkeypatch.setattr(quickstart_prose, "_sources", list)
    return cache


def test_collect_writes_what_the_readers_read(small: Path, tmp_path: Path) -> None:
    about = quickstart.collect(tmp_path / "out", lambda line: None)
    text, bitext = corpus.files(tmp_path / "out")
    assert {language: [path.name for path in paths] for language, paths in text.items()} == {
        "de": ["de.txt"],
        "en": ["en.strings.txt", "en.txt"],
        "fr": ["fr.txt"],
    }
    assert bitext["en-de"][0].read_text() == (
        "Delete this page\tDiese Seite löschen\nSave this page\tDiese Seite speichern\n"
    )
    assert text["en"][1].read_text() == "This sentence describes a module in enough plain words to be kept.\n\n"
    assert about["packages"] == ["tiny 1"]
    assert about["note"] == ""


def test_without_a_network_the_installed_catalogues_serve_and_the_note_says_so(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    for locale in ("de", "fr"):
        path = site / place(locale)
        path.parent.mkdir(parents=True)
        path.write_bytes(compiled({"Save this page": f"Seite {locale}"}))
    (small / "tiny-1-py3-none-any.whl").write_bytes(b"cut off")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setattr(quickstart_wheels.sysconfig, "get_paths", lambda: {"purelib": str(site)})
    said: list[str] = []
    packages, note = quickstart_wheels.find_packages(said.append)
    assert [package.name for package in packages] == ["app (installed)"]
    assert "could not download tiny==1" in note
    assert any("using cached or installed packages" in line for line in said)
    assert set(quickstart.read_translations(packages, 1).languages) == {"de", "fr"}


def test_too_few_languages_is_the_users_error_with_the_remedy(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quickstart, "MIN_LANGUAGES", 3)
    with pytest.raises(UserError, match=r"found 2; .*connect to a package index once, or install"):
        quickstart.collect(tmp_path / "out", lambda line: None)
    assert not (tmp_path / "out").exists()


DOCSTRING = """
    Return the sorted copy of an array, leaving the ``input`` as it was before.

    Parameters
    ----------
    axis : int, optional
        Axis along which the values are sorted, by default the last of them.
    kind : {'quick', 'merge'}

    Use it like this, as the :func:`~numpy.sort` of old did it for you::

        This Is Code Although It Looks Like A Sentence That One Could Keep.

    >>> This is a doctest and it must not be kept whatever it looks like.

    Args:
        values (list of int): Numbers that the function puts into ascending order.

    .. math:: x = y
"""


def test_prose_of_a_documentation_string() -> None:
    import inspect

    assert list(paragraphs(inspect.cleandoc(DOCSTRING))) == [
        "Return the sorted copy of an array, leaving the input as it was before.",
        "Axis along which the values are sorted, by default the last of them.",
        "Numbers that the function puts into ascending order.",
    ]


def test_modules_are_parsed_not_run_and_broken_ones_skipped() -> None:
    source = f'"""{DOCSTRING}"""\nraise SystemExit("run")\n\nclass A:\n    def f(self):\n        """Short."""\n'
    assert len(list(module_paragraphs(source.encode()))) == 3
    assert list(module_paragraphs(b'"""a"""\ndef (:\n')) == []


@pytest.mark.parametrize(
    "text",
    [
        "too short.",
        "no capital at the beginning of this otherwise fine long sentence.",
        "It has no full stop at the end of the line here",
        "Set x_1 = {a|b} and y[2] = c_3 / d_4 where e = f ** g for h in i.",
    ],
)
def test_what_is_no_prose(text: str) -> None:
    assert not is_prose(text)


def test_no_paragraph_twice_and_a_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    sources = [
        f'"""The module number {word} describes nothing at all but itself."""\n"""x"""'.encode()
        for word in ("one", "one", "two", "three")
    ]
    monkeypatch.setattr(quickstart_prose, "_sources", list)
    found = prose_documents(sources)
    assert [len(document) for document in found] == [1, 1, 1]
    assert prose_documents(sources, budget=10) == found[:1]
