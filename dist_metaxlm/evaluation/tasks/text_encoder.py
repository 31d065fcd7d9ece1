"""Any Hugging Face encoder as a function from sentences to vectors after every layer; our phases are exported first.

XLM-R, mmBERT, a user's own model and ours are therefore scored by the same code and appear in one table.

Shapes: K layers + 1 (0 is the embedding output), N sentences, B of a batch, L its longest in tokens, H hidden.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.evaluation.measures.embed import inference
from dist_metaxlm.evaluation.resume.scratch import scratch_folder
from dist_metaxlm.evaluation.tasks.encoders import check_encoder, longest_input, open_tokenizer, open_with_head, opening


class TextEncoder:
    """An encoder and its tokenizer, loaded offline from a folder by transformers."""

    def __init__(self, folder: str | Path, max_length: int = 512) -> None:
        """Open `folder`; sentences are cut at `max_length` tokens (or the model's own limit, if less), special ones too.

        Errors: UserError if the folder has no configuration, weights or tokenizer that transformers can load, or no encoder
        with a state for every token (`check_encoder`).
        """
        self.folder = Path(folder)
        check_encoder(self.folder, ["retrieval"])
        from transformers import AutoModel

        with opening(self.folder):
            self.tokenizer: Any = open_tokenizer(self.folder)
            self.model: Any = open_with_head(AutoModel, str(folder))
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

    @property
    def layers(self) -> int:
        """Number of layers, the embedding not counted."""
        with inference(self.model):
            return len(self.states([self.tokenizer("a")["input_ids"]])) - 1

    def count_cut(self, sentences: Iterable[str]) -> int:
        """How many sentences have more tokens than the encoder reads."""
        return sum(len(ids) > self.max_length for ids in self.tokenizer(list(sentences), verbose=False)["input_ids"])

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
        states = tuple(output.hidden_states)
        if any(state.shape[:2] != inputs.shape for state in states) or len({state.shape[2] for state in states}) > 1:
            raise UserError(
                f"{self.folder} has layers of different lengths or widths, and these tasks need a state of one width for "
                "every token at every layer; give another encoder"
            )
        return states


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
    with scratch_folder("export") as parent:
        export_folder(state, recipe.model, model, parent / "model")
        yield parent / "model"
