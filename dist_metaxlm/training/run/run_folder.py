"""The folder of a run: recipe of each phase, whether it is finished, and which fields may change on resuming."""

from __future__ import annotations

import json
import platform
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import TypedDict, cast

from dist_metaxlm.deepspeed_adapter.config_files import lost_settings, result_settings
from dist_metaxlm.errors import UserError
from dist_metaxlm.recipe.load import dump_recipe, load_recipe
from dist_metaxlm.recipe.origins import source_of
from dist_metaxlm.recipe.phases import flatten
from dist_metaxlm.recipe.schema import Recipe
from dist_metaxlm.reporting.metrics import json_lines
from dist_metaxlm.storage.atomic import write_text
from dist_metaxlm.text import pluralize
from dist_metaxlm.training.checkpointing.manifest import list_steps, step_folder, write_json
from dist_metaxlm.training.run.environment import environment

CHANGEABLE = re.compile(r"phases\.[\w-]+\.(steps|tokens|learning_rate(\..+)?)|optimizer\..+|training\.guards\..+")
"""Fields that may change when a phase continues: they affect neither the model nor the order of the text."""
SHOWN = 5
"""Maximum number of differing fields that a message names."""


Changes = dict[str, list[object]]
"""Field -> [value before, value now]."""


class Finished(TypedDict):
    """done.json of a phase."""

    steps: int
    tokens: int
    seconds: float
    loss: float | None
    """Last logged, as `losses` by objective."""
    losses: dict[str, float]
    ranks: int


class PhaseFolder:
    """runs/NAME/PHASE: recipe.yaml, metrics.jsonl, tensorboard/, checkpoints/, done.json."""

    def __init__(self, run_dir: str | Path, phase: str) -> None:
        self.run_dir, self.phase = Path(run_dir), phase
        self.path = self.run_dir / phase
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"

    @property
    def finished(self) -> Finished | None:
        """Facts of the finished phase, or None while it is unfinished."""
        path = self.path / "done.json"
        try:
            return cast(Finished, dict(json.loads(path.read_text(encoding="utf-8")))) if path.is_file() else None
        except (ValueError, TypeError):
            raise UserError(
                f"{path} is damaged; delete it and give the same command again, which resumes from the last checkpoint"
            ) from None

    def check(self, recipe: Recipe, step: int = 0, change: bool = False) -> Changes:
        """Check that `recipe` continues the training that the phase was started with; writes nothing.

        Layout, logging and saving may change. Fields that affect the result may not, because the loss curve would mix two
        experiments. With `change`, length, learning rate and optimiser (`CHANGEABLE`) may change from `step` on.

        Returns:
            The fields that would be changed, as [before, now].

        Raises:
            UserError: naming the fields that differ.
        """
        path = self.path / "recipe.yaml"
        if not path.is_file():
            return {}
        recorded = load_recipe(path)
        lost = [] if change else lost_settings(recorded, recipe)
        if lost:
            raise UserError(
                f"{self.path} was trained with the DeepSpeed settings {', '.join(lost)}, and this start has none of its "
                f"own; give the file again as --deepspeed_config, or --recipe {path}, which has them, or add --change to "
                "continue without them"
            )
        before, now = (_learning_part(r, self.phase) for r in (recorded, recipe))
        changed = {key: [before.get(key), now.get(key)] for key in {**before, **now} if before.get(key) != now.get(key)}
        if changed:
            self._check_changes(changed, step, recipe, change)
        return changed

    def start(self, recipe: Recipe, step: int = 0, change: bool = False) -> Changes:
        """Create the folder, or continue in it with the changes; arguments and errors as in `check`.

        With a change the phase counts as unfinished, and changes.jsonl records the changes and the step.
        """
        changed = self.check(recipe, step, change)
        if changed:
            (self.path / "done.json").unlink(missing_ok=True)
            with (self.path / "changes.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step, "changed": changed}) + "\n")
        self.path.mkdir(parents=True, exist_ok=True)
        for folder in (self.path, self.run_dir):
            write_text(folder / "recipe.yaml", dump_recipe(recipe))
        write_json(self.run_dir / "environment.json", {**environment(), "host": platform.node()})
        return changed

    def _check_changes(self, changed: Changes, step: int, recipe: Recipe, change: bool) -> None:
        fixed = [key for key in changed if not CHANGEABLE.fullmatch(key)]
        if fixed or not change:
            named = [f"{key} was {changed[key][0]}, now {changed[key][1]}" for key in fixed or changed]
            more = f"; and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
            go_on = "" if fixed else "add --change to continue with the new ones, "
            raise UserError(
                f"{self.path} was started with another recipe: {'; '.join(named[:SHOWN])}{more}; resume with "
                f"the old values (all are in {self.path / 'recipe.yaml'}), {go_on}or start from scratch with "
                "--resume never or another --run_dir"
            )
        phase = recipe.phase(self.phase)
        total, caps = (
            phase.total_steps,
            [name for name in ("max_repetitions", "pair_max_repetitions") if getattr(phase, name) is not None],
        )
        lengths = [key for key in changed if key.endswith((".steps", ".tokens"))]
        if lengths and caps:  # a cap's excess share is spread over the whole phase, from its first step on
            raise UserError(
                f"{lengths[0]} was {changed[lengths[0]][0]}, now {changed[lengths[0]][1]}, and with "
                f"phases.{self.phase}.{caps[0]} the length decides which text every step uses, also those that "
                "are done; keep the length, or start from scratch with --resume never or another --run_dir"
            )
        if total <= step:
            raise UserError(
                f"{self.path} would resume after step {step}, but the recipe gives the phase only "
                f"{pluralize(total, 'step')}; set more steps, or resume from an earlier checkpoint with --resume STEP"
            )

    def set_aside(self) -> None:
        """Rename the existing folder, so that the phase starts from scratch and nothing is lost."""
        if self.path.exists():
            self.path.rename(self.path.with_name(f"{self.phase}-until-{_stamp()}"))

    def go_back(self, step: int) -> list[str]:
        """Reset the phase to `step`: unfinished, without later checkpoints; returns a log line about these.

        Later checkpoints are moved aside. Otherwise they would be the newest: the next resume would use them, and they would
        be kept instead of the new ones.
        """
        (self.path / "done.json").unlink(missing_ok=True)
        later = [number for number in list_steps(self.checkpoints) if number > step]
        if not later:
            return []
        aside = self.path / f"checkpoints-after-{step}-until-{_stamp()}"
        aside.mkdir()
        for number in later:
            step_folder(self.checkpoints, number).rename(step_folder(aside, number))
        return [f"checkpoints of steps {', '.join(map(str, later))} are now in {aside}"]

    def cut_metrics(self, step: int) -> None:
        """Drop metric lines after `step`: a resumed run writes them again."""
        if not self.metrics.is_file():
            return
        kept = []
        for line in json_lines(self.metrics):
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                continue  # a line that a kill has truncated
        write_text(self.metrics, "".join(f"{line}\n" for line in kept))

    def finish(self, facts: Finished) -> None:
        """Mark the phase as finished."""
        write_json(self.path / "done.json", facts)


def read_recipe(path: Path, data_directory: str | None = None) -> Recipe:
    """A recipe that a run wrote, with the prepared data at `data_directory` if they were moved."""
    recipe = load_recipe(path)
    moved = {} if data_directory is None else {"directory": data_directory}
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=moved)})


def _stamp() -> str:
    return datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")


def _learning_part(recipe: Recipe, phase: str) -> dict[str, object]:
    tree = recipe.model_dump(mode="json")
    parts = {key: tree[key] for key in ("seed", "model", "data", "optimizer")}
    parts["training"] = {"guards": tree["training"]["guards"]}
    del tree["data"]["directory"]  # prepared data may move; their sources and tokenizer are compared
    own = tree["phases"][phase]
    if source_of(recipe, phase) is not None and own["carry_over"] is None:
        parts["carry_over"] = tree["carry_over"]
    learnt = flatten({**parts, "phases": {phase: own}})
    return learnt | {f"deepspeed.{place}": value for place, value in result_settings(recipe).items()}
