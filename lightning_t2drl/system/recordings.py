"""Tables of the user's own: requests, positions, path losses. Each fault is one line with file and row."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from lightning_t2drl.checks import Misfit, nearest
from lightning_t2drl.errors import UserError

Array = np.ndarray[Any, Any]
PARQUET = (".parquet", ".pq")
LARGEST = 10**8  # numbers of a recording that is held in memory
LATEST = 1e12  # s


def check_columns(columns: Mapping[str, str], known: Sequence[str]) -> None:
    """Refuse names for columns that nothing reads."""
    for key in columns:
        if key not in known:
            raise Misfit(f"columns.{key}: no such column{nearest(key, known)}; there are {', '.join(known)}")


def check_start(start: float | None) -> None:
    """Refuse a time that is none; `math.nan` and infinity among them."""
    if start is not None and not abs(start) <= LATEST:
        raise Misfit(f"start: {start} is not a time in s between -{LATEST:g} and {LATEST:g}")


class Recording:
    """A CSV or Parquet file with one row per event, and checks of its columns.

    Args:
        key: the config key that names the file.
        file: its path.
        columns: the file's own name of each column that is called otherwise.

    Raises:
        UserError: it cannot be read, or holds no rows; here and below one line with file and row.
    """

    def __init__(self, key: str, file: str, columns: Mapping[str, str] | None = None) -> None:
        self.label = f"{key}: {file}"
        if not file:
            raise UserError(f"{key}: missing; it names a CSV or Parquet file")
        if not Path(file).exists():
            raise UserError(f"{self.label} does not exist")
        if not Path(file).is_file():
            raise UserError(f"{self.label} is {'a directory, not a file' if Path(file).is_dir() else 'no file'}")
        self.names = dict(columns or {})
        self.table, self.digest = _read(self.label, Path(file).absolute(), Path(file).stat().st_mtime_ns)
        if self.table.empty:
            raise UserError(f"{self.label} holds no rows")

    def __len__(self) -> int:
        return len(self.table)

    def has(self, name: str) -> bool:
        return self.names.get(name, name) in self.table

    def column(self, name: str) -> pd.Series[Any]:
        """A column as it is."""
        its = self.names.get(name, name)
        if its not in self.table:
            known = ", ".join(map(str, self.table.columns[:8]))
            raise UserError(f"{self.label} has no column {its!r}; there are {known}")
        column = self.table[its]
        self.refuse(column.isna().to_numpy(), lambda row: f"{its} is missing")
        return column

    def numbers(self, name: str, low: float = -np.inf, high: float = np.inf) -> Array:
        """A column of finite numbers from `low` to `high`, float64."""
        column = self.column(name)
        values = pd.to_numeric(column, errors="coerce").to_numpy(dtype=float)
        self.refuse(np.isnan(values), lambda row: f"{name} {column.iloc[row]!r} is no number")
        wrong = (values < low) | (values > high) | ~np.isfinite(values)

        def fault(row: int) -> str:
            if not np.isfinite(values[row]):
                return "not finite"
            return f"below {low:g}" if values[row] < low else f"above {high:g}"

        self.refuse(wrong, lambda row: f"{name} {column.iloc[row]} is {fault(row)}")
        return values

    def whole(self, name: str, count: int, what: str) -> Array:
        """A column of whole numbers from 0 to `count` - 1, int64; `what` says what limits them."""
        values = self.numbers(name)
        wrong = (values != np.floor(values)) | (values < 0) | (values >= count)
        self.refuse(wrong, lambda row: f"{name} {values[row]:g} is not a whole number from 0 to {count - 1} ({what})")
        return values.astype(np.int64)

    def seconds(self, slot_seconds: float) -> Array:
        """When each row is, in seconds, from `time` or `slot`; they may not go back. Dates count from 1970."""
        name = "time" if self.has("time") or not self.has("slot") else "slot"
        column = self.column(name)
        dated = column.dtype.kind == "M" or (column.dtype == object and "-" in str(column.iloc[0])[1:])
        if dated:
            dates = pd.to_datetime(column, errors="coerce", utc=True, format="ISO8601")
            self.refuse(dates.isna().to_numpy(), lambda row: f"{name} {column.iloc[row]!r} is no date")
            values = ((dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)).to_numpy()
        else:
            values = self.numbers(name, -LATEST, LATEST)
        back = np.concatenate(([False], values[1:] < values[:-1]))
        self.refuse(back, lambda row: f"{name} goes back from {column.iloc[row - 1]} to {column.iloc[row]}")
        if name == "slot":
            return values * (slot_seconds or 1.0)
        if slot_seconds == 0:
            raise UserError(
                f"{self.label}: time needs slots of some seconds (env.slot_duration); or give a column slot"
            )
        return values

    def refuse(self, wrong: Array, text: Any) -> None:
        """Raise for the first row that is wrong."""
        if wrong.any():
            row = int(np.argmax(wrong))
            raise UserError(f"{self.label}, row {row + 1}: {text(row)}")

    def small_enough(self, *sizes: int) -> None:
        """Refuse what would not fit into memory."""
        if np.prod([float(size) for size in sizes]) > LARGEST:
            raise UserError(f"{self.label} lasts {sizes[0]} slots, too long to be held; cut it, or give longer slots")


@functools.lru_cache(maxsize=4)
def _read(label: str, path: Path, changed: int) -> tuple[pd.DataFrame, str]:
    """The file's table and a digest of its content; read once while it does not change."""
    try:
        digest = hashlib.blake2b(path.read_bytes(), digest_size=8).hexdigest()
        table = pd.read_parquet(path) if path.suffix in PARQUET else _read_csv(label, path)
        return table, digest
    except UserError:
        raise
    except pd.errors.EmptyDataError:
        raise UserError(f"{label} is empty") from None
    except ImportError:
        raise UserError(f'{label}: pyarrow is not installed; pip install "lightning-t2drl[records]"') from None
    except (OSError, ValueError) as error:  # of other libraries, too: ParserError, UnicodeDecodeError, ArrowInvalid
        raise UserError(f"{label} is no table that can be read ({next(iter(str(error).splitlines()), '')})") from None


def _read_csv(label: str, path: Path) -> pd.DataFrame:
    """A table whose columns are named once, and whose rows are as long as its header."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)
        try:
            table = pd.read_csv(path, skipinitialspace=True, index_col=False)
        except pd.errors.ParserWarning:
            raise UserError(f"{label}: its rows have more fields than its header") from None
    names = pd.read_csv(path, skipinitialspace=True, header=None, nrows=1, dtype=str).iloc[0]
    if len(twice := names[names.duplicated()].dropna()):
        raise UserError(f"{label} has two columns {twice.iloc[0]!r}")
    return table


def whole_slots(seconds: Array, start: float | None, slot_seconds: float) -> Array:
    """The slot of each row, int64, counted from `start` (None: the first row's slot)."""
    length = slot_seconds or 1.0
    slots = slot_of(seconds, length)
    first = slots[0] if start is None else slot_of(start, length)
    return (slots - first).astype(np.int64)


def slot_of(seconds: Any, length: float) -> Any:
    """The number of the slot in which a time is: a hair's breadth later, so that 3 x 0.1 s is in slot 3 of 0.1 s."""
    slots = seconds / length
    return np.floor(slots + np.maximum(1e-6, 1e-15 * np.abs(slots)))
