"""Runs side by side, as the user names them: what `t2drl compare` does."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from rich.table import Table
from rich.text import Text
from scipy import stats

from lightning_t2drl.checks import nearest
from lightning_t2drl.errors import UserError
from lightning_t2drl.files import write_atomically
from lightning_t2drl.run.compose import Composed
from lightning_t2drl.run.evaluate import RESULT
from lightning_t2drl.run.figures import save, style
from lightning_t2drl.run.labels import QUANTITIES, REFERENCES, End, across, label_ends, looks, scheme_name
from lightning_t2drl.run.results_dir import new_directory
from lightning_t2drl.run.schemas import CompareConfig
from lightning_t2drl.run.screen import console
from lightning_t2drl.run.tables import plain_table
from lightning_t2drl.suite.comparison import difference_interval, interval, learning_curve
from lightning_t2drl.suite.sources import Source, read_source

LEVEL = 0.95
SHOWN = ("utility", "hit_ratio", "violation_ratio")
DIGITS = {"utility": 4, "hit_ratio": 3, "violation_ratio": 3}
Groups = dict[str, list[Source]]
Interval = tuple[float, float, float]  # value, low, high; NaN where unknown


@dataclass(frozen=True)
class Comparison:
    """What a comparison found.

    Args:
        table: one row per name and metric: `runs`, `value`, `low`, `high`, and the `difference` to the first name
            with its interval.
        output_dir: where it was written.
    """

    table: pd.DataFrame
    output_dir: Path


def run_compare(composed: Composed) -> Comparison:
    """Print a table of the runs named, and write it with figures.

    Raises:
        UserError: a run cannot be read, or the directory cannot be written.
    """
    config, screen = composed.config, console()
    groups = gather(config.runs)
    curves = {name: [s.curve for s in sources if s.curve is not None] for name, sources in groups.items()}
    if config.references:
        groups |= {name: found for name, found in _references(groups).items() if name not in groups}
    table = tidy(groups)
    with new_directory("compare", config.output_dir) as directory:
        screen.print(terminal_table(groups, table), soft_wrap=False)
        for line in notes(groups):
            screen.print(line)
        table.to_csv(directory / "comparison.csv", index=False)
        write_atomically(directory / "comparison.md", markdown(groups, table))
        if config.figures:
            _draw_values(groups, table, directory)
            if any(curves.values()):
                _draw_curves(curves, groups, config.x, directory)
    screen.print(f"written to {directory}")
    return Comparison(table, directory)


def gather(words: Sequence[str]) -> Groups:
    """Runs by name; a name given twice stands for runs of one scheme, and paths may hold * and ?.

    A run without a name gets its scheme's; where that is taken by another, its path.

    Raises:
        UserError: nothing is named, or a path holds no run.
    """
    if not words:
        raise UserError("runs: missing; name the runs to compare, as PATH or NAME=PATH")
    found: list[tuple[str | None, Source]] = []
    for word in words:
        name, equals, place = word.partition("=")
        given = equals != "" and not Path(word).exists()  # checkpoints have = in their names
        pattern = place if given else word
        if not pattern:
            raise UserError(f"{word}: names no run; write NAME=PATH")
        paths = sorted(map(Path, glob.glob(pattern))) or [Path(pattern)]
        if not paths[0].exists():
            close = nearest(name, [field.name for field in fields(CompareConfig)]) if given else ""
            raise UserError(f"{word}: no such run{close}")
        for path in paths:
            if len(paths) > 1 and path.is_symlink():  # `latest`
                continue
            sources = read_source(path)
            own = name if given and len({s.name for s in sources}) == 1 else f"{name} " if given else None
            found += [(f"{own}{s.name}" if own and own.endswith(" ") else own, s) for s in sources]
    groups: Groups = {}
    for label, source in found:
        others = [s for other, s in found if other is None and s.name == source.name and s.path != source.path]
        chosen = label or (str(_place(source.path)) if others else source.name)
        groups.setdefault(chosen, []).append(replace(source, name=chosen))
    return groups


def _place(path: Path) -> Path:
    """A run's directory, where its file has the name that all have."""
    return path.parent if path.name == RESULT and path.parent != Path() else path


def _references(groups: Groups) -> Groups:
    """RCARS and the oracle as the first run has them that has them; none where runs met different worlds."""
    found: Groups = {}
    known = [source for sources in groups.values() for source in sources if source.references]
    for source in known if len({_world(source) for source in known}) == 1 else []:
        for name, metrics in source.references.items():
            found.setdefault(name, [Source(name, source.path, metrics, source.played)])
    return found


def _world(source: Source) -> tuple[Any, ...]:
    """What a run was evaluated in, however many episodes of it."""
    return (*source.played[:1], *source.played[3:])


# -- numbers


def tidy(groups: Groups) -> pd.DataFrame:
    """One row per name and metric."""
    first = next(iter(groups.values()))
    names = dict.fromkeys(metric for sources in groups.values() for source in sources for metric in source.metrics)
    rows = []
    for metric in names:
        for name, sources in groups.items():
            known = [s for s in sources if _knows(s, metric)]
            if not known:
                continue
            value, low, high = estimate(known, metric)
            row = {"name": name, "metric": metric, "runs": len(known), "value": value, "low": low, "high": high}
            base = [s for s in first if _knows(s, metric)]
            if sources is not first and base:
                row |= dict(zip(DIFFERENCE, difference(known, base, metric), strict=True))
            rows.append(row)
    return pd.DataFrame(rows, columns=["name", "metric", "runs", "value", "low", "high", *DIFFERENCE])


def _knows(source: Source, metric: str) -> bool:
    """Whether it has the metric; a service that nobody asked for has no mean."""
    return source.metrics.get(metric, {}).get("mean") is not None


DIFFERENCE = ("difference", "difference_low", "difference_high")


def estimate(sources: list[Source], metric: str) -> Interval:
    """Of several runs the interquartile mean and its bootstrap interval; of one the mean over its episodes."""
    if len(sources) > 1:
        return interval(np.array([s.metrics[metric]["mean"] for s in sources]))
    entry = sources[0].metrics[metric]
    return _around(entry["mean"], entry.get("standard_error"), _count(sources[0], metric))


def _count(source: Source, metric: str) -> float:
    """How many episodes a run was evaluated on; infinitely many where nothing says so."""
    told = source.metrics[metric].get("episodes") or (source.played[1:2] and range(source.played[1]))
    return len(told) if told else float("inf")


def _around(mean: float, error: float | None, episodes: float) -> Interval:
    """Student's interval of a mean over episodes."""
    if error is None or episodes < 2:
        return mean, float("nan"), float("nan")
    spread = float(stats.t.ppf((1 + LEVEL) / 2, episodes - 1)) * error
    return mean, mean - spread, mean + spread


def difference(ours: list[Source], theirs: list[Source], metric: str) -> Interval:
    """By how much the mean of one name exceeds another's; single runs on the same worlds episode by episode."""
    a, b = (np.array([s.metrics[metric]["mean"] for s in sources]) for sources in (ours, theirs))
    mean = float(a.mean() - b.mean())
    if len(a) > 1 and len(b) > 1:
        return mean, *difference_interval(a, b)
    if len(a) > 1 or len(b) > 1:
        return mean, float("nan"), float("nan")
    one, other = ours[0], theirs[0]
    mine, its = (s.metrics[metric] for s in (one, other))
    if mine.get("episodes") and its.get("episodes") and one.played == other.played:
        each = np.subtract(mine["episodes"], its["episodes"])
        return _around(mean, each.std(ddof=1) / len(each) ** 0.5 if len(each) > 1 else None, len(each))
    errors: list[Any] = [mine.get("standard_error"), its.get("standard_error")]
    fewest = min(_count(source, metric) for source in (one, other))
    return _around(mean, None if None in errors else float(np.hypot(*errors)), fewest)


# -- what is shown


def notes(groups: Groups) -> list[str]:
    """What a reader should know."""
    lines = []
    for name, sources in groups.items():
        lines += [f"{name}: {said}" for said in dict.fromkeys(s.note for s in sources if s.note)]
    worlds = dict.fromkeys(source.played for sources in groups.values() for source in sources)
    if len(worlds) > 1:
        said = ["; ".join(map(str, world)) if world else "unknown" for world in worlds]
        lines.append(
            f"not all met the same worlds (scenario; episodes; seed; users; digest of the scenario): {' | '.join(said)}"
        )
        if len({_world(s) for sources in groups.values() for s in sources if s.references}) > 1:
            lines.append("rcars and oracle differ between them and are left out")
    return lines


def _meaning(groups: Groups) -> str:
    several = any(len(sources) > 1 for sources in groups.values())
    one = "mean over episodes and its 95 % interval"
    return f"of one run the {one}; of several the interquartile mean and 95 % bootstrap" if several else one


def _cell(row: Any, keys: Sequence[str], digits: int, sign: str = "") -> str:
    value, low, high = (row[key] for key in keys)
    if pd.isna(value):
        return "-"
    text = f"{value:{sign}.{digits}f}"
    return text if pd.isna(low) else f"{text}\n[{low:{sign}.{digits}f}, {high:{sign}.{digits}f}]"


def _rows(groups: Groups, table: pd.DataFrame) -> list[list[str]]:
    """What both tables show: each name's runs, its `SHOWN` metrics and its difference to the first in utility."""
    by = table.set_index(["name", "metric"])
    rows = []
    for name, sources in groups.items():
        cells = [name, str(len(sources))]
        for metric in SHOWN:
            known = (name, metric) in by.index
            cells.append(_cell(by.loc[name, metric], ("value", "low", "high"), DIGITS[metric]) if known else "-")
        utility = (name, "utility") in by.index
        rows.append([*cells, _cell(by.loc[name, "utility"], DIFFERENCE, 4, "+") if utility else "-"])
    return rows


def _titles(groups: Groups) -> list[str]:
    return ["name", "runs", "utility per slot", "hit ratio", "late", f"utility over {next(iter(groups))}"]


def terminal_table(groups: Groups, table: pd.DataFrame) -> Table:
    """In 80 columns; intervals stand under their values."""
    several = any(len(sources) > 1 for sources in groups.values())
    left_out = {4} if several else {1}  # late, or runs
    *titles, last = _titles(groups)
    titles.append(last if len(last) <= 18 else "over the first")
    shown = plain_table(*(title for place, title in enumerate(titles) if place not in left_out))
    shown.title = Text(_meaning(groups))
    for row in _rows(groups, table):
        row[4] = row[4].partition("\n")[0]
        shown.add_row(*(Text(cell) for place, cell in enumerate(row) if place not in left_out))
    return shown


def markdown(groups: Groups, table: pd.DataFrame) -> str:
    """The same as a page."""
    titles = _titles(groups)
    lines = [f"Values are {_meaning(groups)}.", "", "| " + " | ".join(titles) + " |", "|" + " --- |" * len(titles)]
    lines += ["| " + " | ".join(cell.replace("\n", " ").replace("|", "\\|") for cell in row) + " |"
              for row in _rows(groups, table)]  # fmt: skip
    lines += ["", *(f"- {line}" for line in notes(groups))] if notes(groups) else []
    return "\n".join(lines) + "\n"


def _draw_values(groups: Groups, table: pd.DataFrame, directory: Path) -> Path:
    """Utility and hit ratio by name with their intervals; RCARS and the oracle are lines."""
    style()
    names = [name for name in groups if name not in REFERENCES]
    size = (9, 0.9 + 0.35 * len(names))
    figure, panels = plt.subplots(1, 2, figsize=size, sharey=True, layout="constrained")
    look = looks(list(groups))
    for axes, metric in zip(panels, SHOWN, strict=False):
        for row in table[table["metric"] == metric].itertuples():
            color, dashes, marker = look[row.name]
            if row.name in REFERENCES:
                axes.axvline(row.value, color=color, ls=dashes, lw=1, label=f"{scheme_name(row.name)} {row.value:.3f}")
                continue
            spread = None if pd.isna(row.low) else [[row.value - row.low], [row.high - row.value]]
            axes.errorbar(row.value, names.index(row.name), xerr=spread, color=color, marker=marker, capsize=3)
        axes.set_xlabel(QUANTITIES[metric])
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, fontsize=7.5)
    panels[0].set_yticks(range(len(names)), [scheme_name(name) for name in names])
    panels[0].set_ylim(len(names) - 0.5, -0.5)
    return save(figure, directory / "comparison.png")


def _draw_curves(curves: dict[str, list[pd.DataFrame]], groups: Groups, x: str, directory: Path) -> Path:
    """Utility and hit ratio over training: each name's mean over its runs, within their range."""
    style()
    figure, panels = plt.subplots(1, 2, figsize=(11.5, 3.2), layout="constrained")
    look = looks(list(curves))
    all_ends: list[list[End]] = []
    for axes, column in zip(panels, ("utility", "hit_ratio"), strict=True):
        ends: list[End] = []
        for name, tables in curves.items():
            own = [t.set_index(x)[column].rename(str(i)) for i, t in enumerate(tables) if x in t and column in t]
            if own and len(curve := pd.concat(own, axis=1).dropna()):
                ends.append(learning_curve(axes, curve, scheme_name(name), look[name]))
        for name in (n for n in groups if n in REFERENCES and n not in curves and _knows(groups[n][0], column)):
            ends.append(across(axes, name, groups[name][0].metrics[column]["mean"]))
        axes.set_xlabel(QUANTITIES[x])
        axes.set_ylabel(QUANTITIES[column])
        all_ends.append(ends)
    figure.draw_without_rendering()  # the layout has to be final before labels are placed
    for axes, ends in zip(panels, all_ends, strict=True):
        label_ends(axes, ends)
    return save(figure, directory / "curves.png")
