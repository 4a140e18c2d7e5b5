"""What a run, finished or old, suffers from: what `t2drl diagnose` does, and the last lines of training."""

from __future__ import annotations

from pathlib import Path

from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.diagnosis import MEANINGS, WHERE, Progress, diagnose, signatures, unset
from lightning_t2drl.run.compose import Composed
from lightning_t2drl.run.evaluate import load_policies
from lightning_t2drl.run.loggers import EVALUATIONS, read_csv
from lightning_t2drl.run.screen import console

CLEAN = "no failure signature: utility did not fall, and hits and late users are near the references"


def run_diagnosis(composed: Composed) -> dict[str, float]:
    """Measure a checkpoint's policies, print what was found and what it means; writes nothing.

    Raises:
        UserError: there is no checkpoint, or it cannot be used.
    """
    if composed.checkpoint is None:
        raise UserError("checkpoint: missing; name a run: t2drl diagnose runs/a")
    config, screen, path = composed.config, console(), composed.checkpoint[0]
    _, scenario, cacher, allocator = load_policies(composed)
    measured = diagnose(scenario, cacher, allocator, config.seed, config.worlds)
    screen.print(WHERE)
    for name, value in measured.items():
        screen.print(f"{value:7.3f}  {name}: {MEANINGS[name]}", soft_wrap=True, highlight=False)
    for line in signatures(measured, curve_of(path.resolve().parent.parent), unset(cacher, allocator)) or [CLEAN]:
        screen.print(line, soft_wrap=True)
    return measured


def curve_of(directory: Path) -> list[Progress]:
    """A run's evaluations, as far as its directory holds them."""
    path = directory / EVALUATIONS
    rows = read_csv(path)[1] if path.exists() else []
    try:
        return [Progress(int(row["frame"]), float(row["utility"])) for row in rows if row.get("utility")]
    except ValueError as error:
        raise UserError(f"{path}: a frame or a utility in it is no number ({error})") from None
