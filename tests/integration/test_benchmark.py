"""benchmark.py for real, tiny: tables, figures, and nothing is run twice."""

import pandas as pd
import pytest

from lightning_t2drl import benchmarking
from lightning_t2drl.cli import run
from lightning_t2drl.config import BenchmarkConfig
from lightning_t2drl.errors import UserError
from lightning_t2drl.system.scenario import CONFIG_ROOT

TINY = ["suite.seeds_small=1", "suite.frames_small=1", "suite.episodes_small=2"]


def bench(tmp_path, *overrides):
    paths = [f"output_dir={tmp_path / 'out'}", f"work_dir={tmp_path / 'work'}"]
    return run("benchmark", BenchmarkConfig, benchmarking.run_suite, [*TINY, *overrides, *paths])


def test_a_sweep_is_tabulated_drawn_and_not_repeated(tmp_path, monkeypatch):
    arguments = ["suite=storage", "suite.values=[10,20]", "suite.fixed.oracle=[popular,exact]"]
    less = ["~suite.fixed.schrs", "~suite.learners.t2drl_ddpg_set", "~suite.fixed.popular_exact"]
    results = bench(tmp_path, *arguments, *less)
    assert len(results) == 2 * (2 + 1)
    assert results.groupby("value").size().tolist() == [3, 3]
    directory = tmp_path / "out" / "storage-small"
    assert {p.name for p in directory.iterdir()} == {"results.csv", "README.md", "figure.png"}
    page = (directory / "README.md").read_text()
    assert "suite=storage" in page and "| 10 | rcars | - |" in page and "+0.00 %" in page
    monkeypatch.setattr(benchmarking, "execute", lambda job: pytest.fail(f"{job} ran twice"))
    again = bench(tmp_path, *arguments, *less)
    pd.testing.assert_frame_equal(results, again)


def test_a_failing_job_is_named(tmp_path):
    with pytest.raises(UserError, match=r"suite\.headline: broken.* failed: error: cacher=nope: no such choice"):
        bench(tmp_path, "suite=headline", "+suite.fixed.broken=[nope,equal]", "~suite.learners.t2drl_set", "workers=1",
              "~suite.learners.t2drl_ddpg_set", "~suite.fixed.schrs", "~suite.fixed.popular_exact",
              "suite.fixed.oracle=[popular,equal]")  # fmt: skip


def test_an_unknown_reference_is_named(tmp_path):
    with pytest.raises(UserError, match=r"suite\.reference: 'worst' is none of rcars"):
        bench(tmp_path, "suite.reference=worst")


@pytest.mark.parametrize("suite", sorted(path.stem for path in (CONFIG_ROOT / "suite").glob("*.yaml")))
@pytest.mark.parametrize("budget", ["small", "full"])
def test_every_suite_makes_its_jobs(suite, budget):
    from lightning_t2drl.cli import compose_config
    from lightning_t2drl.config import strict

    config = strict(BenchmarkConfig, compose_config("benchmark", [f"suite={suite}", f"budget={budget}"]))
    jobs = benchmarking.make_jobs(config)
    assert len({job.result for job in jobs}) == len(jobs) > 0
    for job in jobs:
        name = job.command[0].removesuffix(".py")
        compose_config(name, list(job.command[1:]))
