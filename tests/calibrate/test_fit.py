"""Curves through synthetic measurements: recovered within their intervals, or refused in one line."""

import numpy as np
import pandas as pd
import pytest

from lightning_t2drl.calibrate import fit as module
from lightning_t2drl.calibrate.fit import fit_curve
from lightning_t2drl.calibrate.timing import fit_seconds
from lightning_t2drl.errors import UserError

SHORT = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32]


@pytest.fixture(autouse=True)
def fewer_draws(monkeypatch):
    monkeypatch.setattr(module, "DRAWS", 60)


def measured(curve, steps, deviation, samples=64, seed=0):
    rng = np.random.default_rng(seed)
    return [curve(count) + deviation * rng.standard_normal(samples) for count in steps]


@pytest.mark.parametrize(
    ("knots", "steps", "deviation", "better", "whole"),
    [
        ([(60, 110), (170, 28)], list(range(20, 201, 15)), 8.0, "lower", 200),  # the published curve
        ([(1, 0.2), (6, 0.6), (20, 0.8)], SHORT, 0.05, "higher", None),
        ([(1, 1.0), (32, 2.0)], SHORT, 0.05, "higher", 32),  # rises to the end of its chain
    ],
)
def test_knots_are_recovered_within_their_intervals(knots, steps, deviation, better, whole):
    places, heights = zip(*knots, strict=True)
    values = measured(lambda count: np.interp(count, places, heights), steps, deviation)
    fit = fit_curve(steps, values, better, whole, seed=0)
    assert len(fit.knots) == len(knots) and fit.r2 > 0.99
    slack = 0.02 * (steps[-1] - steps[0])  # a bound of the range is no inner point of an interval
    for place, height, found, within, metric in zip(
        places, heights, fit.knots, fit.intervals, fit.metric_intervals, strict=True
    ):
        assert within[0] <= found[0] <= within[1] or found[0] == pytest.approx(place, abs=slack)
        assert within[0] - slack <= place <= within[1] + slack
        assert metric[0] - deviation / 2 <= height <= metric[1] + deviation / 2
    assert fit == fit_curve(steps, values, better, whole, seed=0)  # the bootstrap has a generator of its own


def test_a_step_between_two_measurements_ends_at_the_second():
    """Where between them quality rose is not known."""
    values = measured(lambda count: 1.0 + 9.0 * (count > 1), SHORT, 0.05)
    assert [knot for knot, _ in fit_curve(SHORT, values, "higher", None, seed=0).knots] == pytest.approx(
        [1, 2], abs=0.1
    )


@pytest.mark.parametrize(
    ("curve", "better", "line"),
    [
        (lambda s: abs(s - 6.0), "lower", "not monotone: .* with 6 steps, 25.99 with 32"),
        (lambda s: 1.0, "higher", "R2 of the curve is .* less than 0.9"),
        (lambda s: float(s), "higher", "the last knot is not identified: quality still rises at 32 steps"),
        (lambda s: -float(s), "higher", "not monotone"),
    ],
)
def test_what_is_no_curve_is_refused(curve, better, line):
    with pytest.raises(UserError, match=line):
        fit_curve(SHORT, measured(curve, SHORT, 0.05), better, None, seed=0)


def test_a_knot_that_the_noise_hides_is_refused():
    values = [[min(count, 8) + noise for noise in (-9, 9, -9, 9)] for count in SHORT]
    with pytest.raises(UserError, match=r"knot . is not identified: .*; take more samples"):
        fit_curve(SHORT, values, "higher", None, seed=0)


def test_a_metric_that_never_changes_is_refused():
    with pytest.raises(UserError, match="the same with any number of steps"):
        fit_curve(SHORT, [[0.5, 0.5]] * len(SHORT), "higher", None, seed=0)


def test_base_and_step_seconds_are_recovered():
    rows = [
        {"batch": b, "steps": n, "repeat": r, "seconds": 0.5 + 0.02 * b * n + (9.0 if r == 0 and n == 4 else 0.0)}
        for b in (1, 4)
        for n in (1, 4, 8, 16)
        for r in range(3)  # one repeat that was held up does not count
    ]
    found = fit_seconds(pd.DataFrame(rows))
    for batch in (1, 4):
        assert found[batch] == pytest.approx((0.5, 0.02 * batch, 1.0))
    even = pd.DataFrame(rows).assign(seconds=[0.1, 0.3, 0.2] * 8)
    with pytest.raises(UserError, match="seconds do not grow evenly with steps"):
        fit_seconds(even)
