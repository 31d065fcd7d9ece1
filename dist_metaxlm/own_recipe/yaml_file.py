"""The commented recipe file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dist_metaxlm.errors import UserError
from dist_metaxlm.own_recipe.choices import EPOCHS, TOKENS_A_PARAMETER, TOKENS_A_PIECE, Choices
from dist_metaxlm.own_recipe.measure import BYTES_PER_TOKEN, Measured
from dist_metaxlm.own_recipe.sources import Files
from dist_metaxlm.planning.parameters import count_parameters
from dist_metaxlm.recipe.load import load_recipe
from dist_metaxlm.recipe.schema import Objective, PhaseConfig, Recipe

HEAD = """# Recipe of {name}, written by metaxlm init. Every number is a starting point: what has been shown to learn is the
# quickstart's recipe (4 layers x 128). Lengths: {tokens} tokens a parameter (arXiv 2203.15556) or {epochs} epochs
# (arXiv 2305.16264), whichever is less. All fields: metaxlm pretrain --fields, or docs/recipe.md.
#
#   metaxlm prepare --recipe {path}
#   metaxlm pretrain --phase {phases} --recipe {path}
#   metaxlm evaluate --run_dir runs/{name} --phase untrained {names}
name: {name}
seed: 1
"""


def as_yaml(name: str, path: Path, text: Files, bitext: Files, measured: Measured, choices: Choices) -> str:
    """The recipe as commented YAML."""
    phases = list(choices.phases)
    head = HEAD.format(
        name=name,
        path=path,
        tokens=TOKENS_A_PARAMETER,
        epochs=EPOCHS,
        phases=f"{phases[0]}{'    # then --phase cross' if len(phases) > 1 else ''}".strip(),
        names=" ".join(phases),
    )
    # The shell comment belongs behind the whole command.
    head = head.replace(f"    # then --phase cross --recipe {path}", f" --recipe {path}    # then --phase cross")
    parts = [head, _model(choices), _data(name, text, bitext, measured, choices), _training(choices), _phases(choices)]
    return "\n".join(parts)


def write_recipe(path: Path, content: str, overwrite: bool) -> Recipe:
    """Validate the text as a recipe and write it; nothing is written on an error.

    Errors: UserError if the file exists and may not be replaced.
    """
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; give another name, or --overwrite")
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.yaml")
    try:
        unfinished.write_text(content, encoding="utf-8")
        recipe = load_recipe(unfinished)
        if overwrite:
            os.replace(unfinished, path)
        else:
            _link(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
    return recipe


def _link(unfinished: Path, path: Path) -> None:
    """Give a file its name unless another process was faster."""
    try:
        os.link(unfinished, path)
    except FileExistsError:
        raise UserError(f"{path} exists already; give another name, or --overwrite") from None
    except OSError:  # a file system without hard links
        os.replace(unfinished, path)


def _model(choices: Choices) -> str:
    model, shape = choices.model, choices.shape
    return f"""model:                      # {choices.size}: {count_parameters(model).total:,} parameters, {shape.source}
  family: {model.family}
  norm: {model.norm}
  layers: {model.layers}
  hidden: {model.hidden}
  heads: {model.heads}
  ffn: {model.ffn}
  vocab_size: {model.vocab_size}          # a piece for {TOKENS_A_PIECE} tokens of text, or half of the repeated words
  max_positions: {model.max_positions}
  embedding_std: {model.embedding_std}        # the token embeddings are the output matrix too; it learns earlier
"""


def _data(name: str, text: Files, bitext: Files, measured: Measured, choices: Choices) -> str:
    lines = [
        "data:",
        f"  directory: data/{name}",
        f"  text:                     # about {BYTES_PER_TOKEN:g} bytes of text a token",
    ]
    for code, entries in text.items():
        size = measured.text[code]
        about = f"{size.units:,} documents, {size.characters:,} characters, about {size.tokens:,} tokens"
        lines.append(f"    {_flow(code)}: {_flow(entries)}  # {about}{'' if size.whole else ' (estimated)'}")
    if bitext:
        lines.append("  bitext:")
    for pair, entries in bitext.items():
        size = measured.bitext[pair]
        lines.append(f"    {_flow(pair)}: {_flow(entries)}  # {size.units:,} pairs{'' if size.whole else ' (estimated)'}")
    lines += [
        f"  heldout_strings: {choices.heldout_strings}      # kept out of training, with their translations",
        "  max_pair_tokens: 128",
        "  tokenizer:",
        "    alpha: 0.5",
        "    sample_bytes: 12000000",
    ]
    return "\n".join(lines) + "\n"


def _training(choices: Choices) -> str:
    interval = max(10, min(phase.total_steps for phase in choices.phases.values()) // 12 // 10 * 10)
    probe = (
        f"{interval}       # retrieval of held-out strings while training"
        if choices.probes
        else "0        # too few translations"
    )
    loss = (
        f"{interval}     # held-out bits per byte while training"
        if choices.heldout_loss
        else "0      # too little text to hold out"
    )
    return f"""optimizer:
  name: muon
  matrix_rate: 3.0
  weight_decay: 0.01

training:
  log_interval: 10
  checkpoint_interval: {4 * interval}
  probe_interval: {probe}
  heldout_interval: {loss}

carry_over:
  optimizer: reset
  schedule: restart
  unseen_embeddings: reinitialise  # the first phase gives all of them one direction
"""


def _phases(choices: Choices) -> str:
    lines = ["phases:"]
    for name, phase in choices.phases.items():
        about = "learn to generalise" if name == "meta" else "learn to transfer"
        lines += [f"  {name}:  # {about}", *_phase(phase, choices.reasons[name])]
    return "\n".join(lines) + "\n"


def _phase(phase: PhaseConfig, reason: str) -> list[str]:
    rate = phase.learning_rate
    return [
        f"    steps: {phase.total_steps}  # {phase.total_steps * phase.tokens_per_step:,} tokens: {reason}",
        f"    languages: {_flow(phase.languages)}",
        f"    alpha: {phase.alpha}",
        f"    pair_alpha: {phase.pair_alpha}",
        f"    sequence_length: {phase.sequence_length}",
        f"    mask_rate: {phase.mask_rate}",
        "    objectives:",
        *(f"      - {_objective(objective)}" for objective in phase.objectives),
        f"    learning_rate: {{peak: {rate.peak:.1e}, warmup_steps: {rate.warmup_steps}, floor: {rate.floor}}}",
    ]


def _objective(objective: Objective) -> str:
    """As a flow section with the fields that differ from the defaults."""
    fields = {"name": objective.name, **objective.model_dump(exclude_defaults=True)}
    if "temperature" in type(objective).model_fields:  # said even if it is the default: the first field to try others of
        fields["temperature"] = getattr(objective, "temperature")  # noqa: B009
    return "{" + ", ".join(f"{key}: {value}" for key, value in fields.items()) + "}"


def _flow(value: Any) -> str:
    """A value as YAML in one line: JSON, which also quotes codes such as `no`."""
    if value == "all":
        return "all"
    return json.dumps(value, ensure_ascii=False)
