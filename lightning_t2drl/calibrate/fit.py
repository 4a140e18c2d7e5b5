"""A concave curve of two or three knots through what was measured, and how sure its knots are."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from lightning_t2drl.errors import UserError
from lightning_t2drl.seeding import derive_seed

Array = NDArray[np.float64]
LEAST_R2 = 0.9
LARGEST_DROP = 0.1  # of the curve's range: what a metric may get worse with more steps, if that is not noise
DRAWS = 200
PLACES = 60  # where knots are first looked for


@dataclass(frozen=True)
class Fit:
    """A curve, flat before its first knot and after its last.

    Args:
        knots: (steps, metric), by steps.
        intervals: 95 % bootstrap intervals of the knots' steps.
        metric_intervals: likewise of their metric.
        r2: of the mean at each number of steps.
    """

    knots: tuple[tuple[float, float], ...]
    intervals: tuple[tuple[float, float], ...]
    metric_intervals: tuple[tuple[float, float], ...]
    r2: float

    def __call__(self, steps: Array) -> Array:
        places, values = np.array(self.knots).T
        return np.interp(steps, places, values)


def fit_curve(
    steps: Sequence[int], values: Sequence[Sequence[float]], better: str, whole: int | None, seed: int
) -> Fit:
    """Fit a curve and refuse one that is none.

    Args:
        steps: ascending numbers of steps, at least five.
        values: the metric's values at each.
        better: lower or higher.
        whole: steps of the whole chain, after which a curve may still rise because there is no more.
        seed: of the bootstrap.

    Raises:
        UserError: the metric gets worse with more steps, the fit is poor, or the values do not say where a knot is.
    """
    sign = 1.0 if better == "higher" else -1.0
    x = np.array(steps, float)
    samples = [sign * np.array(some, float) for some in values]
    y = np.array([some.mean() for some in samples])
    if np.ptp(y) == 0:
        raise UserError("the metric is the same with any number of steps")
    _refuse_falling(x, y, samples, sign)
    search, spread = _Search(x), float(np.square(y - y.mean()).sum())
    best = {count: search.best(y, count) for count in (2, 3)}

    def bic(count: int) -> float:
        return float(len(x) * np.log(max(best[count][2], 1e-12 * spread)) + 2 * count * np.log(len(x)))

    refusals = []
    for count in sorted(best, key=bic):  # the simpler one where noise hides a knot of the better one
        places, heights, rss = best[count]
        try:
            if not 1 - rss / spread >= LEAST_R2:
                raise UserError(f"R2 of the curve is {1 - rss / spread:.3f}, less than {LEAST_R2}; take more samples")
            low, high = _bootstrap(search, samples, count, seed)
            intervals = tuple(zip(low[0].tolist(), high[0].tolist(), strict=True))
            _refuse_unsure(x, places, intervals, whole)
        except UserError as error:
            refusals.append(error)
            continue
        ends = np.sort(sign * np.stack([low[1], high[1]]), axis=0)
        return Fit(
            tuple(zip(places.tolist(), (sign * heights).tolist(), strict=True)),
            intervals,
            tuple(zip(*ends.tolist(), strict=True)),
            1 - rss / spread,
        )
    raise refusals[0]


def _bootstrap(search: _Search, samples: Sequence[Array], count: int, seed: int) -> tuple[Array, Array]:
    """Both ends of the 95 % intervals of places and heights, [2, knots] each."""
    rng = np.random.default_rng(derive_seed(seed, "bootstrap"))
    draws = [np.array([rng.choice(some, len(some)).mean() for some in samples]) for _ in range(DRAWS)]
    found = [np.stack(search.best(again, count)[:2]) for again in draws]
    low, high = np.quantile(found, (0.025, 0.975), axis=0).round(3)
    return low, high


class _Search:
    """The best knots for any values at these steps: the best of many places, then refined.

    At given places the heights are a linear problem, so that only places are searched.
    """

    def __init__(self, x: Array) -> None:
        self.x = x
        grid = np.unique(np.concatenate([np.linspace(a, b, 3) for a, b in itertools.pairwise(x)]))
        grid = grid[np.linspace(0, len(grid) - 1, min(len(grid), PLACES)).round().astype(int)]
        self.places = {count: self._places(grid, count) for count in (2, 3)}
        self.bases = {count: np.stack([_hats(x, p) for p in places]) for count, places in self.places.items()}
        self.inverses = {count: np.linalg.pinv(bases) for count, bases in self.bases.items()}

    def _places(self, grid: Array, count: int) -> Array:
        places = np.array(list(itertools.combinations(grid, count)))
        return places[self._measured(places)]

    def _measured(self, places: Array) -> NDArray[np.bool_]:
        """Whether two measured numbers of steps lie on every piece, [..., knots] -> [...]: one alone leaves it open."""
        inside = (self.x >= places[..., :-1, None]) & (self.x <= places[..., 1:, None])
        return np.asarray((inside.sum(-1) >= 2).all(-1))

    def best(self, y: Array, count: int) -> tuple[Array, Array, float]:
        """Places and heights [count], and the sum of squared residuals."""
        heights = self.inverses[count] @ y
        rss = np.square(np.einsum("cnk,ck->cn", self.bases[count], heights) - y).sum(1)
        rss[~_concave(self.places[count], heights)] = np.inf
        start = self.places[count][rss.argmin()]
        if not np.isfinite(rss.min()):  # no concave curve of so many knots: a flat one
            return start, np.full(count, y.mean()), float(np.square(y - y.mean()).sum())

        def loss(places: Array) -> float:
            if (np.diff(places) <= 1e-6).any() or places[0] < self.x[0] or places[-1] > self.x[-1]:
                return float("inf")
            if not self._measured(places):
                return float("inf")
            heights, basis = self._heights(places, y)
            return float(np.square(basis @ heights - y).sum()) if _concave(places, heights) else float("inf")

        refined = minimize(loss, start, method="Nelder-Mead", options={"xatol": 0.01, "maxfev": 80})
        places = refined.x if refined.fun <= rss.min() else start
        return places, self._heights(places, y)[0], min(float(refined.fun), float(rss.min()))

    def _heights(self, places: Array, y: Array) -> tuple[Array, Array]:
        basis = _hats(self.x, places)
        return np.asarray(np.linalg.lstsq(basis, y, rcond=None)[0], float), basis


def _hats(x: Array, places: Array) -> Array:
    """What each knot's height contributes at x, [n, knots]."""
    return np.stack([np.interp(x, places, unit) for unit in np.eye(len(places))], 1)


def _concave(places: Array, heights: Array) -> NDArray[np.bool_]:
    """Whether curves rise, ever less steeply, [..., knots] -> [...]."""
    slopes = np.diff(heights) / np.diff(places)
    return np.asarray((slopes > 0).all(-1) & (np.diff(slopes) <= 0).all(-1))


def _refuse_falling(x: Array, y: Array, samples: Sequence[Array], sign: float) -> None:
    errors = np.array([some.std(ddof=1) / np.sqrt(len(some)) if len(some) > 1 else 0.0 for some in samples])
    best = np.maximum.accumulate(y)
    at = [int(np.flatnonzero(y[: i + 1] == best[i])[0]) for i in range(len(y))]
    drops, noise = best - y, 3 * np.hypot(errors, errors[at])
    bad = np.flatnonzero((drops > noise) & (drops > LARGEST_DROP * np.ptp(y)))
    if len(bad):
        i = int(bad[drops[bad].argmax()])
        raise UserError(
            f"the metric is not monotone: {sign * y[at[i]]:.4g} with {x[at[i]]:g} steps, "
            f"{sign * y[i]:.4g} with {x[i]:g}"
        )


def _refuse_unsure(x: Array, places: Array, intervals: Sequence[tuple[float, float]], whole: int | None) -> None:
    widest = np.sqrt(x[-1] / x[0])
    for number, (low, high) in enumerate(intervals, 1):
        if high > widest * low:
            raise UserError(
                f"knot {number} is not identified: 95 % interval {low:.3g} to {high:.3g} steps; take more samples"
            )
    if places[-1] > 0.98 * x[-1] and (whole is None or x[-1] < whole):
        raise UserError(
            f"the last knot is not identified: quality still rises at {x[-1]:g} steps; measure more (steps)"
        )
