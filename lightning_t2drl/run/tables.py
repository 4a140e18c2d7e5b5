"""Results as terminal tables."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

SHOWN = (  # metric, label, digits, whether its standard error is shown
    ("total_utility", "total utility", 2, True),
    ("hit_ratio", "hit ratio", 3, True),
    ("violation_ratio", "late", 3, False),
    ("delay", "delay s", 1, False),
)
OF_SERVICE = (
    ("hit_ratio", "hit ratio", 3),
    ("violation_ratio", "late", 3),
    ("quality", "quality", 3),
    ("delay", "delay s", 1),
)
BEST = "oracle"


def rows(results: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The run's own schemes and then the references, by names that differ."""
    own = list(results["schemes"].items())
    taken = set(results["schemes"])
    notes = {BEST: " (hindsight)"} if results.get("hindsight") else {}
    return own + [
        (f"{name} (reference)" if name in taken else name + notes.get(name, ""), scheme)
        for name, scheme in results.get("references", {}).items()
    ]


def plain_table(*columns: str) -> Table:
    """A table of plain text: the first column to the left, the others, numbers, to the right."""
    table = Table(box=box.SIMPLE, pad_edge=False, title_justify="left")
    for number, label in enumerate(columns):
        table.add_column(label, justify="right" if number else "left", overflow="fold", no_wrap=bool(number))
    return table


def schemes_table(results: dict[str, Any]) -> Table:
    """One row per scheme, mean and standard error over the episodes, and the share of the oracle where it played."""
    best = results.get("references", {}).get(BEST)
    table = plain_table("scheme", *(label for _, label, _, _ in SHOWN), *(["of oracle"] if best else []))
    count = "1 episode" if results["episodes"] == 1 else f"{results['episodes']} episodes"
    users = f" with {results['users']} users" if "users" in results else ""
    table.title = Text(f"{count} on env={results['scenario']}{users}, seed {results['seed']}")
    for name, scheme in rows(results):
        cells = [_cell(scheme[key], digits, error) for key, _, digits, error in SHOWN]
        if best:
            cells.append(f"{share(scheme, best):.2f} %" if best["utility"]["mean"] > 0 else "-")
        table.add_row(Text(name), *cells)
    return table


def bound_line(results: dict[str, Any]) -> str | None:
    """The total utility that no allocation exceeds with the oracle's caches, and shares of it; None if it is not known.

    It is proven for every slot played (docs/concepts/bound.md). That no other caches allow more is not: the oracle
    compares them on sampled slots.
    """
    bound = results.get("references", {}).get(BEST, {}).get("bound")
    if bound is None or bound["mean"] <= 0:
        return None
    total = ((name, scheme["total_utility"]["mean"]) for name, scheme in rows(results))
    shares = ", ".join(f"{name} {100 * value / bound['mean']:.2f} %" for name, value in total)
    return f"of the bound with the oracle's caches, {bound['mean']:.2f}: {shares}"


def services_table(results: dict[str, Any], name: str) -> Table | None:
    """One row per service of a scheme; None where all models are of one service."""
    scheme = results["schemes"][name]
    if not (kinds := [key.partition("/")[2] for key in scheme if key.startswith("hit_ratio/")]):
        return None
    table = plain_table("service", *(label for _, label, _ in OF_SERVICE), "metric")
    table.title = Text(f"{name} by service; {100 * scheme['wasted_steps']['mean']:.1f} % of hits got steps in vain")
    for kind in kinds:
        cells = [f"{scheme[f'{key}/{kind}']['mean']:.{digits}f}" for key, _, digits in OF_SERVICE]
        table.add_row(Text(kind), *cells, f"{scheme[f'metric/{kind}']['mean']:.4g}")
    return table


def _cell(metric: dict[str, Any], digits: int, with_error: bool) -> str:
    error = metric["standard_error"]
    known = with_error and error is not None and error == error
    return f"{metric['mean']:.{digits}f}" + (f" ± {error:.{digits}f}" if known else "")


def share(ours: dict[str, Any], best: dict[str, Any]) -> float:
    """Mean utility in percent of the best scheme's."""
    return 100 * ours["utility"]["mean"] / best["utility"]["mean"]


LEAST_BASE = 0.1  # of what exceeds it: over less than that, and over less than nothing, percents say nothing


def improvement(ours: float, theirs: float) -> float:
    """By how many percent the first exceeds the second; NaN where the second is not positive, or next to nothing."""
    return 100 * (ours / theirs - 1) if theirs > max(0.0, LEAST_BASE * ours) else float("nan")


def improvement_line(label: str, ours: float, theirs: float) -> str:
    """The improvement as a line, as a difference where percents say nothing."""
    percent = improvement(ours, theirs)
    said = f"{ours - theirs:+.2f}" if percent != percent else f"{percent:+.2f} %"
    return f"{label}: {said} over random caching with equal split"
