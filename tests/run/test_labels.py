"""Labels at the ends of curves never overlap, stay in order, and move no more than they must."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_t2drl.run.labels import scheme_name, spread


@given(st.lists(st.floats(0, 1), max_size=9).map(sorted))
def test_labels_are_apart_and_in_order(wanted):
    places = spread(wanted, 0.1)
    assert len(places) == len(wanted)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(places))
    if all(b - a > 0.1 for a, b in pairwise(wanted)):
        assert places == pytest.approx(wanted)


def test_what_overlaps_is_spread_around_its_mean():
    assert spread([0.5, 0.5, 0.5, 0.9], 0.1) == pytest.approx([0.4, 0.5, 0.6, 0.9])


def test_schemes_are_called_as_in_the_readme():
    assert [scheme_name(s) for s in ("t2drl_ddpg_same_time", "rcars", "mine")] == [
        "T2DRL-DDPG, same time",
        "RCARS",
        "mine",
    ]
