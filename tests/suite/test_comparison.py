"""Tables of a suite from made-up results whose answers are known."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from rliable import metrics

from lightning_t2drl.run.compose import compose
from lightning_t2drl.run.schemas import LearnerConfig, SuiteConfig
from lightning_t2drl.run.tables import improvement, improvement_line
from lightning_t2drl.suite import comparison
from lightning_t2drl.suite.benchmark import collect, make_jobs
from lightning_t2drl.suite.comparison import (
    difference_interval,
    differences_by_value,
    gathered_improvements,
    improvements,
    interval,
    largest_improvements,
    service_rows,
    share_ahead,
    shown,
    summary_rows,
)

SUITE = SuiteConfig(
    name="made_up",
    sweep="env.users",
    values=[5, 40],
    learners={"ours": LearnerConfig(experiment="t2drl_set")},
    fixed={"rcars": ["random", "equal"], "oracle": ["oracle", "exact"]},
)
UTILITY = {("rcars", 5): 0.2, ("oracle", 5): 0.6, ("ours", 5): 0.5, ("rcars", 40): -0.1, ("oracle", 40): 0.1, ("ours", 40): 0.05}  # fmt: skip


@pytest.fixture
def results(monkeypatch):
    monkeypatch.setattr(comparison, "REPETITIONS", 50)  # seeds are alike here, and so are the bounds of all resamples
    rows = []
    for (scheme, users), utility in UTILITY.items():
        for seed in (0, 1) if scheme == "ours" else (None,):
            rows.append({"scheme": scheme, "value": float(users), "seed": seed, "utility": utility, "hit_ratio": 0.5,
                         "net_utility": utility, "utility_played": utility, "reference_hit_ratio": 0.4,
                         "reference_utility": UTILITY["rcars", users], "best_utility": UTILITY["oracle", users]})  # fmt: skip
    return pd.DataFrame(rows)


def test_rows_say_how_far_each_scheme_is(results):
    rows = {(row["env.users"], row["scheme"]): row for row in summary_rows(results, SUITE)}
    ours = rows["5", "ours"]
    assert ours["utility per slot"] == "0.5000 [0.5000, 0.5000]" and ours["seeds"] == "2"
    assert ours["utility vs rcars"] == "+150.00 %" and ours["hit ratio vs rcars"] == "+25.00 %"
    assert ours["of oracle"] == "83.33 [83.33, 83.33] %" and ours["of the way"] == "75.0 [75.0, 75.0] %"
    assert rows["5", "rcars"]["utility vs rcars"] == "+0.00 %"


def test_several_cells_are_asked_for_handovers_and_services_by_kind(results):
    assert "delay s" not in summary_rows(results, SUITE)[0] and service_rows(results, SUITE) == []
    several = results.assign(violation_ratio=0.25, delay=40.0, handover_ratio=0.1, nearby_ratio=float("nan"))
    row = summary_rows(several, SUITE)[0]
    assert (row["late"], row["delay s"], row["handovers"], row["nearby"]) == ("0.250", "40.0", "0.100", "0.000")
    kinds = {
        f"{name}/{kind}": 0.5 for name in ("hit_ratio", "violation_ratio", "quality", "delay") for kind in ("a", "b")
    }
    rows = service_rows(results.assign(**kinds | {"hit_ratio/b": float("nan")}), SUITE)
    assert {row["service"] for row in rows} == {"a"} and len(rows) == 6
    assert rows[0]["quality"] == "0.500"


def test_the_same_results_have_the_same_intervals_and_nobody_else_notices():
    values = np.random.default_rng(0).normal(size=6)
    np.random.seed(7)
    expected = np.random.rand()
    np.random.seed(7)
    assert interval(values) == interval(values)
    assert np.random.rand() == expected


def test_no_share_of_what_is_not_positive(results):
    rows = {(row["env.users"], row["scheme"]): row for row in summary_rows(results, SUITE)}
    assert rows["40", "ours"]["utility vs rcars"] == "-" and rows["40", "ours"]["of the way"].startswith("75.0")
    assert largest_improvements(results, SUITE) == [
        "- ours over rcars, at most: utility +150.00 % at env.users=5, hit ratio +0.00 % at env.users=5"
    ]


def test_percents_over_next_to_nothing_are_not_told():
    assert improvement(3.0, 2.0) == pytest.approx(50) and improvement(1.0, 2.0) == pytest.approx(-50)
    assert improvement_line("utility", 3.0, 2.0).startswith("utility: +50.00 % over")
    for base in (-20.0, 0.0, 0.29):
        assert np.isnan(improvement(3.0, base))
    assert improvement_line("utility", -35.6, -21.28).startswith("utility: -14.32 over")


@pytest.mark.parametrize(("value", "text"), [
    (0.3, "0.3"), (10.0, "10"), (10.00001, "10.00001"), (1e6, "1000000"), (1234567.0, "1234567"), (1e-5, "1e-05"),
    (1 / 3, repr(1 / 3)), ("umi", "umi"), (1e300, "1e+300"),
])  # fmt: skip
def test_swept_values_are_written_whole(value, text):
    assert shown(value) == text and (isinstance(value, str) or float(text) == value)
    config = (
        compose("benchmark", ["suite=users", f"suite.values=[{value}]"]).config if value in (0.3, 10.00001) else None
    )
    assert config is None or any(f"env.users={text}" in job.words for job in make_jobs(config))


def test_a_best_scheme_that_brought_nothing_breaks_no_page():
    @dataclasses.dataclass(frozen=True)
    class Done:
        scheme: str
        utility: tuple
        value: None = None
        seed: None = None
        trains: bool = False

        def found(self):
            known = [u for u in self.utility if u is not None]
            entry = {"mean": sum(known) / len(known) if known else None, "episodes": list(self.utility)}
            schemes = {"it": {"utility": entry, "hit_ratio": entry}}
            return {"evaluation": {"episodes": len(self.utility), "name": "it", "schemes": schemes}}

    table = collect([Done("rcars", (0.0, 0.0)), Done("oracle", (0.0, 0.4)), Done("slow", (0.2,))], SUITE)
    assert table["utility"].tolist() == [0.0, 0.2, 0.2]  # nothing to scale by


def test_gains_over_several_sweeps_are_searched_together(results, tmp_path):
    for name, factor in (("users-small", 1.0), ("storage-small", 2.0)):
        (tmp_path / name).mkdir()
        gains = improvements(results, SUITE)
        gains.assign(utility=factor * gains["utility"]).to_csv(tmp_path / name / "gains.csv", index=False)
    lines = gathered_improvements([tmp_path / "users-small", tmp_path / "storage-small"], SUITE)
    assert "- largest gain in utility: +300.00 % over rcars at env.users=5 (paper: up to +37.29 %)" in lines


def test_by_value_the_first_learner_is_compared_with_each_other(results):
    better = results[results["scheme"] == "ours"].assign(scheme="theirs", utility=lambda rows: rows["utility"] + 0.01)
    suite = dataclasses.replace(SUITE, learners=SUITE.learners | {"theirs": LearnerConfig(experiment="t2drl_ddpg")})
    rows = differences_by_value(pd.concat([results, better]), suite)
    assert rows == [{"env.users": value, "theirs": "-0.0100 [-0.0100, -0.0100]"} for value in ("5", "40")]
    assert differences_by_value(results, SUITE) == []


def test_who_is_ahead_is_rliables_probability_of_improvement():
    rng = np.random.default_rng(0)
    ours, theirs = (rng.integers(0, 5, (seeds, 3)).astype(float) for seeds in (6, 4))  # with ties
    assert share_ahead(ours, theirs) == pytest.approx(metrics.probability_of_improvement(ours, theirs))


def test_the_interval_of_a_difference_is_as_wide_as_its_standard_error_says():
    rng = np.random.default_rng(0)
    ours, theirs = rng.normal(1.0, 0.1, 400), rng.normal(0.7, 0.2, 400)
    low, high = difference_interval(ours, theirs)
    error = (ours.var() / 400 + theirs.var() / 400) ** 0.5
    assert low == pytest.approx(ours.mean() - theirs.mean() - 1.96 * error, abs=0.2 * error)
    assert high == pytest.approx(ours.mean() - theirs.mean() + 1.96 * error, abs=0.2 * error)
