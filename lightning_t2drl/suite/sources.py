"""What runs and evaluations left, wherever it is: directories, tables, JSON, and W&B's offline files."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lightning_t2drl.errors import UserError
from lightning_t2drl.run.evaluate import RESULT
from lightning_t2drl.run.loggers import COUNTERS, EVALUATION, EVALUATIONS, Row
from lightning_t2drl.run.resume import CONFIG
from lightning_t2drl.suite.comparison import shown

KNOWN = "a run's or an evaluation's directory, its evaluation.json or evaluations.csv, a suite's results.csv, *.wandb"
ERROR = "_standard_error"
FINAL = "final/"  # of a W&B run's summary
BLOCK, HEADER = 32768, 7  # W&B's files are framed as LevelDB's: checksum, length and kind before every piece

Metrics = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """What is known of one run of a scheme.

    Args:
        name: of the scheme; the user's, or the run's own.
        path: where it was found.
        metrics: by name `mean`, `standard_error` over episodes (None if unknown), and of some their own `episodes`.
        played: scenario, episodes, seed, users and a digest of the scenario's values, so far as they are known.
        references: metrics of RCARS and the oracle on the same worlds.
        curve: one row per evaluation during training, with `frame` and `slots`.
        note: what a reader should know of it.
    """

    name: str
    path: Path
    metrics: Metrics = field(default_factory=dict)
    played: tuple[Any, ...] = ()
    references: dict[str, Metrics] = field(default_factory=dict)
    curve: pd.DataFrame | None = None
    note: str = ""


def read_source(path: Path) -> list[Source]:
    """What a path holds: one run, or all of a suite's.

    Raises:
        UserError: it holds none, or cannot be read.
    """
    try:
        if path.is_dir():
            return _directory(path)
        if path.suffix == ".wandb":
            return [_wandb(path)]
        if path.suffix == ".json":
            return _evaluation(path)
        if path.suffix == ".csv":
            return _table(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError, struct.error) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: nothing that can be compared ({KNOWN})") from None
    raise UserError(f"{path}: nothing that can be compared ({KNOWN})" if path.exists() else f"{path}: no such file")


def _directory(path: Path) -> list[Source]:
    table = path / EVALUATIONS
    curve = pd.read_csv(table) if table.is_file() else None
    if (path / RESULT).is_file():
        return [replace(source, curve=curve) for source in _evaluation(path / RESULT)]
    if curve is not None and len(curve):
        config = yaml.safe_load((path / CONFIG).read_text()) if (path / CONFIG).is_file() else {}
        return [_unfinished(str(config.get("name") or path.name), path, curve)]
    for inner in ("results.csv", *(file.name for file in sorted(path.glob("*.wandb")))):
        if (path / inner).is_file():
            return read_source(path / inner)
    raise UserError(f"{path}: holds nothing that can be compared ({KNOWN})")


def _evaluation(path: Path) -> list[Source]:
    results = json.loads(path.read_text())
    told = ("scenario", "episodes", "seed", "users", "values")  # the last two are not in those of earlier versions
    played = tuple(results[key] for key in told if key in told[:3] or key in results)
    references = results.get("references", {})
    return [Source(name, path, scheme, played, references) for name, scheme in results["schemes"].items()]


def _table(path: Path) -> list[Source]:
    table = pd.read_csv(path)
    if "scheme" not in table:
        if "frame" not in table or not len(table):
            raise ValueError(path)
        return [_unfinished(path.parent.name, path, table)]
    sources = []
    for _, row in table.iterrows():
        numbers = {
            key: value for key, value in row.items() if isinstance(value, float) and key not in ("seed", "value")
        }
        at = "" if pd.isna(row.get("value")) else f" at {shown(row['value'])}"
        metrics = {str(key): {"mean": value, "standard_error": None} for key, value in numbers.items()}
        sources.append(Source(f"{row['scheme']}{at}", path, metrics, (path.parent.name,)))
    return sources


def _unfinished(name: str, path: Path, curve: pd.DataFrame) -> Source:
    """A run without a final evaluation: its last one stands for it."""
    last = curve.iloc[-1]
    keys = [str(key) for key in curve if key not in (*COUNTERS, "run") and not str(key).endswith(ERROR)]
    metrics = {key: {"mean": float(last[key]), "standard_error": last.get(f"{key}{ERROR}")} for key in keys}
    return Source(name, path, metrics, (), {}, curve, f"its last evaluation, at frame {int(last['frame'])}")


# -- W&B


def _wandb(path: Path) -> Source:
    from wandb.proto import wandb_internal_pb2

    protocol: Any = wandb_internal_pb2  # whose classes are made when it is imported
    name = path.stem
    rows: list[Row] = []
    summary: Row = {}
    for content in _pieces(path.read_bytes()):
        record = protocol.Record.FromString(content)
        kind = record.WhichOneof("record_type")
        if kind == "run" and not rows:
            name = record.run.display_name or name
        elif kind == "history":
            rows.append(_values(record.history.item))
        elif kind == "summary":
            summary |= _values(record.summary.update)
    ours = [{k.removeprefix(EVALUATION): v for k, v in r.items() if k in COUNTERS or EVALUATION in k} for r in rows]
    evaluated = [row for row in ours if "utility" in row]
    curve = pd.DataFrame(evaluated)
    final = {
        k.removeprefix(FINAL): {"mean": v, "standard_error": None} for k, v in summary.items() if k.startswith(FINAL)
    }
    if not len(curve):
        raise UserError(f"{path}: a W&B run without evaluations")
    source = _unfinished(name, path, curve)
    return replace(source, metrics=final, note="") if final else source


def _values(items: Any) -> Row:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _pieces(data: bytes) -> Iterator[bytes]:
    """The records of a W&B file; one that a kill has torn ends it."""
    at, whole = HEADER, b""
    while at + HEADER <= len(data):
        if BLOCK - at % BLOCK < HEADER:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + HEADER])
        if at + HEADER + length > len(data):
            return
        whole += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (1, 4):  # whole, or its last piece
            yield whole
            whole = b""
