"""What an export holds beside the model: its card (README.md), and the files of sentence-transformers.

The card tells data, languages, figures, recipe and commit. Formats: https://huggingface.co/docs/hub/model-cards (metadata in
YAML, then Markdown); https://sbert.net/docs/sentence_transformer/usage/custom_models.html (modules.json).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from dist_metaxlm.recipe.load import dump_recipe
from dist_metaxlm.recipe.schema import ModelConfig, Recipe
from dist_metaxlm.recipe.yaml_text import write_yaml
from dist_metaxlm.reporting.records import Environment
from dist_metaxlm.reporting.results import Evaluation


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What a card tells."""

    recipe: Recipe
    phase: str
    """As given to the export, such as `cross` or `meta@400`."""
    step: int
    tokens: int
    """Masked-LM tokens of the phase up to `step`."""
    parameters: int
    languages: Mapping[str, int | None]
    """Language -> tokens of its text in the store; None if the store's manifest is not at hand."""
    pairs: tuple[str, ...] = ()
    """Language pairs of the translations."""
    evaluation: Evaluation | None = None
    """Of this checkpoint; None if it was not evaluated."""
    environment: Environment | None = None
    """Of the training run."""
    figures: Mapping[str, float] = field(default_factory=dict)
    """Of the last logged step: name -> value."""


def model_card(facts: CardFacts) -> str:
    """The text of the card. Figures that were not measured are not in it."""
    parts = [
        f"---\n{_metadata(facts)}---",
        f"# {facts.recipe.name}",
        f"A cross-lingual encoder ({facts.parameters:,} parameters, {facts.recipe.model.vocab_size:,} token ids), trained "
        f"with dist_metaxlm: phase `{facts.phase}`, step {facts.step:,}, {facts.tokens:,} masked-LM tokens of this phase.",
        _data(facts),
        _figures(facts),
        "## Use\n\n```python\nfrom transformers import AutoModelForMaskedLM, AutoTokenizer\n\n"
        'folder = "."  # this folder, or its name on the hub\ntokenizer = AutoTokenizer.from_pretrained(folder)\n'
        "model = AutoModelForMaskedLM.from_pretrained(folder)\n```",
        f"## Recipe\n\n```yaml\n{dump_recipe(facts.recipe)}```",
        _environment(facts.environment),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _metadata(facts: CardFacts) -> str:
    fields: dict[str, object] = {
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["masked-language-modeling", "cross-lingual", "dist_metaxlm"],
    }
    codes = [code for code in facts.languages if 2 <= len(code) <= 3 and code.isalpha()]  # the hub accepts ISO 639 only
    return write_yaml({"language": sorted(codes), **fields} if codes else fields)


def _data(facts: CardFacts) -> str:
    lines = ["## Data", "", "| language | tokens |", "|---|---|"]
    lines += [f"| {code} | {'' if tokens is None else f'{tokens:,}'} |" for code, tokens in sorted(facts.languages.items())]
    if facts.pairs:
        lines += ["", f"Translations: {', '.join(facts.pairs)}."]
    return "\n".join(lines)


def _figures(facts: CardFacts) -> str:
    rows = dict(facts.figures)
    results = facts.evaluation or {}
    retrieval, accuracy = results.get("mean_p_at_1"), results.get("fill_mask")
    if retrieval is not None:
        rows["retrieval of held-out sentences, mean P@1"] = retrieval
    if accuracy is not None:
        for name, words in (("English", accuracy["en"]), ("other languages", accuracy["others"])):
            if words is not None:
                rows[f"hidden words of held-out text, {name}, top 1"] = words["top1"]
    if not rows:
        return "## Figures\n\nThis checkpoint was not evaluated."
    return "\n".join(["## Figures", "", "| figure | value |", "|---|---|", *(f"| {k} | {v:.4g} |" for k, v in rows.items())])


def _environment(environment: Environment | None) -> str:
    if environment is None:
        return ""
    versions = ", ".join(f"{name} {version}" for name, version in environment["versions"].items() if version)
    commit = f"commit {environment['commit']}, " if environment.get("commit") else ""
    return f"## Training\n\n{commit}{environment['date']}, {environment['device']}; {versions}."


def sentence_transformers_files(config: ModelConfig) -> dict[str, str]:
    """Path in the folder -> content: sentence-transformers takes the normalised mean of the last layer's states."""
    module = "sentence_transformers.models"
    contents: dict[str, object] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": f"{module}.Transformer"},
            {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{module}.Pooling"},
            {"idx": 2, "name": "2", "path": "2_Normalize", "type": f"{module}.Normalize"},
        ],
        "sentence_bert_config.json": {"max_seq_length": config.max_positions, "do_lower_case": False},
        "1_Pooling/config.json": {
            "word_embedding_dimension": config.hidden,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
        },
        "2_Normalize/config.json": {},
    }
    return {name: json.dumps(content, indent=2) + "\n" for name, content in contents.items()}
