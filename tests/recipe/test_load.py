from __future__ import annotations

from pathlib import Path

import pytest

from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import dump_recipe, load_recipe
from dist_metaxlm.recipe.phases import phase_difference
from dist_metaxlm.recipe.schema import Contrast, CrossLingualContrast, MaskedLM
from dist_metaxlm.recipe.yaml_text import read_yaml


def test_overrides_reach_nested_fields_and_objectives() -> None:
    recipe = load_recipe(
        "quickstart",
        [
            "seed=7",
            "phases.meta.learning_rate.peak=1e-3",
            "phases.meta.steps=20",
            "phases.cross.objectives.contrast.temperature=0.1",
            "phases.meta.languages=[en, de]",
        ],
    )
    assert recipe.seed == 7
    meta, cross = recipe.phases["meta"], recipe.phases["cross"]
    assert (meta.learning_rate.peak, meta.steps, meta.languages) == (1e-3, 20, ["en", "de"])
    assert next(o for o in cross.objectives if isinstance(o, Contrast)).temperature == 0.1


def test_steps_replace_tokens() -> None:
    recipe = load_recipe("quickstart", ["phases.meta.tokens=81920"])
    batch = next(o.batch_tokens for o in recipe.phases["meta"].objectives if isinstance(o, MaskedLM))
    assert recipe.phases["meta"].steps is None
    assert recipe.phases["meta"].total_steps == -(-81920 // batch)


def test_tokens_of_drawn_objectives_count_what_a_step_takes_on_average() -> None:
    drawn = load_recipe(
        "quickstart",
        [
            "phases.cross.mixing=draw",
            "phases.cross.tokens=819200",
            "phases.cross.objectives=[{name: mlm, batch_tokens: 2048, "
            "weight: 3}, {name: tlm, batch_tokens: 4096}, {name: contrast, pairs: 64, group: 64, layer: 3, weight: 4}]",
        ],
    )
    assert drawn.phases["cross"].tokens_per_step == (3 * 2048 + 4096) // 8
    assert drawn.phases["cross"].total_steps == 640


def test_dump_and_load_give_the_same_recipe(tmp_path: Path) -> None:
    recipe = load_recipe("quickstart", ["name='1e-3'", "data.directory='010'"])
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe


def test_all_unknown_keys_are_reported_at_once_with_the_nearest_name() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(
            "quickstart",
            [
                "phases.meta.stepps=3",
                "model.hiden=3",
                "optimizer.beta3=0.1",
                "sead=1",
                "phases.cross.objectives.contrast.temprature=1",
            ],
        )
    message = str(caught.value)
    for unknown, near in (
        ("phases.meta.stepps", "steps"),
        ("model.hiden", "hidden"),
        ("optimizer.beta3", "beta"),
        ("sead", "seed"),
        ("temprature", "temperature"),
    ):
        assert unknown in message
        assert f"did you mean {near}" in message


SHARED = """
name: shared
model: {layers: 1, hidden: 8, heads: 1, ffn: 8, vocab_size: 400}
data: {directory: data}
phases:
  defaults: {sequence_length: 64, learning_rate: {peak: 1e-3, schedule: cosine, warmup_steps: 3}}
  meta: &meta
    steps: 6
    languages: [en]
    objectives: [{name: mlm, batch_tokens: 512}]
  cross: *meta
  joint: {<<: *meta, languages: all}
"""


def test_an_override_changes_one_phase_where_phases_share_an_anchor(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SHARED)
    recipe = load_recipe(
        tmp_path / "shared.yaml",
        ["phases.cross.steps=20", "phases.cross.objectives.mlm.batch_tokens=1024", "phases.joint.objectives.mlm.weight=2"],
    )
    found = {name: (phase.steps, phase.objectives[0].weight, phase.tokens_per_step) for name, phase in recipe.phases.items()}
    assert found == {"meta": (6, 1.0, 512), "cross": (20, 1.0, 1024), "joint": (6, 2.0, 512)}


def test_an_override_changes_one_field_of_what_the_defaults_give(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SHARED)
    phases = load_recipe(tmp_path / "shared.yaml", ["phases.meta.learning_rate.peak=5"]).phases
    assert phases["meta"].learning_rate == phases["cross"].learning_rate.model_copy(update={"peak": 5.0})
    assert (phases["cross"].learning_rate.peak, phases["cross"].learning_rate.warmup_steps) == (1e-3, 3)


def test_a_phase_that_sets_the_peak_keeps_the_warm_up_of_the_defaults(tmp_path: Path) -> None:
    (tmp_path / "shared.yaml").write_text(SHARED.replace("    steps: 6\n", "    steps: 6\n    learning_rate: {peak: 2}\n"))
    rate = load_recipe(tmp_path / "shared.yaml").phases["cross"].learning_rate
    assert (rate.peak, rate.schedule, rate.warmup_steps) == (2.0, "cosine", 3)


def test_an_empty_phase_is_made_of_the_defaults(tmp_path: Path) -> None:
    length = "{steps: 2, objectives: [{name: mlm, batch_tokens: 64}], sequence"
    text = SHARED.split("  meta:")[0].replace("{sequence", length)
    (tmp_path / "shared.yaml").write_text(f"{text}  meta:\n")
    assert load_recipe(tmp_path / "shared.yaml").phases["meta"].steps == 2
    (tmp_path / "shared.yaml").write_text(text)
    with pytest.raises(UserError, match="phases is empty; give at least one, such as meta, cross or joint"):
        load_recipe(tmp_path / "shared.yaml")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("text: {en: {files: [a.txt], weight: 2}}", "write en: {web: {files: ...}}, or en: [...]"),
        (
            "text: {en: {web: [a.txt]}}",
            "data.text.en.web is a list instead of a section with the keys files, weight, format, text_field",
        ),
        ("text: {en: }", "en names no files; write en: [...]"),
        ("text: {12: [a.txt]}", "data.text.12: Input should be a valid string (got 12); put it in quotes"),
        ("text: {en: {web: {files: [a.txt], weight: .inf}}}", "data.text.en.web.weight: Input should be a finite number"),
        ("bitext: {en-en: [a.tsv]}", "bitext key 'en-en' is not a pair of two language codes such as 'en-fr'"),
        ("bitext: {en-fr: {moses: [a.en, a.fr]}}", "write en-fr: [{moses: ...}]"),
        ("bitext: {en-fr: [{mose: [a.en, a.fr]}]}", "unknown key data.bitext.en-fr.files.0.mose, did you mean moses"),
        (
            "reading: {pair_columns: [0, 1]}",
            "data.reading.pair_columns.0: Input should be greater than or equal to 1 (got 0)",
        ),
        ("reading: {pair_columns: [2, 2]}", "reading.pair_columns [2, 2] names one column for both sides"),
        ("cleaning:", "data.cleaning is empty instead of a section with the keys unicode, control_characters"),
        ("cleaning: {deduplicate: lines}", "deduplicate is 'lines' instead of a list; write deduplicate: [...]"),
    ],
)
def test_mistakes_in_the_data_section_are_told_in_words(tmp_path: Path, data: str, words: str) -> None:
    (tmp_path / "shared.yaml").write_text(SHARED.replace("data: {directory: data}", f"data:\n  directory: data\n  {data}"))
    with pytest.raises(UserError) as caught:
        load_recipe(tmp_path / "shared.yaml")
    assert words in str(caught.value)
    assert "Input should be a valid dictionary" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.heads=5", "not a multiple of heads 5"),
        ("model.norm_type=batch", "model.norm_type"),
        ("parallel.sequence=true", "set parallel.sequence=false"),
        ("phases.meta.objectives.mlm.batch_tokens=1000", "nearest: 1024"),
        ("phases.cross.objectives.contrast.group=100", "not a multiple of group 100"),
        ("phases.cross.objectives.contrast.layer=9", "more than model.layers 4"),
        ("phases.cross.objectives=[{name: dwa, batch_tokens: 1280, layer: 5}]", "dwa.layer 5 is more than model.layers 4"),
        ("phases.cross.objectives=[{name: dwa, batch_tokens: 1000, layer: 2}]", "dwa batch_tokens 1000 is not a multiple"),
        ("phases.cross.objectives=[{name: dwa, batch_tokens: 1280, leyer: 2}]", "did you mean layer"),
        ("model.max_positions=64", "more than model.max_positions 64"),
        ("data.max_pair_tokens=256", "max_pair_tokens 256 is more than phases.cross.sequence_length 128"),
        ("phases.cross.unlock=[{tokens: 5, languges: [de]}]", "did you mean languages"),
        ("phases.cross.alpha=1.5", "alpha 1.5 is not between 0"),
        ("phases.cross.pair_alpha=[]", "pair_alpha is an empty schedule"),
        ("training.checkpoint_interval=15", "not a multiple of log_interval"),
        ("phases.other.steps=3", "phases are meta, cross, joint"),
        ("nonsense", "not of the form key=value"),
        ("phases.cross.objectives.electra.weight=1", "there is mlm, tlm, contrast"),
        ("model.layers=many", "model.layers"),
        ("model=null", "model is empty instead of a section with the keys family, norm"),
        ("phases.meta.languages.0=fr", "phases.meta.languages is a list; give all of it, phases.meta.languages=[...]"),
        ("phases.meta.objectives.mlm=3", "set a field of it, phases.meta.objectives.mlm.FIELD=..."),
        ("phases.meta.steps.most=1", "phases.meta.steps is a value, not a section; give all of it, phases.meta.steps=..."),
        ("phases.meta.max_repetitions=inf", "phases.meta.max_repetitions"),
    ],
)
def test_contradictions_are_refused_in_words(override: str, words: str) -> None:
    with pytest.raises(UserError, match="recipe quickstart") as caught:
        load_recipe("quickstart", [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_norm_without_bias_is_for_the_modern_family() -> None:
    words = "rms is for family modern, whose norms have no bias, not for xlmr; set norm_type: layer"
    with pytest.raises(UserError, match=words):
        load_recipe("quickstart", ["model.family=xlmr", "model.norm_type=rms"])


XLCO = "phases.cross.objectives=[{{name: mlm, batch_tokens: 2048}}, {{name: xlco, {}}}]"


@pytest.mark.parametrize(
    ("fields", "override", "words"),
    [
        (
            "pairs: 64, layer: 3, queue: 9",
            "parallel.tensor=2",
            "needs the whole model on every rank; set parallel.tensor=1, or leave the objective out",
        ),
        (
            "pairs: 64, layer: 3, queue: 9",
            "parallel.pipeline=2",
            "parallel.pipeline=2 does not go with xlco in phases.cross",
        ),
        (
            "pairs: 64, layer: 3, queue: 9",
            "parallel.zero_stage=3",
            "parallel.zero_stage=3 does not go with xlco in phases.cross",
        ),
        ("pairs: 65, layer: 3", "seed=1", "pairs 65 is odd, and mixup: order makes an example of two; nearest: 66"),
        (
            "pairs: 64, layer: 3, max_tokens: 65",
            "seed=1",
            "xlco.max_tokens 65 (two together) is more than sequence_length 128",
        ),
        ("pairs: 64, layer: 3, group: 24", "seed=1", "pairs 64 is not a multiple of group 24; nearest: 72"),
        ("pairs: 64, layer: 3, group: 1", "seed=1", "xlco.group"),
        ("pairs: 64, layer: 3, queue: 0", "seed=1", "queue 0 without group leaves no negatives; set group"),
        (
            "pairs: 70, layer: 3, group: 35",
            "seed=1",
            "group 35 is odd, and mixup: order makes an example of two; nearest: 36",
        ),
        ("pairs: 64, layer: 5", "seed=1", "xlco.layer 5 is more than model.layers 4"),
        ("pairs: 64, layer: 3, momentun: 0.9", "seed=1", "did you mean momentum"),
        ("pairs: 64, layer: 3, momentum: 1.0", "seed=1", "momentum"),
        (
            "pairs: 64, layer: 3, mixup: both",
            "seed=1",
            "xlco.mixup: Input should be 'none', 'order' or 'sides' (got 'both')",
        ),
    ],
)
def test_xlco_is_refused_in_words(fields: str, override: str, words: str) -> None:
    with pytest.raises(UserError, match="recipe quickstart") as caught:
        load_recipe("quickstart", [XLCO.format(fields), override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_xlco_begins_with_infoxlms_values() -> None:
    recipe = load_recipe("quickstart", [XLCO.format("pairs: 64, layer: 3, max_tokens: 48")])
    xlco = recipe.phases["cross"].objectives[1]
    assert isinstance(xlco, CrossLingualContrast)
    assert (xlco.queue, xlco.momentum, xlco.temperature, xlco.weight, xlco.mask_rate) == (131072, 0.9999, 0.25, 1.0, 0.15)
    assert (xlco.normalise, xlco.projection, xlco.mixup, xlco.examples) == (False, True, "order", 32)
    assert xlco.group is None
    assert recipe.whole_model
    assert not load_recipe("quickstart").whole_model


@pytest.mark.parametrize(
    "override",
    [
        "phases.meta.steps=true",
        "seed=false",
        "phases.cross.alpha=true",
        "training.probe_interval=false",
        "phases.cross.objectives.mlm.weight=true",
    ],
)
def test_a_flag_is_no_number(override: str) -> None:
    with pytest.raises(UserError, match=rf"{override.split('=')[0].split('.')[-1]} is a number, not (true|false)"):
        load_recipe("quickstart", [override])
    assert load_recipe("quickstart", ["parallel.offload_optimizer=true"]).parallel.offload_optimizer is True


def test_pipeline_with_zero_2_names_the_legal_layout() -> None:
    with pytest.raises(UserError, match=r"takes ZeRO-0 or 1; set parallel\.zero_stage=1"):
        load_recipe("quickstart", ["parallel.pipeline=2", "parallel.zero_stage=2"])


@pytest.mark.parametrize("layout", ["tensor", "pipeline", "zero_stage"])
def test_denoising_word_alignment_refuses_what_it_does_not_work_with(layout: str) -> None:
    with pytest.raises(UserError, match=rf"parallel.{layout}=2 does not go with dwa in .* set parallel.{layout}=1"):
        load_recipe(
            "quickstart", ["phases.cross.objectives=[{name: dwa, batch_tokens: 1280, layer: 2}]", f"parallel.{layout}=2"]
        )


def test_unknown_recipe_suggests_a_shipped_one(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean quickstart"):
        load_recipe("quikstart")
    broken = tmp_path / "broken.yaml"
    broken.write_text("name: [", encoding="utf-8")
    with pytest.raises(UserError, match="is not YAML"):
        load_recipe(broken)
    broken.write_bytes(b"name: \xff\xfe")
    with pytest.raises(UserError, match="not UTF-8 at byte 6"):
        load_recipe(broken)


def test_an_unknown_phase_is_one_problem() -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("quickstart", ["phases.met.steps=3", "seed=2"])
    assert str(caught.value) == "recipe quickstart: unknown phase 'met', did you mean meta? phases are meta, cross, joint"
    with pytest.raises(UserError, match=r"^there is no file mine\.yaml; correct the path \(it is relative to "):
        load_recipe("mine.yaml")


def test_yaml_as_a_recipe_means_it(tmp_path: Path) -> None:
    recipe = load_recipe(
        "quickstart",
        [
            "phases.cross.languages=[no, en, on]",
            "phases.cross.tokens=1e6",
            "phases.cross.whole_words=true",
            "name=2026-11-22",
        ],
    )
    cross = recipe.phases["cross"]
    assert (cross.languages, cross.tokens, cross.whole_words) == (["no", "en", "on"], 1_000_000, True)
    path = tmp_path / "again.yaml"
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    assert load_recipe(path) == recipe
    assert read_yaml("{no: 1, a: .5, b: 2_000, c: -1E+3, d: 'no', e: null}") == {
        "no": 1,
        "a": 0.5,
        "b": 2000,
        "c": -1000.0,
        "d": "no",
        "e": None,
    }
    assert read_yaml("[010, 1:30, 0x10, -1_000, 0]") == ["010", "1:30", 16, -1000, 0]  # not eight and ninety
    assert read_yaml("a: &x {k: 1}\nb: {<<: *x, k: 2}") == {"a": {"k": 1}, "b": {"k": 2}}
    path.write_text("name: x\nmodel: {layers: 2,\n  hidden: 8, layers: 3}\n", encoding="utf-8")
    with pytest.raises(UserError, match=r"layers occurs twice in a section, first in line 2 and again.*line 3"):
        load_recipe(path)


def test_difference_between_phases() -> None:
    recipe = load_recipe("quickstart")
    rows = {key: (old, new) for key, old, new in phase_difference(recipe, "meta", "cross")}
    assert rows["languages"] == (["en"], "all")
    assert rows["objectives.contrast.pairs"][0] is None
    assert "sequence_length" not in rows


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ("{en: 1.5}", "shares.en 1.5 is not between 0 and 1"),
        ("{en: 0.6, de: 0.5}", "shares add up to 1.1"),
        ("{fr: 0.5}", "shares names fr, which is not in languages"),
    ],
)
def test_shares_leave_something_for_the_others(shares, message):
    with pytest.raises(UserError, match=message):
        load_recipe("quickstart", ["phases.cross.languages=[en, de]", f"phases.cross.shares={shares}"])


def test_a_phase_is_looked_up_by_name_and_an_unknown_one_is_refused() -> None:
    recipe = load_recipe("quickstart")
    assert recipe.phase("meta") is recipe.phases["meta"]
    with pytest.raises(UserError, match="quickstart has no phase 'mata', did you mean meta\\? it has meta, cross, joint"):
        recipe.phase("mata")
