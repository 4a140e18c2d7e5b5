"""benchmark.py for real, tiny: tables, figures, and nothing is run twice."""

import functools
import os
import select
import signal
import time
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.survival import start
from lightning_t2drl.building import build_policies
from lightning_t2drl.errors import UserError
from lightning_t2drl.run.commands import run
from lightning_t2drl.run.compose import compose
from lightning_t2drl.suite import benchmark as benchmarking
from lightning_t2drl.system.scenario_config import CONFIG_ROOT
from tests.limits import seconds

TINY = ["suite.seeds_small=1", "suite.frames_small=1", "suite.episodes_small=2"]


def bench(tmp_path, *overrides):
    return run("benchmark", [*TINY, *overrides, f"output_dir={tmp_path / 'out'}"]).results


def test_a_sweep_is_tabulated_drawn_and_not_repeated(tmp_path, monkeypatch):
    arguments = ["suite=storage", "suite.values=[10,20]", "suite.fixed.oracle=[popular,equal]", "hydra/launcher=basic"]
    less = ["~suite.fixed.schrs", "~suite.learners.t2drl_ddpg", "~suite.fixed.popular_exact"]
    results = bench(tmp_path, *arguments, *less)
    assert len(results) == 2 * (2 + 1)
    assert results.groupby("value").size().tolist() == [3, 3]
    directory = tmp_path / "out" / "storage-small"
    assert {p.name for p in directory.iterdir()} == {"results.csv", "gains.csv", "README.md", "figure.png"}
    page = (directory / "README.md").read_text()
    assert "suite=storage" in page and "| 10 | rcars | - |" in page and "+0.00 %" in page
    for mark in sorted((tmp_path / "out" / "jobs").glob("*/job.json"))[:2]:  # as if killed before it was written
        mark.unlink()
    pd.testing.assert_frame_equal(results, bench(tmp_path, *arguments, *less), check_exact=True)
    monkeypatch.setattr(benchmarking, "launch", lambda *arguments: pytest.fail(f"{arguments} ran again"))
    again = bench(tmp_path, *arguments, *less)
    pd.testing.assert_frame_equal(results, again)


def test_a_policy_trained_once_is_evaluated_by_one_sample_and_by_the_best_of_two(tmp_path):
    less = [f"~suite.learners.{name}" for name in ("mean", "published_best", "published_mean", "without_noise")]
    short = "['env.num_envs=2','env.slots_per_frame=2','loop.slot_warmup=2']"
    words = [
        "suite=sample_noise",
        "hydra/launcher=basic",
        "suite.fixed.oracle=[popular,equal]",
        f"suite.learners.best.overrides={short}",
        *less,
    ]
    results = bench(tmp_path, *words, "suite.values=[1,2]", "suite.evaluated=['env.slots_per_frame=2']")
    assert results.groupby("scheme").size().to_dict() == {"best": 2, "oracle": 2, "rcars": 2}
    assert len(list((tmp_path / "out" / "jobs").glob("*/checkpoints"))) == 1


def test_several_cells_are_asked_what_their_links_do_to_them(tmp_path):
    short = "['env.num_envs=2','env.slots_per_frame=2','loop.slot_warmup=2']"
    fast = ["suite.fixed.oracle=[popular,equal]", "~suite.fixed.popular_exact", "hydra/launcher=basic"]
    words = [
        "suite=interference",
        f"suite.learners.t2drl.overrides={short}",
        "suite.evaluated=['env.slots_per_frame=2']",
    ]
    results = bench(tmp_path, *words, *fast, "suite.values=[full_reuse,no_interference]")
    delay = results[results["scheme"] == "rcars"].set_index("value")["access_delay"]
    assert delay["no_interference"] < delay["full_reuse"]
    page = (tmp_path / "out" / "interference-small" / "README.md").read_text()
    assert "| late | delay s | handovers |" in page and "frames of 2 worlds" in page


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_workers_end_with_it(number, tmp_path):
    endless = ["suite=headline", "suite.gather=[]", "suite.seeds_small=4", "suite.frames_small=1000000", "workers=2"]
    said = tmp_path / "said"
    os.mkfifo(said)
    suite = start([*endless, f"output_dir={tmp_path}/out"], said, command="benchmark")
    with open(said, "rb", buffering=0) as pipe:
        while not list(tmp_path.glob("out/jobs/*/config.yaml")):
            assert suite.is_alive(), pipe.read()
            time.sleep(0.1)
        os.kill(suite.pid, number)
        while select.select([pipe], [], [], seconds(60))[0]:  # a worker that went on would hold the pipe
            if not pipe.read(4096):
                break
        else:
            pytest.fail("a worker went on")
    suite.join()
    assert suite.exitcode == (128 + number if number == signal.SIGTERM else -number)


def test_a_job_that_cannot_be_is_named(tmp_path):
    with pytest.raises(UserError, match=r"^suite\.headline: broken: cacher=nope: no such choice"):
        bench(tmp_path, "suite=headline", "suite.gather=[]", "+suite.fixed.broken=[nope,equal]")
    assert not list(tmp_path.iterdir())


def test_a_job_that_fails_is_named_and_the_others_run(tmp_path, capfd):
    less = [
        "~suite.learners.t2drl",
        "~suite.learners.t2drl_ddpg",
        "~suite.fixed.schrs",
        "~suite.fixed.popular_exact",
        "suite.fixed.oracle=[popular,equal]",
    ]
    with pytest.raises(UserError, match=r"^suite\.users: rcars, value 0 failed: env\.users: 0; must be"):
        bench(tmp_path, "suite=users", "suite.values=[0,3]", *less, "hydra/launcher=basic")
    assert len(list((tmp_path / "out/jobs").glob("*/job.json"))) == 2
    assert "users: oracle, value 3 finished, 2 to go" in capfd.readouterr().out


def test_suites_share_what_computes_the_same():
    """A swept value that is the scenario's own is the run of the suite without a sweep."""
    directories = {}
    for suite in ("headline", "users", "storage"):
        config = compose("benchmark", [f"suite={suite}", "suite.frames_small=160"]).config
        directories[suite] = {job.directory for job in benchmarking.make_jobs(config) if job.seed == 0}
    assert len(directories["headline"] & directories["users"]) == len(directories["headline"]) == 2
    assert directories["headline"] & directories["storage"] == directories["headline"]
    assert len(directories["users"] & directories["storage"]) == 2


def test_named_values_are_words(tmp_path):
    less = ["~suite.fixed.schrs", "~suite.learners.t2drl", "~suite.learners.t2drl_ddpg", "~suite.fixed.popular_exact"]
    fast = ["suite.fixed.oracle=[popular,equal]", "hydra/launcher=basic"]
    results = bench(tmp_path, "suite=channel", "suite.values=[umi,macro]", *less, *fast)
    utility = results.groupby(["scheme", "value"])["utility"].mean().unstack()
    assert (utility["umi"] != utility["macro"]).all()
    page = (tmp_path / "out" / "channel-small" / "README.md").read_text()
    assert page.index("| umi | rcars | - |") < page.index("| macro | rcars | - |")


def test_an_unknown_reference_is_named(tmp_path):
    with pytest.raises(UserError, match=r"suite\.reference: 'worst' is none of rcars"):
        bench(tmp_path, "suite.reference=worst")


def test_a_run_that_cannot_be_built_is_told_before_any_begins(tmp_path):
    wrong = "suite.learners.t2drl_ddpg.overrides=['allocator/diffusion=flow']"
    with pytest.raises(UserError, match=r"^suite\.headline: t2drl_ddpg, seed 0: allocator/diffusion: no such group"):
        bench(tmp_path, "suite=headline", wrong)  # nor does a suite that it gathers
    misfit = "suite.learners.t2drl.overrides=['allocator/actor=mlp']"
    with pytest.raises(UserError, match=r"^suite\.headline: t2drl, seed 0: allocator\.actor, allocator\.critic: "):
        bench(tmp_path, "suite=headline", "suite.gather=[]", misfit)
    assert not list(tmp_path.iterdir())


@functools.cache
def possible(command, *words):
    """Suites share many jobs: what has been composed and built need not be again."""
    config = compose(command, words).config
    build_policies(config.env, config.cacher, config.allocator)


@pytest.mark.parametrize("suite", sorted(path.stem for path in (CONFIG_ROOT / "suite").glob("*.yaml")))
def test_every_suite_s_jobs_are_possible(suite):
    config = compose("benchmark", [f"suite={suite}", "budget=full"]).config
    jobs = benchmarking.make_jobs(config)
    learners = [job for job in jobs if job.scheme in config.suite.learners]
    at: dict[Path, list[benchmarking.Job]] = {}
    for job in learners:
        at.setdefault(job.directory, []).append(job)
    for first, *others in at.values():  # what shares a directory is the same run
        assert all(compose("train", job.words).plain == compose("train", first.words).plain for job in others)
    for job in jobs:  # those of other seeds and values differ by a number, or by words that one scheme tries
        words = isinstance(job.value, str) and job.scheme == jobs[0].scheme
        alike = bool(job.seed) or not (job.value == jobs[0].value or words)
        if not alike and not any(word.startswith("checkpoint=") for word in job.words):
            possible(job.command, *(word for word in job.words if not word.startswith("episodes=")))
