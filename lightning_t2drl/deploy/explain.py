"""Advice for one situation, in words an operator checks: what to cache, who gets what, and what another cache costs.

Needs no PyTorch; `run.explain` does the same from a checkpoint and adds the proven bound.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_t2drl.checks import nearest
from lightning_t2drl.deploy.controller import Cell
from lightning_t2drl.errors import UserError

Arrays = dict[str, NDArray[Any]]
Progressed = Callable[[int, int], None]

MB = 8e6  # bit
GB = 8e9  # bit
# What a situation may say, and what it stands for. `feeds` and `cache` of `deploy.Controller` say the rest.
KEYS = {
    "popularity": "number of the popularity state, or a number for each model",
    "held": "numbers of the models that are held now",
    "cache": "numbers of the models to hold, instead of the policy's choice",
    "request": "number of the model that each user asks for",
    "input_mb": "payload of each user, MB",
    "output_mb": "payload back of each user, MB",
    "snr_db": "uplink signal-to-noise ratio of each user over the whole bandwidth, dB",
    "gain": "linear power gain of each user's link, instead of snr_db",
    "handover": "numbers of the users that were taken over in this slot",
    "nearby": "numbers of the models that another cell holds",
    "uplink_interference": "power from other cells at the station, W",
    "downlink_interference": "power from other cells at each user, W",
}
NEEDED = ("request", "input_mb", "output_mb")
OUTCOME = ("hit", "nearby", "delay", "quality", "late", "utility")  # columns of `outcome.onnx`
DRAWS = 32  # slots on which caches are compared
MOST_CHANGES = 200  # caches that are compared


def read_situation(source: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """A situation from a JSON file, or as it is, with its keys checked.

    Raises:
        UserError: it cannot be read, or has another key, or lacks one.
    """
    content: Any = source
    if not isinstance(source, (str, Path, Mapping)):
        raise UserError(f"situation: {source!r} is neither a JSON file nor a mapping of {', '.join(KEYS)}")
    if not isinstance(source, Mapping):
        try:
            content = json.loads(Path(source).read_text())
        except OSError as error:
            raise UserError(f"{source}: cannot be read ({error.strerror})") from None
        except (ValueError, RecursionError) as error:
            raise UserError(f"{source}: no JSON ({error})") from None
    where = "" if isinstance(source, Mapping) else f"{source}: "
    if not isinstance(content, Mapping):
        raise UserError(f"{where}a situation is an object of {', '.join(KEYS)}")
    for key in content:
        if key not in KEYS:
            raise UserError(f"{where}{key}: no such key{nearest(str(key), KEYS) or '; known are ' + ', '.join(KEYS)}")
    for key in NEEDED:
        if key not in content:
            raise UserError(f"{where}{key}: missing; {KEYS[key]}")
    if ("popularity" in content) == ("cache" in content) and "popularity" not in content:
        raise UserError(f"{where}popularity, cache: give one of the two")
    return dict(content)


def explain(
    cell: Cell, situation: Mapping[str, Any], seed: int = 0, progress: Progressed = lambda done, total: None
) -> dict[str, Any]:
    """What the policy advises in a situation, and what comes of it.

    Caches are compared on `DRAWS` slots of the same users, whose requests are drawn by the popularity; where that is
    not given, on this slot alone. All meet the same draws, and in each the policy splits the rest.

    Args:
        cell: an exported policy, or one from a checkpoint.
        situation: what `read_situation` returned.
        seed: of the draws and of the diffusion chains.
        progress: called with the number of caches compared and that of all.

    Returns:
        `cache` (models, counted from 0), `cache_gb`, `storage_gb`; `users`, for each `model`, `from`, `bandwidth`
        (share), `steps`, `delay_s`, `quality`, `late`, `utility`; `utility`, their mean; `expected_utility` of the
        cache, if `held` is given less what loading costs in the coming frame; and `next_best`: its `cache`, `change`,
        `expected_utility` and `cost`, by how much it is worse.

    Raises:
        UserError: the situation does not fit the policy; the line names the key.
    """
    try:
        return _explain(cell, situation, seed, progress)
    except ValueError as error:
        raise error if isinstance(error, UserError) else UserError(str(error)) from None


def _explain(cell: Cell, situation: Mapping[str, Any], seed: int, progress: Progressed) -> dict[str, Any]:
    popularity: Any = situation.get("popularity")
    if popularity is not None:
        cell._popularity(popularity)  # also beside a given cache
    storage = np.asarray(cell.policy["scenario"]["model_storage"])
    held = situation.get("held")
    held = None if held is None else chosen("held", held, cell.models)
    if situation.get("cache") is not None:
        cache = chosen("cache", situation["cache"], cell.models)
    else:
        nearby = situation.get("nearby")
        nearby = None if nearby is None else chosen("nearby", nearby, cell.models)
        request = situation["request"]
        users = len(request) if isinstance(request, (list, tuple)) else None  # what it has to be is checked below
        cache = cell.cache(popularity, held, users, nearby)
    feeds = feeds_of(cell, situation, cache)
    generator = np.random.default_rng(seed)
    shares = cell.decide({name: value[None] for name, value in feeds.items()}, generator)
    served = cell.outcome({name: value[None] for name, value in feeds.items()}, shares)[0]
    probability = request_probability(cell.policy, popularity)
    expected, others = _compare(cell, feeds, cache, held, probability, seed, progress)
    best = max(others, key=others.__getitem__, default=None)
    return {
        "policy": cell.policy["name"],
        "cache": np.flatnonzero(cache).tolist(),
        "cache_gb": round(float(storage[cache].sum()) / GB, 3),
        "storage_gb": round(cell.policy["scenario"]["storage_capacity"] / GB, 3),
        "users": [_user(*row, cell) for row in zip(feeds["request"].tolist(), shares[0], served, strict=True)],
        "utility": _rounded(served[:, OUTCOME.index("utility")].mean()),
        "expected_utility": _rounded(expected),
        "next_best": None if best is None else {
            "cache": list(best),
            "change": change(np.flatnonzero(cache).tolist(), list(best)),
            "expected_utility": _rounded(others[best]),
            "cost": _rounded(expected - others[best]),
        },
    }  # fmt: skip


def feeds_of(cell: Cell, situation: Mapping[str, Any], cache: NDArray[np.bool_]) -> Arrays:
    """The situation as arrays, checked as `Controller.allocate` checks its arguments."""
    more = {key: situation[key] for key in ("snr_db", "gain", "uplink_interference", "downlink_interference")
            if situation.get(key) is not None}  # fmt: skip
    request = situation["request"]
    if situation.get("handover") is not None:
        more["handover"] = chosen("handover", situation["handover"], len(request))
    if situation.get("nearby") is not None:
        more["nearby"] = chosen("nearby", situation["nearby"], cell.models)
    bits = []
    for key in ("input_mb", "output_mb"):
        try:
            bits.append(np.asarray(situation[key], np.float64) * MB)
        except (TypeError, ValueError, OverflowError):
            raise UserError(f"{key}: not an array of numbers") from None
    try:
        return cell.feeds(request, bits[0], bits[1], cache, **more)
    except ValueError as error:  # names the bits, which the situation has as MB
        raise UserError(str(error).replace("put_bits", "put_mb x 8e6 bit")) from None


def chosen(key: str, numbers: Any, count: int) -> NDArray[np.bool_]:
    """Flags [count] from the numbers of those chosen."""
    listed = isinstance(numbers, (list, tuple)) and all(type(n) is int and 0 <= n < count for n in numbers)
    if not listed:
        raise UserError(f"{key}: {numbers!r} is no list of numbers from 0 to {count - 1}")
    flags = np.zeros(count, bool)
    flags[list(numbers)] = True
    return flags


def request_probability(policy: Mapping[str, Any], popularity: Any) -> NDArray[np.float64] | None:
    """How likely each model is asked for, [M]; None where nothing is said of it."""
    if popularity is None:
        return None
    if policy["popularity"] == "state":
        table = np.asarray(policy["scenario"]["request_probability"], np.float64)
        return table.reshape(-1, table.shape[-1])[int(popularity)]
    counts = np.asarray(popularity, np.float64)
    return counts / counts.sum() if counts.sum() > 0 else np.full(len(counts), 1 / len(counts))


def changes(cache: NDArray[np.bool_], storage: NDArray[Any], capacity: float) -> list[NDArray[np.bool_]]:
    """The caches that fit and differ by a model added, dropped or swapped."""
    models = len(cache)
    pairs = [(m, m) for m in range(models)] + [(a, b) for a in range(models) if cache[a] for b in range(models)
                                               if not cache[b]]  # fmt: skip
    found = []
    for a, b in pairs:
        other = cache.copy()
        other[[a, b]] = ~other[[a, b]]
        if storage[other].sum() <= capacity * (1 + 1e-9):
            found.append(other)
    return found[:MOST_CHANGES]


def _compare(
    cell: Cell,
    feeds: Arrays,
    cache: NDArray[np.bool_],
    held: NDArray[np.bool_] | None,
    probability: NDArray[np.float64] | None,
    seed: int,
    progress: Progressed,
) -> tuple[float, dict[tuple[int, ...], float]]:
    """The expected utility of the cache, and of those that differ from it by little, by their models.

    Where it is known what is held, less what loading the rest costs in the coming frame.
    """
    scenario, generator = cell.policy["scenario"], np.random.default_rng(seed)
    draws = feeds["request"][None]
    if probability is not None:
        shape = (DRAWS, len(feeds["request"]))
        draws = generator.choice(len(probability), shape, p=probability / probability.sum())
    caches = [cache, *changes(cache, np.asarray(scenario["model_storage"]), scenario["storage_capacity"])]
    utilities = []
    for number, offered in enumerate(caches):
        progress(number, len(caches))
        batch = {name: np.repeat(value[None], len(draws), 0) for name, value in feeds.items()}
        batch |= {"request": draws.astype(np.int64), "cache": np.repeat(offered[None], len(draws), 0)}
        shares = cell.decide(batch, np.random.default_rng(seed))
        utility = float(cell.outcome(batch, shares)[..., OUTCOME.index("utility")].mean())
        if held is not None:
            utility -= scenario["switch_cost"] * float(np.asarray(scenario["model_storage"])[offered & ~held].sum())
        utilities.append(utility)
    keys = [tuple(np.flatnonzero(offered).tolist()) for offered in caches[1:]]
    return utilities[0], dict(zip(keys, utilities[1:], strict=True))


def change(now: list[int], then: list[int]) -> str:
    """`without 3, with 5`."""
    parts = [f"{word} {', '.join(map(str, models))}" for word, models in
             (("without", sorted({*now} - {*then})), ("with", sorted({*then} - {*now}))) if models]  # fmt: skip
    return ", ".join(parts)


def _user(model: int, shares: NDArray[Any], served: NDArray[Any], cell: Cell) -> dict[str, Any]:
    of = dict(zip(OUTCOME, served.tolist(), strict=True))
    return {
        "model": model,
        "from": "the cell" if of["hit"] else "another cell" if of["nearby"] else "the cloud",
        "bandwidth": _rounded(shares[0]),
        "steps": round(float(shares[1] * cell.budget_steps[model]), 1),
        "delay_s": round(of["delay"], 2),
        "quality": _rounded(of["quality"]),
        "late": bool(of["late"]),
        "utility": _rounded(of["utility"]),
    }


def _rounded(value: Any) -> float:
    return round(float(value), 5)
