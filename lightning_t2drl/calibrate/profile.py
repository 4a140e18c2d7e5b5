"""What a calibration leaves: the service profile, a picture, and a table."""

from __future__ import annotations

import os
import platform
import re
import time
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import yaml
from rich.table import Table

from lightning_t2drl import __version__
from lightning_t2drl.calibrate.fit import Fit
from lightning_t2drl.calibrate.service import Metric, Service
from lightning_t2drl.calibrate.timing import Seconds
from lightning_t2drl.run.figures import PALETTE, save, style
from lightning_t2drl.run.tables import plain_table

COMMENTS = {
    "name": "shown in reports",
    "modality": "image | text | video",
    "metric": "what quality is measured by",
    "unit": "of the metric",
    "better": "lower | higher",
    "knots": "[[steps, metric], ...]: straight lines between, flat before and after",
    "seconds_per_step": "generation time per step, s",
    "base_seconds": "generation time beside the steps, s",
    "cost_per_step": "accelerator-seconds, so that env.step_budget counts these",
    "deadline": "s; assumed",
    "input_mb": "range of a request's input, MB; assumed",
    "output_mb": "range of its output, MB; assumed",
    "provenance": "how this was measured",
    "command": "that wrote this file",
    "data": "what the model was trained on",
    "model": "and its size",
    "sampler": "how samples are made",
    "iterations": "of training",
    "samples": "values at each number of steps",
    "r2": "of the curve",
    "knot_steps": "95 % bootstrap intervals of the knots' steps",
    "knot_metric": "likewise of their metric",
    "measured_seconds": "[base, per step, R2] of a whole batch, by its size, s",
    "scale": "measured seconds are multiplied by it, so that the last knot takes full_seconds",
    "clock": "CPU seconds or wall-clock",
    "real_text": "the same metric of unseen real text",
    "variety": "different words by steps, as a share of those in as much real text",
    "seed": "of everything",
    "device": "that it ran on",
    "cpu": "its name",
    "load": "processes that wanted a core in the last minute, when it ended",
    "cpu_seconds": "of this process, from its start to the profile",
    "versions": "of what it ran on",
    "date": "of the measurement",
}


def profile(
    service: Service,
    name: str,
    metric: tuple[str, Metric],
    fit: Fit,
    seconds: dict[int, Seconds],
    config: Any,
    command: str,
) -> dict[str, Any]:
    """The content of `configs/service/NAME.yaml`."""
    first = seconds[config.batches[0]]
    per_sample = config.batches[0]
    measured = (first.base + first.per_step * fit.knots[-1][0]) / per_sample
    scale = 1.0 if config.full_seconds is None else config.full_seconds / measured
    per_step = scale * first.per_step / per_sample
    provenance = {
        "command": command,
        **service.facts(),
        "samples": config.samples or service.samples,
        "r2": _digits(fit.r2),
        "knot_steps": _digits(fit.intervals),
        "knot_metric": _digits(fit.metric_intervals),
        "measured_seconds": {batch: _digits(found) for batch, found in seconds.items()},
        "scale": _digits(scale),
        "clock": config.clock,
        "seed": config.seed,
        "device": "cpu, one thread" if config.clock == "cpu" else "as the callable chose",
        "cpu": cpu_name(),
        "cpu_seconds": round(time.process_time()),
        "load": round(os.getloadavg()[0], 2),
        "versions": versions(),
        "date": date.today().isoformat(),
    }
    return {
        "name": name,
        "modality": service.modality,
        "metric": metric[0],
        "unit": metric[1].unit,
        "better": metric[1].better,
        "knots": _digits(fit.knots),
        "seconds_per_step": _digits(per_step),
        "base_seconds": _digits(scale * first.base / per_sample),
        "cost_per_step": _digits(per_step),
        **service.assumed,
        "provenance": provenance,
    }


def as_yaml(content: dict[str, Any]) -> str:
    """One line per key, with its meaning beside it."""
    about = f"{content['modality'].capitalize()}: {content['metric']} and seconds against steps"
    lines = [f"# {about}, measured by t2drl calibrate."]
    for key, value in content.items():
        if key == "provenance":
            lines.append(f"provenance:  # {COMMENTS[key]}")
            lines += [f"  {_line(inner, text)}" for inner, text in value.items()]
        else:
            lines.append(_line(key, value))
    return "\n".join(lines) + "\n"


def _line(key: str, value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6, sort_keys=False, allow_unicode=True)
    return f"{key}: {text.removesuffix(chr(10)).removesuffix(chr(10) + '...')}  # {COMMENTS.get(key, 'as measured')}"


def _digits(value: Any) -> Any:
    """Numbers to four significant digits."""
    if isinstance(value, (list, tuple)):
        return [_digits(inner) for inner in value]
    return float(f"{value:.4g}")


def versions() -> str:
    """Of this package, Python and what the models are made of."""
    found = [f"lightning-t2drl {__version__}", f"python {platform.python_version()}"]
    for name in ("torch", "diffusers", "scikit-learn"):
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            pass
    return ", ".join(found)


def cpu_name() -> str:
    """As the operating system tells it."""
    try:
        names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def table(content: dict[str, Any], fit: Fit, seconds: dict[int, Seconds]) -> Table:
    """Knots with their intervals, and seconds by batch."""
    shown = plain_table(content["name"], "measured", "95 % interval")
    for number, ((steps, metric), (low, high)) in enumerate(zip(fit.knots, fit.intervals, strict=True), 1):
        shown.add_row(
            f"knot {number}: {content['metric']} {metric:.4g} at steps", f"{steps:.1f}", f"{low:.1f} to {high:.1f}"
        )
    shown.add_row("R2 of the curve", f"{fit.r2:.3f}", "")
    for batch, found in seconds.items():
        shown.add_row(
            f"ms per step and sample, batches of {batch}", f"{1e3 * found.per_step / batch:.3g}", f"R2 {found.r2:.3f}"
        )
    return shown


def draw(
    quality: pd.DataFrame,
    seconds: pd.DataFrame,
    metrics: dict[str, Metric],
    fitted: tuple[str, Fit | None],
    lines: dict[int, Seconds] | None,
    path: Path,
) -> None:
    """Every metric against steps, the fitted one with its curve, and seconds against steps."""
    style()
    figure, axes = plt.subplots(1, len(metrics) + 1, figsize=(2.9 * (len(metrics) + 1), 2.6), layout="constrained")
    for number, (axis, (name, metric)) in enumerate(zip(axes, metrics.items(), strict=False)):
        some = quality[quality["metric"] == name].groupby("steps")["value"]
        mean, error = some.mean(), 2 * some.sem()
        axis.errorbar(
            mean.index, mean, error, fmt="o", ms=3, lw=1, color=PALETTE[number], label="mean, 2 standard errors"
        )
        if name == fitted[0] and fitted[1] is not None:
            fit = fitted[1]
            x = np.linspace(mean.index.min(), mean.index.max(), 1000)
            axis.plot(x, fit(x), color="#333333", lw=1, label=f"fit, R2 {fit.r2:.3f}")
            for (steps, _), (low, high) in zip(fit.knots, fit.intervals, strict=True):
                axis.axvspan(low, high, color="#333333", alpha=0.12, lw=0)
                axis.axvline(steps, color="#333333", lw=0.6, ls=":")
            axis.legend(fontsize=7)
        axis.set_xlabel("steps")
        axis.set_ylabel(f"{name} ({metric.unit})" if metric.unit else name)
    for (batch, some), color in zip(seconds.groupby("batch"), PALETTE, strict=False):
        axes[-1].plot(some["steps"], some["seconds"] / batch, "o", ms=3, color=color, label=f"batch {batch}")
        if lines:
            x = np.array([0, some["steps"].max()])
            axes[-1].plot(x, (lines[batch].base + lines[batch].per_step * x) / batch, color=color, lw=1)
    axes[-1].set_xlabel("steps")
    axes[-1].set_ylabel("seconds per sample")
    axes[-1].legend(fontsize=7)
    save(figure, path)
