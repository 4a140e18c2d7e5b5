"""What was measured, as JSON and as a Markdown page."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import Spread
from lightning_t2drl.suite.benchmark import commit


@dataclass
class Section:
    """One item's results.

    Args:
        title, setting: what was measured, and how.
        rows: a table, one dict per row; a cell is text, a number, a `Spread` or None.
        notes: one sentence each.
        figures: files beside the page.
        details: what goes into the JSON file only.
    """

    title: str
    setting: str
    rows: list[dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    details: list[dict[str, Any]] = field(default_factory=list)


def provenance(command: str) -> dict[str, Any]:
    """Where figures come from: no host name, no path."""
    return {
        "command": command,
        "date": date.today().isoformat(),
        "commit": commit(),
        "cpu": _cpu("model name") or platform.processor() or "unknown",
        "vendor": _cpu("vendor_id") or "unknown",
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "libraries": _libraries(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
    }


def _cpu(key: str) -> str | None:
    """What Linux says of the first core."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return None
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), None)


def _libraries() -> str:
    """What multiplies matrices: the libraries that PyTorch is built with, and their versions."""
    built = torch.__config__.show()
    found = re.findall(r"(Math Kernel Library Version [\w.-]+|MKL-DNN v[\w.]+|BLAS_INFO=\w+)", built)
    names = {"Math Kernel Library Version": "MKL", "MKL-DNN": "oneDNN", "BLAS_INFO=": "BLAS "}
    for long, short in names.items():
        found = [text.replace(long, short) for text in found]
    return ", ".join(found)


IN_TURN = (
    "denormals flushed; cells with brackets: median [quartiles] over rounds in which all contenders of a table "
    "took turns, shuffled; ratios are taken round by round"
)


def write(
    directory: Path,
    origin: dict[str, Any],
    sections: dict[str, Section],
    title: str = "Speed",
    method: str = IN_TURN,
) -> str:
    """Write `speed.json` and `README.md`; returns the page."""
    directory.mkdir(parents=True, exist_ok=True)
    content = {"provenance": origin, "items": {name: asdict(section) for name, section in sections.items()}}
    (directory / "speed.json").write_text(json.dumps(content, indent=1) + "\n")
    page = "\n".join([*_head(title, origin, method), *(line for s in sections.values() for line in _section(s))]) + "\n"
    (directory / "README.md").write_text(page)
    return page


def _head(title: str, origin: dict[str, Any], method: str) -> list[str]:
    return [
        f"# {title}",
        "",
        *origin_lines(origin),
        f"- {method}",
    ]


def origin_lines(origin: dict[str, Any]) -> list[str]:
    """Where figures come from, as a list of a page."""
    o = origin
    return [
        f"- command: `{o['command']}`",
        f"- commit {o['commit']}, {o['date']}",
        f"- {o['cpu']} ({o['vendor']}, {o['instructions']}), {o['machine']} with {o['cores']} cores, {o['system']}",
        *([f"- {o['gpu']}"] if "gpu" in o else []),
        f"- Python {o['python']}, torch {o['torch']} ({o['libraries']}), {o['threads']} thread",
    ]


def _section(section: Section) -> list[str]:
    lines = ["", f"## {section.title}", "", section.setting, ""]
    columns = list(dict.fromkeys(key for row in section.rows for key in row))
    lines.append("| " + " | ".join(columns) + " |")
    text = [all(isinstance(row.get(column, ""), str) for row in section.rows) for column in columns]
    lines.append("| " + " | ".join("---" if left else "---:" for left in text) + " |")
    for row in section.rows:
        lines.append("| " + " | ".join(cell(row.get(column)) for column in columns) + " |")
    if section.notes:
        lines += ["", *(f"- {note}" for note in section.notes)]
    for figure in section.figures:
        lines += ["", f"![{section.title}]({figure})"]
    return lines


def cell(value: Any) -> str:
    """One cell of a table."""
    if value is None:
        return "–"
    if isinstance(value, Spread):
        return f"{_number(value.median)} [{_number(value.lower)}, {_number(value.upper)}]"
    return value if isinstance(value, str) else _number(value)


def _number(value: float) -> str:
    """Three significant digits, thousands without exponent."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
