"""Weights and configuration to and from Hugging Face's XLMRobertaForMaskedLM, XLMRobertaXLForMaskedLM,
RobertaForMaskedLM and CamembertForMaskedLM (the same network as the first) and ModernBertForMaskedLM.

A Hugging Face state here is what `save_pretrained` writes: no second copy of tied weights. Import followed by export
returns the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

from dist_metaxlm.errors import UserError
from dist_metaxlm.interop.configs import check_exportable, huggingface_config, model_config
from dist_metaxlm.interop.source_views import ExtendedTensors, RenamedTensors
from dist_metaxlm.interop.tensor_source import HeldTensors, TensorSource, same_tensor
from dist_metaxlm.modeling.encoder import Encoder
from dist_metaxlm.modeling.initialisation import initial_values
from dist_metaxlm.recipe.schema import ModelConfig
from dist_metaxlm.text import pluralize

__all__ = [
    "Step",
    "export_steps",
    "from_huggingface",
    "huggingface_config",
    "import_steps",
    "model_config",
    "planned",
    "to_huggingface",
    "with_fresh_head",
    "with_usual_names",
]

State = dict[str, torch.Tensor]
Convert = Callable[[list[torch.Tensor]], list[torch.Tensor]]

_TIED = {
    "lm_head.decoder.weight": "roberta.embeddings.word_embeddings.weight",
    "lm_head.decoder.bias": "lm_head.bias",
    "decoder.weight": "model.embeddings.tok_embeddings.weight",
}
_HEADS = ("lm_head.", "head.", "decoder.")
_OTHER_HEADS = ("classifier.", "qa_outputs.", "score.")
_PREFIXES = {"embeddings.word_embeddings.weight": "roberta.", "embeddings.tok_embeddings.weight": "model."}
"""Token embedding of an encoder -> prefix of the encoder in the models with a head."""
_IGNORED = ("position_ids", "token_type_ids", "roberta.pooler.dense.weight", "roberta.pooler.dense.bias")


@dataclass(frozen=True)
class Step:
    """The unit of conversion: some tensors of one side that become some of the other."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    convert: Convert | None = None
    """None: one tensor, which is only renamed."""

    def run(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        """Inputs to outputs; on meta tensors, their shapes."""
        return self.convert(tensors) if self.convert else tensors


@dataclass(frozen=True)
class _Link:
    """Some of our parameters and the Hugging Face ones with the same values."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    export: Convert | None = None
    load: Convert | None = None


def to_huggingface(state: Mapping[str, torch.Tensor], config: ModelConfig) -> State:
    """Our state -> the state of the model that `huggingface_config(config)` describes, on the same devices."""
    source = HeldTensors(state)
    return _all_at_once(source, export_steps(source, config))


def from_huggingface(hf_state: Mapping[str, torch.Tensor], config: ModelConfig) -> State:
    """A Hugging Face state -> ours, for `config = model_config(...)` of the same folder.

    UserError for missing or unknown names, shapes that contradict `config`, and heads that are not tied.
    """
    source = with_usual_names(HeldTensors(hf_state))
    return _all_at_once(source, import_steps(source, config))


def export_steps(source: TensorSource, config: ModelConfig) -> list[Step]:
    """Steps from our tensors to Hugging Face's.

    UserError if names and shapes of `source` do not match `config`, or Hugging Face has no such model.
    """
    check_exportable(config)
    steps = [Step(link.ours, link.theirs, link.export) for link in _links(config, len(list(source.keys())))]
    _check_names(set(source.keys()), {name for step in steps for name in step.inputs}, "the model state")
    _check_shapes({name: source.spec(name) for name in source.keys()}, config, "the model state")  # noqa: SIM118
    return steps


def with_usual_names(source: TensorSource) -> TensorSource:
    """`source` under the names of the models with a head, whatever the encoder's prefix is.

    An encoder saved alone has no prefix, one inside another module has an additional one (`model.roberta.`).
    """
    names = list(source.keys())
    for table, usual in _PREFIXES.items():
        prefixes = [name.removesuffix(table) for name in names if name.endswith(table)]
        if len(prefixes) == 1 and prefixes != [usual]:
            outer = prefixes[0].removesuffix(usual) if prefixes[0].endswith(usual) else ""
            renamed: dict[str, str] = {}
            for name in names:
                inner = name.startswith(prefixes[0]) and not (prefixes == [""] and name.startswith((*_HEADS, *_OTHER_HEADS)))
                plain = usual + name.removeprefix(prefixes[0]) if inner else name.removeprefix(outer)
                if plain in renamed:
                    raise UserError(f"{name} and {renamed[plain]} are both {plain}; save the masked language model alone")
                renamed[plain] = name
            return RenamedTensors(source, renamed)
    return source


def with_fresh_head(source: TensorSource, config: ModelConfig) -> TensorSource:
    """The encoder of `source` with a newly initialised masked-LM head; other heads are dropped.

    A complete masked-LM head of `source` is kept.
    """
    links = [link for link in _links(config, len(list(source.keys()))) if link.theirs[0].startswith(_HEADS)]
    given = set(_without_copies(source))
    if all(name in given for link in links for name in link.theirs):
        return source
    with torch.device("meta"):
        shapes = {name: parameter.shape for name, parameter in Encoder(config).named_parameters()}
    table = source.spec(next(name for name in source.keys() if name.endswith(tuple(_PREFIXES))))  # noqa: SIM118
    head = {
        link.theirs[0]: initial_values(link.ours[0], shapes[link.ours[0]], 0, config.init_std).to(table.dtype)
        for link in links
    }
    kept = {name: name for name in source.keys() if not name.startswith((*_HEADS, *_OTHER_HEADS))}  # noqa: SIM118
    return ExtendedTensors(RenamedTensors(source, kept), head)


def import_steps(source: TensorSource, config: ModelConfig) -> list[Step]:
    """Steps from Hugging Face's tensors to ours; raises the UserErrors of `from_huggingface` from shapes only.

    Only second copies of tied weights are read, to compare them with the first ones.
    """
    names = _without_copies(source)
    steps = [
        Step(tuple(names.get(name, name) for name in link.theirs), link.ours, link.load)
        for link in _links(config, len(names))
    ]
    expected = {name for step in steps for name in step.inputs}
    head = {name for name in expected if name.startswith(_HEADS)}
    if head - set(names.values()) and (not head & set(names.values()) or any(map(_of_another_head, names))):
        raise UserError(
            "the folder holds an encoder without the head of masked language modelling, as AutoModel and "
            "fine-tuned models are saved; give it a fresh head with --fresh_head, or give the model that it was made from, "
            "saved by AutoModelForMaskedLM"
        )
    _check_names(set(names.values()), expected, "the Hugging Face folder")
    _check_shapes(planned(source, steps), config, "the Hugging Face weights")
    return steps


def planned(source: TensorSource, steps: list[Step]) -> State:
    """Shapes and dtypes of the result of `steps` on `source`, as meta tensors; UserError if they do not fit."""
    specs: State = {}
    for step in steps:
        try:
            specs.update(zip(step.outputs, step.run([source.spec(name) for name in step.inputs]), strict=True))
        except (RuntimeError, ValueError, IndexError) as error:
            raise UserError(f"{step.inputs[0]} does not fit the configuration: {error}") from error
    return specs


def _all_at_once(source: TensorSource, steps: list[Step]) -> State:
    state: State = {}
    for step in steps:
        state.update(zip(step.outputs, step.run([source.read(name) for name in step.inputs]), strict=True))
    return state


def _without_copies(source: TensorSource) -> dict[str, str]:
    """Name in the model -> name in `source`, without buffers, poolers and second copies of tied weights.

    A copy must equal the original; if only the copy exists, it replaces the original.
    """
    names = {name: name for name in source.keys() if not name.endswith(_IGNORED)}  # noqa: SIM118 (not a dict)
    for copy, original in _TIED.items():
        if copy not in names:
            continue
        del names[copy]
        if original not in names:
            names[original] = copy
        elif not same_tensor(source, copy, original):
            raise UserError(f"{copy} differs from {original}; only models whose head is tied to the embedding are read")
    return names


def _of_another_head(name: str) -> bool:
    return name.startswith(_OTHER_HEADS)


def _check_names(given: set[str], expected: set[str], where: str) -> None:
    """UserError if names are missing or left over."""
    for problem, names in (("lacks", expected - given), ("holds unknown", given - expected)):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise UserError(
                f"{where} {problem} {', '.join(sorted(names)[:3])}{more}; "
                "check that weights and configuration belong together"
            )


def _check_shapes(specs: State, config: ModelConfig, where: str) -> None:
    """UserError if one of our tensors has another shape than in `Encoder(config)`."""
    with torch.device("meta"):
        expected = {name: parameter.shape for name, parameter in Encoder(config).named_parameters()}
    for name, shape in expected.items():
        if specs[name].shape != shape:
            raise UserError(
                f"{name} has shape {list(specs[name].shape)} in {where} and {list(shape)} in the "
                "configuration; check that weights and configuration belong together"
            )


def _links(config: ModelConfig, tensors: int) -> Iterator[_Link]:
    """All links of a model of this shape; UserError if there are too few tensors for the number of layers."""
    if config.layers > tensors:
        raise UserError(
            f"the configuration has {pluralize(config.layers, 'layer')} and the weights have "
            f"{pluralize(tensors, 'tensor')}; check that weights and configuration belong together"
        )
    yield from _modern_links(config) if config.family == "modern" else _xlmr_links(config)


def _xlmr_links(config: ModelConfig) -> Iterator[_Link]:
    post = config.norm == "post"
    pairs = {
        "embedding.tokens.weight": "roberta.embeddings.word_embeddings.weight",
        "embedding.positions.weight": "roberta.embeddings.position_embeddings.weight",
        "embedding.token_type": "roberta.embeddings.token_type_embeddings.weight",
        "head.bias": "lm_head.bias",
        **_both("head.dense", "lm_head.dense"),
        **_both("head.norm", "lm_head.layer_norm"),
        **(_both("embedding.norm", "roberta.embeddings.LayerNorm") if post else {}),
        **({} if post else _both("final_norm", "roberta.encoder.LayerNorm")),
    }
    for index in range(config.layers):
        ours, theirs = f"blocks.{index}.", f"roberta.encoder.layer.{index}."
        attention_norm = "attention.output.LayerNorm" if post else "attention.self_attn_layer_norm"
        pairs |= _both(ours + "attention.out", theirs + "attention.output.dense")
        pairs |= _both(ours + "attention_norm", theirs + attention_norm)
        pairs |= _both(ours + "mlp.up", theirs + "intermediate.dense")
        pairs |= _both(ours + "mlp.down", theirs + "output.dense")
        pairs |= _both(ours + "mlp_norm", theirs + ("output.LayerNorm" if post else "LayerNorm"))
        for kind in ("weight", "bias"):
            parts = tuple(f"{theirs}attention.self.{part}.{kind}" for part in ("query", "key", "value"))
            split, join = partial(_split_heads, heads=config.heads), partial(_join_heads, heads=config.heads)
            yield _Link((f"{ours}attention.qkv.{kind}",), parts, split, join)
    yield from (_Link((ours,), (theirs,)) for ours, theirs in pairs.items())


def _modern_links(config: ModelConfig) -> Iterator[_Link]:
    pairs = {
        "embedding.tokens.weight": "model.embeddings.tok_embeddings.weight",
        "embedding.norm.weight": "model.embeddings.norm.weight",
        "final_norm.weight": "model.final_norm.weight",
        "head.dense.weight": "head.dense.weight",
        "head.norm.weight": "head.norm.weight",
        "head.bias": "decoder.bias",
    }
    for index in range(config.layers):
        ours, theirs = f"blocks.{index}.", f"model.layers.{index}."
        pairs[ours + "attention.out.weight"] = theirs + "attn.Wo.weight"
        pairs[ours + "mlp.down.weight"] = theirs + "mlp.Wo.weight"
        pairs[ours + "mlp_norm.weight"] = theirs + "mlp_norm.weight"
        if index:
            pairs[ours + "attention_norm.weight"] = theirs + "attn_norm.weight"
        yield _Link(
            (ours + "attention.qkv.weight",),
            (theirs + "attn.Wqkv.weight",),
            lambda tensors: [torch.cat(_split_heads(tensors, config.heads))],
            lambda tensors: _join_heads(list(tensors[0].chunk(3)), config.heads),
        )
        yield _Link(
            (ours + "mlp.up.weight", ours + "mlp.gate.weight"),
            (theirs + "mlp.Wi.weight",),
            lambda tensors: [torch.cat(tensors)],
            lambda tensors: [half.contiguous() for half in tensors[0].chunk(2)],
        )
    yield from (_Link((ours,), (theirs,)) for ours, theirs in pairs.items())


def _both(ours: str, theirs: str) -> dict[str, str]:
    return {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}


def _split_heads(tensors: list[torch.Tensor], heads: int) -> list[torch.Tensor]:
    """Rows [heads, 3, D] of one tensor -> queries, keys and values, rows [heads, D] each."""
    parts = tensors[0].unflatten(0, (heads, 3, -1)).unbind(1)
    return [part.flatten(0, 1).contiguous() for part in parts]


def _join_heads(tensors: list[torch.Tensor], heads: int) -> list[torch.Tensor]:
    """Queries, keys and values, rows [heads, D] each -> one tensor with rows [heads, 3, D]."""
    return [torch.stack([part.unflatten(0, (heads, -1)) for part in tensors], dim=1).flatten(0, 2)]
