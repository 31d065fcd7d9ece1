"""Content of a Hugging Face folder that this project's models lack, kept from the import to the export.

Training needs the rows of the embedding that belong to token ids, in our order of special tokens. A folder may have more:
rows beyond the tokenizer's ids (XLM-R XL and XXL have 250,880 rows for 250,002 ids; `resize_token_embeddings` pads), rows
of added tokens, other ids of special tokens (CamemBERT, ModernBERT), a tokenizer that is not a SentencePiece model. An
import keeps these in the folder `original` next to the weights, a phase that starts from the import copies that folder, and
an export restores them. So rows without a token id are never trained: they are neither targets nor candidates.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.shard_writer import write_json
from dist_metaxlm.interop.source_views import ArrangedRows
from dist_metaxlm.interop.tensor_source import FileTensors, TensorSource
from dist_metaxlm.modeling.sharding import VOCABULARY

FOLDER, FACTS, ROWS = "original", "original.json", "rows.safetensors"
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "sentencepiece.bpe.model",
    "tokenizer.model", "spiece.model", "vocab.json", "merges.txt",
)  # fmt: skip
"""Files of a Hugging Face tokenizer that are kept."""


@dataclass(frozen=True)
class Original:
    """Facts of the Hugging Face folder that a model was imported from."""

    rows: int
    """Rows of its embedding."""
    ids: int
    """Rows of our model: one for each token id, including `<mask>`."""
    order: Mapping[int, int] = field(default_factory=dict)
    """Our token id -> row in the folder, if they differ; a permutation."""
    config: Mapping[str, object] = field(default_factory=dict)
    """Fields of its config.json that an export reuses."""
    tokenizer: str | None = None
    """SHA-256 of the SentencePiece model that the import wrote; None: it wrote none."""
    added_tokens: tuple[Mapping[str, object], ...] = ()
    """Tokens after the tokenizer's ids, as tokenizer.json lists them, in the order of their ids."""
    files: tuple[str, ...] = ()
    """Files of its tokenizer that are kept, because the one exported here would have other ids."""
    place: Path | None = None
    """Folder of the files; None before they are written."""

    @property
    def is_plain(self) -> bool:
        """Whether there is nothing to keep."""
        return self.rows == self.ids and not (self.order or self.config or self.added_tokens or self.files)

    def cut(self, source: TensorSource, names: list[str]) -> TensorSource:
        """The folder's tensors; those in `names` have a row for each of our token ids, in our order."""
        return source if self.rows == self.ids and not self.order else ArrangedRows(source, names, self.ids, self.order)

    def whole(self, source: TensorSource) -> TensorSource:
        """Our tensors with the rows of the folder, in its order."""
        if self.rows == self.ids and not self.order:
            return source
        tail = FileTensors([_place(self) / ROWS]) if self.rows > self.ids else None
        back = {place: row for row, place in self.order.items()}
        return ArrangedRows(source, VOCABULARY, self.rows, back, tail)

    def fits(self, tokenizer: str | Path | None) -> bool:
        """Whether rows trained with this SentencePiece model have the same meaning as in the folder."""
        return tokenizer is None or hashlib.sha256(Path(tokenizer).read_bytes()).hexdigest() == self.tokenizer


def write_original(original: Original, rows: Mapping[str, torch.Tensor], source: Path, target: Path) -> None:
    """Write `target/original`: facts, `rows` (those beyond the ids, by our names), and tokenizer files of `source`."""
    from safetensors.torch import save_file

    folder = target / FOLDER
    folder.mkdir()
    if rows:
        save_file({name: tensor.contiguous() for name, tensor in rows.items()}, folder / ROWS)
    for name in original.files:
        shutil.copyfile(source / name, folder / name)
    facts = {
        "rows": original.rows,
        "ids": original.ids,
        "order": {str(row): place for row, place in original.order.items()},
        "config": dict(original.config),
        "tokenizer": original.tokenizer,
        "added_tokens": [dict(token) for token in original.added_tokens],
        "sha256": {path.name: _digest(path) for path in sorted(folder.iterdir())},
    }
    write_json(folder / FACTS, facts)


def read_original(parent: str | Path) -> Original | None:
    """Content of `parent/original`, verified; None if there is no such folder (there was nothing to keep).

    Raises:
        UserError: for a folder that is damaged.
    """
    folder = Path(parent) / FOLDER
    if not folder.is_dir():
        return None
    try:
        facts = json.loads((folder / FACTS).read_text(encoding="utf-8"))
        for name, known in facts["sha256"].items():
            if Path(name).name != name or _digest(folder / name) != known:
                raise ValueError(f"{name} has another SHA-256")
        rows, ids = int(facts["rows"]), int(facts["ids"])
        order = {int(row): int(place) for row, place in facts["order"].items()}
        if not (set(order) == set(order.values()) <= set(range(ids)) and ids <= rows):
            raise ValueError("its order of rows is not a permutation")
        if rows > ids and {FileTensors([folder / ROWS]).spec(name).shape[0] for name in VOCABULARY} != {rows - ids}:
            raise ValueError(f"{ROWS} does not have {rows - ids} rows")
        return Original(
            rows,
            ids,
            order,
            dict(facts["config"]),
            facts["tokenizer"],
            tuple(facts["added_tokens"]),
            tuple(name for name in facts["sha256"] if name in TOKENIZER_FILES),
            folder,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is damaged ({error}); copy it again from the imported model") from None


def keep_original(source: str | Path | None, phase: Path) -> None:
    """Copy the folder `original` of an import, or of the previous phase, to `phase`; remove an earlier copy."""
    target, partial = phase / FOLDER, phase / f".{FOLDER}.partial"
    for leftover in (target, partial):
        shutil.rmtree(leftover, ignore_errors=True)
    if source is None or read_original(source) is None:
        return
    shutil.copytree(Path(source) / FOLDER, partial)
    os.replace(partial, target)


def copy_tokenizer(original: Original, target: Path) -> None:
    """Copy the kept tokenizer files to the folder `target`."""
    for name in original.files:
        shutil.copyfile(_place(original) / name, target / name)


def _place(original: Original) -> Path:
    assert original.place is not None, "the files of an original are read from a folder that was written"
    return original.place


def _digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
