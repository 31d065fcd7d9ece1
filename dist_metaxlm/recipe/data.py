"""The data sections of the recipe: which files, how they are read and cleaned, and the tokenizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from dist_metaxlm.recipe.section import Section

Column = Annotated[int, Field(ge=1)]
"""Column of a file, from 1."""


Normalisation = Literal["nmt_nfkc", "nfkc", "identity"]
"""Rules of SentencePiece; the first is XLM-R's."""


class TokenizerConfig(Section):
    """Training of the SentencePiece unigram model, or the existing model to use."""

    path: str | None = None
    """An existing SentencePiece model to use; empty: train one from the corpus."""
    alpha: float = Field(0.3, ge=0, le=1)
    """Exponent of the language sample (p ~ bytes^alpha) that the tokenizer is trained on."""
    sample_bytes: int = Field(20_000_000, gt=0)
    """Bytes of text drawn for training, over all languages."""
    character_coverage: float = Field(0.9995, ge=0.98, le=1)
    """Share of all characters that get a piece of their own; the rest falls back to bytes."""
    byte_fallback: bool = True
    """Spell unknown characters as bytes instead of `<unk>`."""
    normalisation: Normalisation = "nmt_nfkc"
    """What the tokenizer does to characters, after `cleaning.unicode`: `nmt_nfkc` is XLM-R's table (NFKC; ZWNJ becomes a
    space, control characters go), `nfkc` is NFKC alone, `identity` keeps every character. A tokenizer that `path` names
    keeps its own rule."""


def _refuse_one_column(columns: tuple[int, int] | None, field: str) -> None:
    if columns and len(set(columns)) == 1:
        raise ValueError(
            f"{field} {list(columns)} names one column for both sides; name the columns of the sentence and of "
            "its translation"
        )


class TextSource(Section):
    """One source of text of a language."""

    files: list[str] = Field(min_length=1)
    """Paths, globs or fsspec URLs; the format follows from the name (docs/data.md)."""
    weight: float = Field(1.0, gt=0)
    """How often this source is drawn, relative to its size and to the other sources of its language."""
    format: Literal["txt", "jsonl", "json", "csv", "tsv", "parquet", "arrow", "tar", "po", "mo"] | None = None
    """Format of all files of this source, regardless of their names; empty: by the name."""
    text_field: str | None = None
    """`reading.text_field` of this source."""
    text_column: Column | None = None
    """`reading.text_column` of this source."""
    txt_lines: Literal["paragraphs", "documents"] | None = None
    """`reading.txt_lines` of this source."""


class MosesPair(Section):
    """Two files; line n of one translates line n of the other."""

    moses: tuple[str, str]
    """Path, glob or URL of each side, in the order of the language pair; globs are paired in sorted order."""


class BitextSource(Section):
    """One source of translations of a language pair."""

    files: list[str | MosesPair] = Field(min_length=1)
    """Paths, globs or fsspec URLs, or `{moses: [a.en, a.fr]}`."""
    format: Literal["tsv", "csv", "jsonl", "json", "parquet", "arrow", "tmx", "po", "mo"] | None = None
    """Format of all files of this source except Moses files, regardless of their names; empty: by the name."""
    pair_columns: tuple[Column, Column] | None = None
    """`reading.pair_columns` of this source."""

    @model_validator(mode="after")
    def _consistent(self) -> BitextSource:
        _refuse_one_column(self.pair_columns, "pair_columns")
        return self


class ReadingConfig(Section):
    """Location of the text inside the files, and limits on its size."""

    text_field: str = "text"
    """Field of a JSON object, or column of a CSV, parquet or Arrow file, that holds a document."""
    txt_lines: Literal["paragraphs", "documents"] = "paragraphs"
    """Lines of a `.txt` file: `paragraphs` of documents between blank lines, or a whole document each."""
    text_column: Column = 1
    """Column, from 1, of a TSV file in `data.text` that holds a document."""
    pair_columns: tuple[Column, Column] | None = None
    """Columns, from 1, of a TSV file in `data.bitext` that hold the two sides; empty: a line has exactly two."""
    max_line_characters: int = Field(10_000_000, ge=1000, le=100_000_000)
    """Longest line or cell, in characters; a longer one is refused, so that reading takes bounded memory."""
    on_error: Literal["refuse", "skip"] = "refuse"
    """Files without text, and files and records that cannot be read: `refuse` lists them all and stops; `skip` leaves
    them out and counts them in the manifest and the log."""
    max_skipped: float = Field(0.01, ge=0, le=1)
    """With `on_error: skip`: largest share of the records, and of the files, of a language or pair that may be unreadable.
    Files without text lose nothing and do not count."""

    def of_source(self, source: TextSource | BitextSource | None) -> SourceReading:
        """These settings, overridden by those of one source."""
        own = {} if source is None else source.model_dump(exclude={"files", "weight"}, exclude_none=True)
        return SourceReading(**{**self.model_dump(), **own})


class SourceReading(ReadingConfig):
    """Reading settings of the files of one source."""

    format: str | None = None
    """Format of its files, such as "jsonl"; empty: by their names."""


class NearDuplicates(Section):
    """Removal of near-duplicate documents (MinHash, banded; text only, not translations)."""

    threshold: float = Field(0.8, gt=0, lt=1)
    """Estimated Jaccard similarity of the word n-grams from which a later document is dropped."""
    permutations: int = Field(128, ge=16, le=1024)
    """Length of a signature; the estimate's standard error is about 0.5 / sqrt(permutations)."""
    words: int = Field(5, ge=1)
    """Words in an n-gram (characters where a script has no spaces)."""


class QualityFilter(Section):
    """Removal of documents that are mostly no prose, by measures that hold in every script (text only, not translations)."""

    min_letters: float = Field(0.5, ge=0, le=1)
    """Least share of letters and their marks among a document's characters, spaces left out; the default is ours."""
    max_repeated_lines: float = Field(0.3, ge=0, le=1)
    """Largest share of a document's lines that repeat an earlier one of it; the default is Gopher's (arXiv 2112.11446)."""


class EvaluationFiles(Section):
    """Evaluation text with one token a line and a blank line between sentences (CoNLL)."""

    files: list[str] = Field(min_length=1)
    """Paths, globs or URLs."""
    token_column: Column
    """Column, from 1, that holds the token."""


class CleaningConfig(Section):
    """Cleaning steps, in this order; the corpus manifest counts what each step changed or dropped."""

    unicode: Literal["NFC", "NFKC", "none"] = "NFC"
    """Unicode normalisation form."""
    control_characters: bool = True
    """Remove control and invisible formatting characters (joiners stay); tabs become spaces."""
    min_characters: int = Field(1, ge=1)
    """Shorter lines (for translations: sides) are dropped."""
    max_characters: int | None = Field(None, ge=1)
    """Longer lines (for translations: sides) are dropped; empty: no bound."""
    quality: QualityFilter | None = None
    """Empty: no document is dropped for its content."""
    decontaminate: list[str | EvaluationFiles] = []
    """Evaluation files; documents and translation pairs that contain one of their sentences are dropped and listed."""
    deduplicate: list[Literal["documents", "lines"]] = ["documents"]
    """Units that must be unique in a language: whole documents, lines, or both (for translations: pairs)."""
    near_duplicates: NearDuplicates | None = None
    """Empty: near-duplicate documents stay."""

    @model_validator(mode="after")
    def _consistent(self) -> CleaningConfig:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters {self.max_characters} is less than min_characters {self.min_characters}; "
                "nothing would be left"
            )
        return self


class DataConfig(Section):
    """Source of the text and location of the prepared tokens."""

    directory: str = Field(min_length=1)
    """Folder of the prepared data: corpus, tokenizer, token store, held-out strings; relative to the working directory."""
    corpus: Literal["quickstart", "files"] = "files"
    """`quickstart`: translation catalogues and documentation prose from PyPI wheels; `files`: the fields below."""
    text: dict[str, dict[str, TextSource]] = {}
    """Language code -> files, globs or URLs; or -> source name -> `{files: [...], weight: 1.0}`. A plain list is kept as
    one source without a name."""
    bitext: dict[str, dict[str, BitextSource]] = {}
    """Language pair such as `en-fr` -> files, globs, URLs or `{moses: [a.en, a.fr]}`; or named sources, which are
    counted separately and trained on together."""
    reading: ReadingConfig = ReadingConfig()
    """Fields, columns and limits of the files above."""
    cleaning: CleaningConfig = CleaningConfig()
    """Cleaning of their text."""
    heldout_strings: int = Field(500, ge=0)
    """Source strings kept out of training with all their translations, for evaluation."""
    max_pair_tokens: int = Field(128, ge=8)
    """Longest translation pair in tokens, both sides and special tokens together; longer ones are left out."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """Tokenizer training."""

    @field_validator("text", "bitext", mode="before")
    @classmethod
    def _name_sources(cls, value: object) -> object:
        if not isinstance(value, dict):
            return value
        for key, sources in value.items():
            if isinstance(sources, str):
                raise ValueError(f"{key}: {sources} is a name instead of a list of files; write {key}: [{sources}]")
            if sources is None:
                raise ValueError(f"{key} names no files; write {key}: [...], or leave it out")
            if isinstance(sources, dict) and isinstance(sources.get("files"), list):
                raise ValueError(
                    f"{key}: files is in the place of a source name; write {key}: {{web: {{files: "
                    f"...}}}}, or {key}: [...] for files without a weight"
                )
            if isinstance(sources, dict) and isinstance(sources.get("moses"), list):
                raise ValueError(f"{key}: moses must be inside a list of files; write {key}: [{{moses: ...}}]")
        return {key: {"": {"files": sources}} if isinstance(sources, list) else sources for key, sources in value.items()}

    @model_validator(mode="after")
    def _consistent(self) -> DataConfig:
        _refuse_one_column(self.reading.pair_columns, "reading.pair_columns")
        if self.corpus == "quickstart" and (self.text or self.bitext):
            raise ValueError("corpus quickstart brings its own text; remove text and bitext, or set corpus: files")
        for pair in self.bitext:
            if len(pair.split("-")) != 2 or len(set(pair.split("-"))) == 1:
                raise ValueError(f"bitext key {pair!r} is not a pair of two language codes such as 'en-fr'")
        return self
