"""Any Hugging Face encoder as a function from sentences to vectors after every layer; our phases are exported first.

XLM-R, mmBERT, a user's own model and ours are therefore scored by the same code and appear in one table.

Shapes: K layers + 1 (0 is the embedding output), N sentences, B of a batch, L its longest in tokens, H hidden.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.measures.embed import inference
from dist_metaxlm.interop.untrusted import refuse_foreign_kernels, refuse_unsafe_weights

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "sentencepiece.bpe.model", "vocab.txt", "spiece.model")


class TextEncoder:
    """An encoder and its tokenizer, loaded offline from a folder by transformers."""

    def __init__(self, folder: str | Path, max_length: int = 512) -> None:
        """Open `folder`; sentences are cut at `max_length` tokens (or the model's own limit, if less), special ones too.

        Errors: UserError if the folder has no configuration, weights or tokenizer that transformers can load.
        """
        self.folder = Path(folder)
        check_folder(self.folder)
        from transformers import AutoModel, AutoTokenizer

        with opening(self.folder):
            self.tokenizer: Any = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
            self.model: Any = AutoModel.from_pretrained(
                str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.eval().to(self.device)
        self.max_length = min(max_length, longest_input(self.model.config, self.tokenizer))

    def embed(self, sentences: Sequence[str], include_special: bool = True, max_tokens: int = 8192) -> torch.Tensor:
        """Mean-pooled vectors after the embedding and after every layer: [K, N, H] float32, on the CPU.

        Args:
            sentences: N texts.
            include_special: pool over `<s>` and `</s>` too, as XTREME's Tatoeba script does.
            max_tokens: tokens, padding included, that go through the encoder at once (at least one sentence).
        """
        if not sentences:
            raise ValueError("there are no sentences to embed")
        encoded = self.tokenizer(
            list(sentences),
            truncation=True,
            max_length=self.max_length,
            return_special_tokens_mask=True,
            return_attention_mask=True,
        )
        ids, specials = encoded["input_ids"], encoded["special_tokens_mask"]
        pooled: torch.Tensor | None = None
        with inference(self.model):
            for members in batches([len(row) for row in ids], max_tokens):
                means = self._pool([ids[n] for n in members], [specials[n] for n in members], include_special)
                if pooled is None:
                    pooled = torch.zeros(means.shape[0], len(ids), means.shape[2])
                pooled[:, members] = means.cpu()
        assert pooled is not None
        return pooled

    def _pool(self, ids: list[list[int]], specials: list[list[int]], include_special: bool) -> torch.Tensor:
        """[K, B, H] means over the tokens of each sentence (over all of them if there are only special ones)."""
        weights = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.int64)
        for row, (tokens, marks) in enumerate(zip(ids, specials, strict=True)):
            inner = torch.tensor([1 - mark for mark in marks])
            weights[row, : len(tokens)] = inner if not include_special and inner.any() else 1
        share = (weights / weights.sum(1, keepdim=True)).to(self.device)
        return torch.stack([torch.einsum("blh,bl->bh", states.float(), share) for states in self.states(ids)])

    def states(self, ids: list[list[int]]) -> tuple[torch.Tensor, ...]:
        """K tensors [B, L, H] on the model's device: states after the embedding and after every layer; call it under
        `inference`. Shorter sentences are padded to L; states of padding are meaningless."""
        inputs = torch.full((len(ids), max(map(len, ids))), self.tokenizer.pad_token_id)
        mask = torch.zeros_like(inputs)
        for row, tokens in enumerate(ids):
            inputs[row, : len(tokens)] = torch.tensor(tokens)
            mask[row, : len(tokens)] = 1
        output = self.model(input_ids=inputs.to(self.device), attention_mask=mask.to(self.device), output_hidden_states=True)
        return tuple(output.hidden_states)


def batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Sentence numbers in batches of similar length, each of at most `max_tokens` tokens including padding."""
    batch: list[int] = []
    for number in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if batch and (len(batch) + 1) * lengths[batch[0]] > max_tokens:
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def longest_input(config: PretrainedConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Longest input of a model in tokens: its positions (XLM-R's table has two rows for the offset), or the tokenizer's."""
    positions = int(getattr(config, "max_position_embeddings", 512) or 512)
    if "roberta" in str(getattr(config, "model_type", "")):
        positions -= int(config.pad_token_id) + 1
    return min(positions, int(tokenizer.model_max_length))


def check_folder(folder: Path) -> None:
    """Raise UserError if the folder does not exist or has no configuration or no tokenizer."""
    if not folder.is_dir():
        raise UserError(
            f"there is no folder {folder}; encoders are opened from this machine: download the model first, "
            f"such as by `hf download {folder.name} --local-dir models/{folder.name}`, or correct the path"
        )
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} has no config.json; give a folder that save_pretrained or metaxlm convert export wrote")
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise UserError(f"{folder} has no tokenizer (none of {', '.join(TOKENIZER_FILES)}); copy its files there")
    refuse_unsafe_weights(folder)
    try:
        refuse_foreign_kernels(folder / "config.json", json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{folder / 'config.json'} is not JSON ({error}); copy the folder again") from None


@contextmanager
def opening(folder: Path) -> Iterator[None]:
    """Turn transformers' errors about a folder into one sentence and silence its other output.

    Its table of missing and unexpected weights, such as the pooler's, is expected for every encoder here.
    """
    import transformers
    from safetensors import SafetensorError

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()

    try:
        yield
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if "trust_remote_code" in str(error):
            raise UserError(
                f"{folder} needs code of its own (auto_map in config.json or tokenizer_config.json), which is "
                "never run; give a model whose architecture and tokenizer transformers has itself"
            ) from None
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{folder} cannot be opened by transformers ({reason}); give a folder that save_pretrained wrote, "
            "with safetensors weights and its tokenizer"
        ) from None


@contextmanager
def exported_phase(
    run_dir: str | Path, phase: str, step: int | None = None, data_directory: str | None = None
) -> Iterator[Path]:
    """A run's phase (or its initialisation: `untrained`) as a temporary Hugging Face folder, deleted on exit.

    Errors: UserError for a run without that phase, an intact checkpoint of `step` or a tokenizer.
    """
    from dist_metaxlm.evaluation.run import load_state, tokenizer_of
    from dist_metaxlm.interop.folders import export_folder

    recipe, state = load_state(Path(run_dir), phase, step, data_directory)
    model = tokenizer_of(Path(run_dir), recipe).path
    parent = Path(tempfile.mkdtemp(prefix="dist_metaxlm-export-"))
    try:
        export_folder(state, recipe.model, model, parent / "model")
        yield parent / "model"
    finally:
        shutil.rmtree(parent, ignore_errors=True)
