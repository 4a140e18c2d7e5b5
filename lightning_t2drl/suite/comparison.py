"""A suite's results as Markdown tables with intervals, and as figures."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from rich.table import Table
from rich.text import Text
from rliable import library, metrics
from scipy.stats import bootstrap

from lightning_t2drl.files import write_atomically
from lightning_t2drl.run.figures import save, style
from lightning_t2drl.run.labels import (
    KEYS,
    PALETTE,
    QUANTITIES,
    SMALL,
    End,
    Look,
    across,
    label_ends,
    looks,
    scheme_name,
)
from lightning_t2drl.run.schemas import SuiteConfig
from lightning_t2drl.run.tables import improvement, plain_table

REPETITIONS = 2000
ACROSS = 3  # panels of a figure side by side


def bootstrapped(scores: dict[str, Any], aggregate: Callable[..., Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Point and interval estimates of `aggregate` by rliable, which draws from NumPy's global generator."""
    before = np.random.get_state()
    np.random.seed(0)
    try:
        return library.get_interval_estimates(scores, aggregate, reps=REPETITIONS)
    finally:
        np.random.set_state(before)


def interval(values: np.ndarray) -> tuple[float, float, float]:
    """Interquartile mean over seeds and its 95 % stratified bootstrap interval (rliable)."""
    if len(values) < 2:
        return float(values.mean()), float("nan"), float("nan")
    scores = {"scheme": values.reshape(-1, 1)}
    point, bounds = bootstrapped(scores, lambda x: np.array([metrics.aggregate_iqm(x)]))
    low, high = bounds["scheme"].flatten()
    return float(point["scheme"][0]), float(low), float(high)


def _cells(values: np.ndarray, digits: int) -> str:
    mean, low, high = interval(values)
    return f"{mean:.{digits}f}" if np.isnan(low) else f"{mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def _gain(ours: np.ndarray, theirs: np.ndarray) -> str:
    """By how many percent one mean exceeds another; nothing where `improvement` knows none."""
    percent = np.mean([improvement(*pair) for pair in zip(ours, theirs, strict=True)])
    return "-" if np.isnan(percent) else f"{round(percent, 2) + 0.0:+.2f} %"  # no sign on what rounds to zero


def shown(value: Any) -> str:
    """A swept value as it is written: a number as short as it can be without becoming another, a name as it is."""
    if isinstance(value, str):
        return value
    text = f"{value:g}"
    if float(text) != value or "e" in text:
        text = str(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))
    return text


def loading_costs(results: pd.DataFrame) -> bool:
    """Whether any run paid for loading models, so that utility less loading is another quantity."""
    return not np.allclose(results["net_utility"], results["utility_played"])


ALSO = {  # what is asked beside utility and hits: how tables call it, and digits
    "violation_ratio": ("late", 3),
    "wasted_steps": ("steps wasted", 3),
}
OF_CELLS = {  # likewise of several cells
    "violation_ratio": ("late", 3),
    "delay": ("delay s", 1),
    "handover_ratio": ("handovers", 3),
    "nearby_ratio": ("nearby", 3),
}
OF_SERVICE = {
    "hit_ratio": ("hit ratio", 3),
    "violation_ratio": ("late", 3),
    "quality": ("quality", 3),
    "delay": ("delay s", 1),
}


def also(results: pd.DataFrame) -> dict[str, tuple[str, int]]:
    """What these results are asked beside utility and hits."""
    asked = OF_CELLS if "handover_ratio" in results else ALSO
    return {name: column for name, column in asked.items() if name in results}


def summary_rows(results: pd.DataFrame, suite: SuiteConfig) -> list[dict[str, str]]:
    """One row per value and scheme: utility, hit ratio, improvements, share of the way to the best."""
    rows = []
    charged = loading_costs(results)
    for value, group in results.groupby("value", dropna=False, sort=not suite.words):
        for scheme, own in group.groupby("scheme", sort=False):
            columns = ("utility", "hit_ratio", "reference_utility", "reference_hit_ratio", "best_utility")
            utility, hits, low_utility, low_hits, best = (own[column].to_numpy() for column in columns)
            way = ((utility - low_utility) / (best - low_utility)).round(6) + 0.0
            row = {} if suite.sweep is None else {suite.sweep: shown(value)}
            row |= {
                "scheme": str(scheme),
                "seeds": str(len(own)) if own["seed"].notna().any() else "-",
                "utility per slot": _cells(utility, 4),
                "hit ratio": _cells(hits, 3),
                "utility vs " + suite.reference: _gain(utility, low_utility),
                "hit ratio vs " + suite.reference: _gain(hits, low_hits),
                "of " + suite.best: _cells(100 * utility / best, 2) + " %",
                "of the way": _cells(100 * way, 1) + " %",
            }
            row |= {title: _cells(_known(own[name]), digits) for name, (title, digits) in also(results).items()}
            if charged:
                row["utility less loading"] = _cells(own["net_utility"].to_numpy(), 4)
            if "training_seconds" in own and own["training_seconds"].notna().any():
                row["training s"] = f"{own['training_seconds'].median():.0f}"
            rows.append(row)
    names = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name, "-") for name in names} for row in rows]


def _known(column: pd.Series) -> np.ndarray:
    """Its values; where one cell stands beside several nobody is handed over, and no other cell is near."""
    return column.fillna(0.0).to_numpy()


def service_rows(results: pd.DataFrame, suite: SuiteConfig) -> list[dict[str, str]]:
    """One row per value, scheme and service that was asked for; none where all models are of one service."""
    kinds = [key.partition("/")[2] for key in results if key.startswith("hit_ratio/")]
    rows = []
    for value, group in results.groupby("value", dropna=False, sort=not suite.words):
        for scheme, own in group.groupby("scheme", sort=False):
            for kind in (kind for kind in kinds if own[f"hit_ratio/{kind}"].notna().all()):
                row = {} if suite.sweep is None else {suite.sweep: shown(value)}
                row |= {"scheme": str(scheme), "service": kind}
                rows.append(
                    row
                    | {
                        title: _cells(own[f"{name}/{kind}"].to_numpy(), digits)
                        for name, (title, digits) in OF_SERVICE.items()
                    }
                )
    return rows


def comparison_table(results: pd.DataFrame, suite: SuiteConfig) -> Table:
    """The same rows for a terminal: what fits into 80 columns, without intervals."""
    swept = [] if suite.sweep is None else [suite.sweep.rpartition(".")[2]]
    table = plain_table("scheme", *swept, "utility", "hit ratio", f"vs {suite.reference}", f"of {suite.best}")
    for row in summary_rows(results, suite):
        value = [] if suite.sweep is None else [row[suite.sweep]]
        numbers = [row[name].partition(" [")[0] for name in ("utility per slot", "hit ratio")]
        share = row[f"of {suite.best}"].partition(" ")[0] + " %"
        table.add_row(*map(Text, (row["scheme"], *value, *numbers, row[f"utility vs {suite.reference}"], share)))
    return table


PUBLISHED = {"hit_ratio": 56.01, "utility": 37.29}  # percent over the benchmark schemes, "up to" (arXiv 2411.01458)
LABELS = {"utility": "utility", "hit_ratio": "hit ratio"}


def improvements(results: pd.DataFrame, suite: SuiteConfig) -> pd.DataFrame:
    """By how many percent the first learner exceeds each other scheme but the best, in means over seeds.

    Not a number where that mean is not positive, or next to nothing.

    Returns:
        Columns `scheme`, `place` (the swept value, as a key), `utility` and `hit_ratio`.
    """
    ours = next(iter(suite.learners))
    means = results.groupby(["scheme", "value"], sort=False, dropna=False)[list(LABELS)].mean()
    parts = []
    for scheme in [s for s in dict.fromkeys(results["scheme"]) if s not in (ours, suite.best)]:
        gain = means.loc[ours].combine(means.loc[scheme], lambda a, b: a.combine(b, improvement)).reset_index()
        gain.insert(0, "scheme", scheme)
        gain.insert(1, "place", [f"{suite.sweep}={shown(v)}" if suite.sweep else "" for v in gain.pop("value")])
        parts.append(gain)
    return pd.concat(parts, ignore_index=True)


def largest_improvements(results: pd.DataFrame, suite: SuiteConfig) -> list[str]:
    """Where the first learner is furthest ahead of each other scheme."""
    lines = []
    for scheme, gain in improvements(results, suite).groupby("scheme", sort=False):
        parts = []
        for key, label in LABELS.items():
            known = gain.dropna(subset=[key])
            if len(known):
                most = known.loc[known[key].idxmax()]
                parts.append(f"{label} {most[key]:+.2f} %" + (f" at {most['place']}" if most["place"] else ""))
        ours = next(iter(suite.learners))
        if parts:
            lines.append(f"- {ours} over {scheme}{', at most' if suite.sweep else ''}: {', '.join(parts)}")
    return lines


def gathered_improvements(directories: list[Path], suite: SuiteConfig) -> list[str]:
    """The largest improvements over all of several sweeps, over any scheme that does not learn, beside the paper's."""
    tables = [pd.read_csv(directory / "gains.csv") for directory in directories]
    gains = pd.concat(tables, ignore_index=True)
    gains = gains[gains["scheme"].isin(suite.fixed)]
    lines = []
    for key, label in LABELS.items():
        most = gains.loc[gains[key].idxmax()]
        lines.append(
            f"- largest gain in {label}: {most[key]:+.2f} % over {most['scheme']} at {most['place']} "
            f"(paper: up to +{PUBLISHED[key]} %)"
        )
    names = ", ".join(directory.name for directory in directories)
    return [f"Over the sweeps {names}, of {next(iter(suite.learners))} over the schemes that do not learn:", "", *lines]


def difference_interval(ours: np.ndarray, theirs: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the difference of two means over seeds (scipy, percentiles)."""

    def difference(a: np.ndarray, b: np.ndarray, axis: int = -1) -> np.ndarray:
        return a.mean(axis) - b.mean(axis)

    rng = np.random.default_rng(0)
    found = bootstrap((ours, theirs), difference, n_resamples=REPETITIONS, method="percentile", rng=rng)
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def share_ahead(ours: np.ndarray, theirs: np.ndarray) -> float:
    """Share of pairs of runs, scores [seeds, tasks], in which ours is better; ties count half, tasks alike.

    It is rliable's probability of improvement, without a rank test in each resample, which take minutes.
    """
    ahead = (ours[:, None] > theirs[None]) + 0.5 * (ours[:, None] == theirs[None])
    return float(ahead.mean())


PAIRED = 8  # learners, up to which all pairs are compared


def many(suite: SuiteConfig) -> bool:
    """Whether there are too many learners for all pairs, and for one picture of their curves."""
    return len(suite.learners) > PAIRED


def probability_of_improvement(results: pd.DataFrame, suite: SuiteConfig) -> list[str]:
    """For every pair of learners, the probability that a run of one beats one of the other (rliable).

    Of many learners only the first is paired with each.
    """
    lines = []
    learners = list(suite.learners)
    for i, ours in enumerate(learners[:1] if many(suite) else learners):
        for theirs in learners[i + 1 :]:
            matrices = [
                results[results["scheme"] == name].pivot_table(
                    index="seed", columns="value", values="utility", dropna=False
                )
                if suite.sweep
                else results[results["scheme"] == name][["utility"]]
                for name in (ours, theirs)
            ]
            x, y = (matrix.to_numpy() for matrix in matrices)
            if len(x) < 2:
                continue
            point, bounds = bootstrapped({"pair": (x, y)}, share_ahead)
            low, high = np.asarray(bounds["pair"]).flatten()
            lines.append(
                f"- P({ours} > {theirs}) = {float(np.asarray(point['pair'])):.2f} [{low:.2f}, {high:.2f}]; "
                f"difference of mean utility {_difference(x.mean(1), y.mean(1))}"
            )
    return lines


def _difference(ours: np.ndarray, theirs: np.ndarray) -> str:
    least, most = difference_interval(ours, theirs)
    return f"{ours.mean() - theirs.mean():+.4f} [{least:+.4f}, {most:+.4f}]"


def differences_by_value(results: pd.DataFrame, suite: SuiteConfig) -> list[dict[str, str]]:
    """Of a sweep, mean utility of the first learner less that of each other, a row per value; none of single runs."""
    first, *others = suite.learners
    trained = results[results["scheme"].isin(suite.learners)]
    if suite.sweep is None or not others or trained["seed"].nunique() < 2:
        return []
    rows = []
    for value, group in trained.groupby("value", sort=not suite.words):
        utility = {scheme: own["utility"].to_numpy() for scheme, own in group.groupby("scheme")}
        columns = {other: _difference(utility[first], utility[other]) for other in others}
        rows.append({suite.sweep: shown(value)} | columns)
    return rows


def write_tables(
    results: pd.DataFrame, suite: SuiteConfig, directory: Path, provenance: list[str], gathered: list[Path]
) -> None:
    """`README.md` with provenance, table and comparisons, and `gains.csv`.

    Args:
        results: of `collect`.
        suite: what was run.
        directory: where to.
        provenance: lines on how the results came about.
        gathered: directories of other suites whose gains are compared as well.
    """
    rows = summary_rows(results, suite)
    lines = [f"# Suite {suite.name}", "", *provenance, ""]
    lines += [
        "Interquartile mean over training seeds with 95 % stratified bootstrap intervals in brackets; schemes that"
    ]
    lines += [
        f"do not train have one row. 'Of the way': from {suite.reference} (0 %) to {suite.best} (100 %) in utility.",
        "'Steps wasted': share of the hits that get steps, but too few to bring quality (up to A1).",
        "",
    ]
    lines += _table(rows)
    if by_service := service_rows(results, suite):
        lines += ["", "Requests of each service, where several stand side by side:", "", *_table(by_service)]
    comparisons = probability_of_improvement(results, suite)
    lines += ["", *comparisons] if comparisons else []
    if suite.learners and (differences := differences_by_value(results, suite)):
        lines += [
            "",
            f"Mean utility of {next(iter(suite.learners))} less that of the others:",
            "",
            *_table(differences),
        ]
    if suite.learners:
        write_atomically(directory / "gains.csv", improvements(results, suite).to_csv(index=False))
        lines += ["", *largest_improvements(results, suite)]
    if gathered:
        lines += ["", *gathered_improvements(gathered, suite)]
    lines += ["", f"![{suite.name}](figure.png)"]
    lines += ["", "![Learning curves](curves.png)"] if suite.curves and not many(suite) else []
    write_atomically(directory / "README.md", "\n".join(lines) + "\n")


def _table(rows: list[dict[str, str]]) -> list[str]:
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    return lines + ["| " + " | ".join(row[name] for name in names) + " |" for row in rows]


def draw_comparison(results: pd.DataFrame, suite: SuiteConfig, directory: Path) -> Path:
    """Utility, that less the cost of loading where there is any, hit ratio, and of several cells what else is asked
    of them: bars, or curves over a sweep. Many learners that are not swept: their shares of the best scheme, enlarged.
    """
    style()
    if many(suite) and suite.sweep is None:
        return _draw_shares(results, suite, directory / "figure.png")
    asked = also(results) if "handover_ratio" in results else {}
    drawn = [name for name in asked if name in QUANTITIES and results[name].nunique() > 1]
    results = results.fillna(dict.fromkeys(drawn, 0.0))
    names = [value for value in suite.values if isinstance(value, str)]
    if names:  # drawn in their order
        results = results.assign(value=results["value"].map(names.index))
    quantities = ["utility", "net_utility", "hit_ratio", *drawn]
    if not loading_costs(results):
        quantities.remove("net_utility")
    width = 4.25 if suite.sweep is None else 5.75  # curves are named beside the axes
    columns = min(len(quantities), ACROSS)
    lines = -(-len(quantities) // columns)
    size = (width * columns, 3 * lines)
    figure, panels = plt.subplots(lines, columns, figsize=size, squeeze=False, layout="constrained")
    for empty in panels.flat[len(quantities) :]:
        empty.set_axis_off()
    schemes = list(dict.fromkeys(results["scheme"]))
    look = looks(schemes)
    for place, (axes, column) in enumerate(zip(panels.flat, quantities, strict=False)):
        if suite.sweep is None:
            shown = _bars(axes, results, look, column)
            axes.set_yticks(range(len(shown)), [scheme_name(s) if place % columns == 0 else "" for s in shown])
            continue
        ends = [_swept(axes, results, scheme, look[scheme], column) for scheme in schemes]
        values = results["value"]
        axes.set_xlabel(KEYS.get(suite.sweep, suite.sweep))
        axes.set_ylabel(QUANTITIES[column])
        if names:
            axes.set_xticks(range(len(names)), [textwrap.fill(name.replace("_", " "), 12) for name in names])
        elif values.min() > 0 and values.max() / values.min() >= 20:
            axes.set_xscale("log")
        figure.draw_without_rendering()  # the layout has to be final before labels are placed
        label_ends(axes, ends)
    return save(figure, directory / "figure.png")


def _draw_shares(results: pd.DataFrame, suite: SuiteConfig, path: Path) -> Path:
    """Every learner's share of the best scheme's utility with its interval, and each seed's as a dot."""
    best = results.loc[results["scheme"] == suite.best, "utility"].mean()
    figure, axes = plt.subplots(figsize=(6.5, 0.8 + 0.24 * len(suite.learners)), layout="constrained")
    shares = {
        name: 100 * results.loc[results["scheme"] == name, "utility"].to_numpy() / best for name in suite.learners
    }
    left = np.floor(min(interval(share)[0] for share in shares.values())) - 2
    color = PALETTE[0]
    for place, share in enumerate(shares.values()):
        mean, least, most = interval(share)
        axes.plot(share.clip(left), np.full(len(share), place), ".", color="0.6", ms=4, clip_on=False, zorder=1)
        axes.plot(np.clip([least, most], left, None), [place, place], color=color, lw=1.5, solid_capstyle="butt")
        axes.plot(max(mean, left), place, "o", color=color, ms=4)
        between = "" if np.isnan(least) else f" [{least:.1f}, {most:.1f}]"
        axes.annotate(
            f"{mean:.1f}{between}", (1.02, place), xycoords=("axes fraction", "data"), va="center", fontsize=SMALL
        )
    axes.axvline(100, color="black", ls="--", lw=1)
    axes.set_yticks(range(len(shares)), [scheme_name(name) for name in shares])
    axes.set_xlim(left, None)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"utility, % of the {scheme_name(suite.best)}; dots: seeds, those below {left:g} at the edge")
    return save(figure, path)


def _bars(axes: Axes, results: pd.DataFrame, look: dict[str, Look], column: str) -> list[str]:
    """One bar per scheme, from above; RCARS and the oracle are lines. Returns what the bars are of."""
    bars: list[str] = []
    for scheme, own in results.groupby("scheme", sort=False):
        mean, least, most = interval(own[column].to_numpy())
        color, dashes, marker = look[str(scheme)]
        if marker is None:
            axes.axvline(mean, color=color, ls=dashes, lw=1)
            height = 1.02 if scheme == "oracle" else 1.1  # they may be close to each other
            axes.text(mean, height, f"{scheme_name(str(scheme))} {mean:.3f}", transform=axes.get_xaxis_transform(),
                      color=color, ha="center", fontsize=SMALL)  # fmt: skip
            continue
        spread = None if np.isnan(least) else [[mean - least], [most - mean]]
        axes.barh(len(bars), mean, xerr=spread, color=color, height=0.65, capsize=3)
        axes.annotate(f"{mean:.3f}", (0, len(bars)), (4, 0), textcoords="offset points", va="center", color="white")
        bars.append(str(scheme))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(QUANTITIES[column])
    return bars


def _swept(axes: Axes, results: pd.DataFrame, scheme: str, look: Look, column: str) -> End:
    own = results[results["scheme"] == scheme]
    stats = np.array([interval(part[column].to_numpy()) for _, part in own.groupby("value")])
    values = sorted(own["value"].unique())
    axes.plot(values, stats[:, 0], color=look.color, ls=look.dashes, marker=look.marker, ms=3.5, lw=1.2)
    low, high = (np.where(np.isnan(bound), stats[:, 0], bound) for bound in stats[:, 1:].T)
    axes.fill_between(values, low, high, color=look.color, alpha=0.2, lw=0)
    return End(values[-1], stats[-1, 0], f"{scheme_name(scheme)} {stats[-1, 0]:.3f}", look.color)


def learning_curve(axes: Axes, table: pd.DataFrame, name: str, look: Look) -> End:
    """The mean over runs within their range: a table with a column for each run; what its label says."""
    mean = table.mean(axis=1)
    axes.plot(table.index, mean, color=look.color, marker=look.marker, markevery=max(len(mean) // 8, 1), ms=3, lw=1.2)
    axes.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=look.color, alpha=0.15, lw=0)
    return End(table.index[-1], mean.iloc[-1], f"{name} {mean.iloc[-1]:.3f}", look.color)


def draw_curves(curves: pd.DataFrame, results: pd.DataFrame, suite: SuiteConfig, directory: Path) -> Path:
    """Utility over training by learner: the mean over seeds within their range; the best scheme and RCARS as lines."""
    style()
    values = list(curves["value"].unique())
    size = (5.75 * len(values), 3.2)
    figure, panels = plt.subplots(1, len(values), figsize=size, squeeze=False, sharey=True, layout="constrained")
    look = looks(list(dict.fromkeys(curves["scheme"])))
    for axes, value in zip(panels[0], values, strict=True):
        here, beside = (t[t["value"] == value] if pd.notna(value) else t for t in (curves, results))
        ends = []
        for scheme, own in here.groupby("scheme", sort=False):
            table = own.pivot_table(index="slots", columns="seed", values="utility")
            ends.append(learning_curve(axes, table, scheme_name(str(scheme)), look[str(scheme)]))
        for name in dict.fromkeys((suite.best, suite.reference)):
            level = beside.loc[beside["scheme"] == name, "utility"].mean()
            if pd.notna(level):
                ends.append(across(axes, name, level))
        axes.set_xlabel(QUANTITIES["slots"])
        axes.set_title("" if pd.isna(value) else f"{KEYS.get(str(suite.sweep), suite.sweep)}: {shown(value)}")
        if axes is panels[0][0]:
            axes.set_ylabel(QUANTITIES["utility"])
        figure.draw_without_rendering()
        label_ends(axes, ends)
    return save(figure, directory / "curves.png")
