"""Results as terminal tables."""

from __future__ import annotations

from typing import Any

from rich.table import Table

SHOWN = (
    ("total_utility", "total utility", 2),
    ("utility", "per slot", 4),
    ("hit_ratio", "hit ratio", 3),
    ("violation_ratio", "late", 3),
    ("quality", "quality", 3),
    ("delay", "delay s", 1),
)


def schemes_table(results: dict[str, Any]) -> Table:
    """One row per scheme, mean and standard error over the episodes."""
    title = (
        f"{results['episodes']} episodes on env={results['scenario']}, seed {results['seed']} (mean ± standard error)"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("scheme", no_wrap=True)
    for _, label, _ in SHOWN:
        table.add_column(label, justify="right")
    for name, scheme in results["schemes"].items():
        cells = [f"{scheme[k]['mean']:.{d}f} ± {scheme[k]['standard_error']:.{d}f}" for k, _, d in SHOWN]
        table.add_row(name, *cells)
    return table


def improvement(ours: dict[str, Any], theirs: dict[str, Any], key: str) -> float:
    """How much larger our mean is, in percent of theirs."""
    return 100 * (ours[key]["mean"] / theirs[key]["mean"] - 1)
