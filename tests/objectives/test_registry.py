"""An objective is one thing: one is added from outside of the package, and nothing in it asks for a type or a name."""

from __future__ import annotations

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

sys.path.insert(0, str(Path(__file__).parent))
import replaced_tokens
from replaced_tokens import ReplacedTokens

from dist_metaxlm.data.loader import PhaseData
from dist_metaxlm.data.objectives.base import DataSource
from dist_metaxlm.data.tokenizer import Tokenizer
from dist_metaxlm.data.tokens.store import TokenStore
from dist_metaxlm.errors import UserError
from dist_metaxlm.objectives.loss import ObjectiveLoss
from dist_metaxlm.planning.flops import objective_flops, training_flops
from dist_metaxlm.recipe.load import dump_recipe, load_recipe
from dist_metaxlm.recipe.objectives import registry
from dist_metaxlm.recipe.objectives.base import Objective
from dist_metaxlm.recipe.schema import MaskedLM, ModelConfig, WindowObjective

ROOT = Path(__file__).resolve().parents[2]
TOY = Path(replaced_tokens.__file__)
OBJECTIVES = "phases.joint.objectives=[{name: mlm, batch_tokens: 256}, {name: rtd, batch_tokens: 256, weight: 2.0}]"
STEPS = 10


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """The toy objective, in this process and for one test."""
    registry.names()
    monkeypatch.setattr(registry, "_ENTRIES", dict(registry._ENTRIES))
    replaced_tokens.register()


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The toy objective as an installed package, for the processes that a test starts."""
    site = tmp_path / "site"
    site.mkdir()
    shutil.copy(TOY, site)
    info = site / "replaced_tokens-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: replaced-tokens\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dist_metaxlm.objectives]\nrtd = replaced_tokens:register\n")
    monkeypatch.setenv("PYTHONPATH", str(site))
    return site


def curve(run_dir: Path) -> list[tuple[float, float]]:
    """(loss, its part of the toy objective) of every step."""
    lines = (run_dir / "joint" / "metrics.jsonl").read_text().splitlines()
    return [(record["loss"], record["losses"]["rtd"]) for record in map(json.loads, lines)]


def test_an_installed_objective_trains_over_a_pipeline_and_is_planned(
    installed: Path, tiny_recipe: Path, tmp_path: Path, run_ranks: Callable[..., str]
) -> None:
    common = ["--phase", "joint", "--recipe", tiny_recipe, OBJECTIVES, f"phases.joint.steps={STEPS}"]
    common += ["training.log_interval=1", "training.checkpoint_interval=50", "phases.joint.learning_rate.peak=0.01"]
    layouts = {"one": (1, []), "stages": (2, ["parallel.pipeline=2"])}
    for name, (ranks, layout) in layouts.items():
        run_ranks(ranks, ROOT / "launch/pretrain.py", *common, "--run_dir", tmp_path / name, *layout)
    one, stages = curve(tmp_path / "one"), curve(tmp_path / "stages")
    assert len(one) == len(stages) == STEPS
    for expected, found in zip(one, stages, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)
    assert one[-1][1] < 0.8 * one[0][1], "the loss of the toy objective does not fall"

    command = [
        sys.executable,
        ROOT / "launch/plan.py",
        "--recipe",
        tiny_recipe,
        "--cluster",
        "1x2xH100",
        "--json",
        OBJECTIVES,
    ]
    planned = json.loads(subprocess.run(command, check=True, text=True, capture_output=True).stdout)
    assert {layout["pipeline"] for layout in planned["layouts"]} == {1, 2}
    assert all(layout["memory"]["activations"] > 0 for layout in planned["layouts"])
    with_it = planned["phases"]["joint"]
    command[-1] = OBJECTIVES.replace(", {name: rtd, batch_tokens: 256, weight: 2.0}", "")
    without = json.loads(subprocess.run(command, check=True, text=True, capture_output=True).stdout)["phases"]["joint"]
    assert with_it["tokens_per_step"] == 2 * without["tokens_per_step"]
    assert with_it["flops"] > without["flops"] > 0


def test_a_package_whose_entry_point_fails_is_named(installed: Path) -> None:
    (installed / "replaced_tokens.py").write_text("def register(): raise RuntimeError('no such thing')\n")
    command = [sys.executable, ROOT / "launch/plan.py", "--recipe", "quickstart", "--cluster", "1x2xH100"]
    ended = subprocess.run(command, text=True, capture_output=True)
    assert ended.returncode == 2
    assert "objectives of replaced-tokens (entry point rtd = replaced_tokens:register)" in ended.stderr
    assert "RuntimeError: no such thing" in ended.stderr


def test_its_configuration_goes_through_a_recipe(registered: None, tiny_recipe: Path, tmp_path: Path) -> None:
    recipe = load_recipe(tiny_recipe, [OBJECTIVES, "phases.joint.objectives.rtd.rate=0.25"])
    toy = recipe.phases["joint"].objectives[1]
    assert isinstance(toy, ReplacedTokens)
    assert (toy.rate, toy.weight) == (0.25, 2.0)
    (tmp_path / "dumped.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "dumped.yaml") == recipe
    with pytest.raises(UserError, match=r"objectives.1.rtd.rat, did you mean rate\?"):
        load_recipe(tiny_recipe, [OBJECTIVES, "phases.joint.objectives.rtd.rat=0.25"])
    with pytest.raises(UserError, match=r"rtd batch_tokens 250 is not a multiple of sequence_length 32; nearest: 256"):
        load_recipe(tiny_recipe, [OBJECTIVES, "phases.joint.objectives.rtd.batch_tokens=250"])


def test_its_samples_depend_on_their_number_alone(registered: None, tiny_recipe: Path) -> None:
    recipe = load_recipe(tiny_recipe, [OBJECTIVES])
    phase = recipe.phases["joint"]
    tokenizer = Tokenizer.load(f"{recipe.data.directory}/tokenizer.model")
    data = PhaseData(TokenStore.open(f"{recipe.data.directory}/store"), tokenizer, "joint", phase, recipe.seed)
    toy = phase.objectives[1]
    whole, part = data.batch(toy, 10, 40), data.batch(toy, 30, 1)
    assert whole.tokens[20 * 32 : 21 * 32].tolist() == part.tokens.tolist()
    assert 0.08 < whole.targets.numel() / whole.tokens.numel() < 0.16
    assert (whole.tokens[whole.targets] != whole.target_tokens).all()


def test_flops_are_those_of_its_passes(registered: None) -> None:
    model = ModelConfig(layers=2, hidden=32, heads=2, ffn=64, vocab_size=380)
    encoder = training_flops(model, 256, 256 * 32, 0)
    assert objective_flops(model, ReplacedTokens(batch_tokens=256), 32, 0.2) == encoder + 6 * 256 * 32


def test_an_unknown_name_is_told_with_the_nearest(tiny_recipe: Path) -> None:
    with pytest.raises(UserError, match=r"'contrst' is no objective, did you mean contrast\? objectives are mlm, tlm"):
        load_recipe(tiny_recipe, ["phases.joint.objectives=[{name: contrst, batch_tokens: 256}]"])
    with pytest.raises(UserError, match="an objective is a section with a name: mlm, tlm"):
        load_recipe(tiny_recipe, ["phases.joint.objectives=[{batch_tokens: 256}]"])


def test_every_entry_names_classes_that_exist() -> None:
    for name in registry.names():
        entry = registry.entry(name)
        assert issubclass(entry.load_data(), DataSource)
        assert issubclass(entry.load_loss(), ObjectiveLoss)
        assert registry.configuration(name) is entry.configuration


def test_what_cannot_be_registered_is_refused(registered: None) -> None:
    class Other(MaskedLM):
        """Another one under a known name."""

    class Nameless(WindowObjective):
        """Without a default."""

    class Spaced(WindowObjective):
        """With a name that no override could address."""

        name: Literal["a b"] = "a b"

    class Heavy(WindowObjective):
        """Parameters of its own, and every layout."""

        name: Literal["heavy"] = "heavy"

        def own_parameters(self, model: ModelConfig) -> int:
            return model.hidden

    for configuration, words in (
        (Other, "mlm is registered already, with dist_metaxlm.recipe.objectives.masked_lm.MaskedLM"),
        (Nameless, "not a lower-case identifier"),
        (Spaced, "'a b' is not a lower-case identifier"),
        (Heavy, "defines own_parameters and needs_whole_model is False"),
    ):
        with pytest.raises(ValueError, match=words):
            registry.register(configuration, "a:B", "a:C")
    with pytest.raises(ValueError, match='not of the form "module:Class"'):
        registry.register(ReplacedTokens, "a.B", "a:C")


def test_planning_imports_no_torch() -> None:
    code = (
        "import sys; from dist_metaxlm.planning.cluster import parse_cluster; "
        "from dist_metaxlm.planning.plan import plan; from dist_metaxlm.planning.plan_table import summary; "
        "from dist_metaxlm.recipe.load import load_recipe; r = load_recipe('quickstart'); "
        "c = parse_cluster('1x2xH100'); plan(r, c); summary(r, c); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


OWN_FOLDERS = ("dist_metaxlm/recipe/objectives", "dist_metaxlm/data/objectives", "dist_metaxlm/objectives")
OUTSIDE = [
    path
    for folder in ("dist_metaxlm", "kernels", "launch")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if not str(path.relative_to(ROOT)).startswith(OWN_FOLDERS)
]


def configuration_classes() -> set[str]:
    """Names of `Objective` and all of its subclasses in the package."""
    classes = [Objective]
    for one in classes:
        classes += [sub for sub in one.__subclasses__() if sub.__module__.startswith("dist_metaxlm.")]
    return {one.__name__ for one in classes}


def questions(source: str, classes: set[str], names: set[str]) -> list[str]:
    """Places that ask for the type of an objective, compare its name, or look something up by it."""
    asked = []
    for node in ast.walk(ast.parse(source)):
        inside = [part for part in ast.walk(node) if isinstance(part, ast.Constant) and part.value in names]
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
            types = {part.id for argument in node.args[1:] for part in ast.walk(argument) if isinstance(part, ast.Name)}
            direct = any(isinstance(argument, ast.Constant) and argument.value in names for argument in node.args)
            wrong = (called in ("isinstance", "issubclass") and types & classes) or (called in ("get", "pop") and direct)
        elif isinstance(node, ast.Compare):
            compared = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)}
            wrong = inside or (compared & classes and "type" in compared)
        else:
            wrong = isinstance(node, ast.Subscript | ast.MatchValue | ast.MatchClass) and inside
        if wrong:
            asked.append(f"line {node.lineno}: {ast.unparse(node)}")
    return asked


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_else_asks_for_a_type_or_a_name(path: Path) -> None:
    assert questions(path.read_text(encoding="utf-8"), configuration_classes(), set(registry.names())) == []


@pytest.mark.parametrize(
    "line",
    [
        "isinstance(one, Contrast | MaskedLM)",
        "type(one) is Contrast",
        "one.name == 'mlm'",
        "one.name in ('tlm', 'dwa')",
        "losses['mlm']",
        "losses.get('mlm')",
    ],
)
def test_the_search_for_such_questions_finds_them(line: str) -> None:
    assert {"Contrast", "MaskedLM", "PairObjective"} <= configuration_classes()
    assert questions(line, configuration_classes(), set(registry.names()))


def test_the_how_to_page_shows_this_example() -> None:
    page = (ROOT / "docs/how-to/add-an-objective.md").read_text(encoding="utf-8")
    code = page.split("```python\n")[1].split("```")[0]
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(TOY.read_text(encoding="utf-8")))
