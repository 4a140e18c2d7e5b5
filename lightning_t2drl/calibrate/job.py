"""Measure a generative model and write its service profile: what `t2drl calibrate` does."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.progress import Progress

from lightning_t2drl.calibrate.fit import Fit, fit_curve
from lightning_t2drl.calibrate.profile import as_yaml, draw, profile, table
from lightning_t2drl.calibrate.service import OwnService, Service
from lightning_t2drl.calibrate.timing import Seconds, fit_seconds, measure_seconds
from lightning_t2drl.errors import UserError
from lightning_t2drl.files import write_atomically
from lightning_t2drl.run.compose import Composed
from lightning_t2drl.run.results_dir import new_directory
from lightning_t2drl.run.screen import console
from lightning_t2drl.seeding import derive_seed

TIMED = 4  # numbers of steps whose seconds are measured


@dataclass(frozen=True)
class Calibration:
    """What a calibration found: the profile as plain data, its curve, and where it was written."""

    profile: dict[str, Any]
    fit: Fit
    output_dir: Path


def run_calibration(composed: Composed) -> Calibration:
    """Train if needed, measure, fit, and write NAME.yaml, quality.csv, seconds.csv and curve.png.

    Raises:
        UserError: there is no such service, or what was measured is no curve; measurements and picture then stay.
    """
    config, screen = composed.config, console()
    torch.set_num_threads(1)
    service = make_service(config)
    name = config.name or _name(config)
    metric = config.metric or next(iter(service.metrics))
    steps = sorted(set(config.steps or service.steps))
    service.check_steps(steps)
    with new_directory("calibrate", config.output_dir) as directory:
        with Progress(console=screen, transient=True, disable=not config.progress_bar) as progress:
            task = progress.add_task("training")

            def tick(what: str, done: int, total: int) -> None:
                progress.update(task, description=what, completed=done, total=total)

            service.prepare(tick)
            rows = []
            for done, (count, values) in enumerate(
                service.curve(steps, config.samples or service.samples, derive_seed(config.seed, "quality")), 1
            ):
                rows += [(count, key, value) for key, found in values.items() for value in found]
                tick("measuring quality", done, len(steps))
            tick("measuring seconds", len(steps), len(steps))
            timed = sorted({steps[round(i * (len(steps) - 1) / (TIMED - 1))] for i in range(TIMED)})
            seconds = measure_seconds(service.generate, timed, config.batches, config.clock)
        quality = pd.DataFrame(rows, columns=["steps", "metric", "value"])
        write_atomically(directory / "quality.csv", quality.to_csv(index=False, float_format="%.6g"))
        write_atomically(directory / "seconds.csv", seconds.to_csv(index=False, float_format="%.6g"))
        fit: Fit | None = None
        lines: dict[int, Seconds] | None = None
        try:
            lines = fit_seconds(seconds)
            chosen = quality[quality["metric"] == metric].groupby("steps")["value"]
            fit = fit_curve(
                steps,
                [some.to_numpy() for _, some in chosen],
                service.metrics[metric].better,
                service.whole,
                config.seed,
            )
        except UserError as error:
            raise UserError(f"service: no profile of {name} by {metric}: {error}; measured: {directory}") from None
        finally:
            draw(quality, seconds, dict(service.metrics), (metric, fit), lines, directory / "curve.png")
        command = shlex.join(["t2drl", "calibrate", *_telling(composed.arguments)])
        content = profile(service, name, (metric, service.metrics[metric]), fit, lines, config, command)
        write_atomically(directory / f"{name}.yaml", as_yaml(content))
    screen.print(table(content, fit, lines))
    screen.print(f"{directory / f'{name}.yaml'}: the profile; beside it quality.csv, seconds.csv, curve.png")
    return Calibration(content, fit, directory)


def make_service(config: Any) -> Service:
    """What `service=` names, not yet trained.

    Raises:
        UserError: there is no such service or callable, it has no such metric, or a package is missing.
    """
    if config.service == "inpaint":
        from lightning_t2drl.calibrate.inpaint import Inpaint

        _check_metric(config.metric, Inpaint)
        return Inpaint(config.size, config.chain, config.iterations, config.seed)
    if config.service == "text":
        from lightning_t2drl.calibrate.text import Text

        _check_metric(config.metric, Text)
        return Text(config.size, config.iterations, config.seed)
    if config.service == "video":
        from lightning_t2drl.calibrate.video import Video

        _check_metric(config.metric, Video)
        return Video(config.size, config.iterations, config.seed)
    return OwnService(config.service, config.metric or "quality", config.better, config.modality, config.whole_chain)


def _check_metric(metric: str | None, kind: type[Service]) -> None:
    if metric is not None and metric not in kind.metrics:
        raise UserError(f"metric: {metric!r} is none of {', '.join(kind.metrics)}")


def _name(config: Any) -> str:
    """Such as `inpaint`, `inpaint_cut`, `text_small`, or the callable's."""
    parts = [config.service.rpartition(":")[2]]
    if parts[0] == "inpaint" and config.chain != "respaced":
        parts.append(config.chain)
    if config.size != "large":
        parts.append(config.size)
    return "_".join(parts)


def _telling(arguments: tuple[str, ...]) -> list[str]:
    """Words that change what is measured."""
    return [word for word in arguments if not word.startswith(("output_dir=", "progress_bar="))]
