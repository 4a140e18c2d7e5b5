"""t2drl tune: a killed search loses no finished trial, two workers share a study, the best config is an experiment."""

import re
import time

import pandas as pd
import pytest

from benchmarks.survival import start
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.stored import leaves
from lightning_t2drl.run.commands import run
from lightning_t2drl.run.compose import compose
from lightning_t2drl.run.tune import open_study
from tests.conftest import TINY
from tests.limits import seconds

pytest.importorskip("optuna")
OWN = ("evaluation.final_episodes=0", "progress_bar=false", "figures=false")
WORDS = ["experiment=t2drl_ddpg", *(word for word in TINY if word not in OWN), "env.users=3", "frames=2"]
SPACE = "space.keys=[{key:allocator.actor_learning_rate,low:0.0001,high:0.01,log:true},{key:cacher.network.hidden,choices:[8,16]}]"


def finished(directory):
    study = open_study(compose("tune", []).config, directory)
    return [t for t in study.get_trials() if t.state.name in ("COMPLETE", "PRUNED")]


def test_a_killed_search_goes_on_and_its_best_is_an_experiment(tmp_path):
    place = tmp_path / "search"
    words = [*WORDS, SPACE, "startup_trials=2", f"output_dir={place}"]
    process = start([*words, "trials=50"], tmp_path / "log", command="tune")
    while "\ntrial 0: " not in ((tmp_path / "log").read_text() if (tmp_path / "log").exists() else ""):
        assert process.is_alive(), (tmp_path / "log").read_text()
        time.sleep(0.01)
    process.kill()
    process.join(seconds(30))
    before = {trial.number: (trial.value, trial.params) for trial in finished(place)}
    assert before
    found = run("tune", [*words, f"trials={len(before) + 1}"])
    after = {trial.number: (trial.value, trial.params) for trial in finished(place)}
    assert before.items() <= after.items() and len(after) == len(before) + 1 == len(found.trials)
    assert pd.read_csv(place / "trials.csv")["utility"].max() == pytest.approx(found.trials["utility"].max())
    best = dict(leaves(compose("train", [f"--config-dir={place}", "experiment=t2drl_ddpg_tuned"]).plain))
    asked = dict(leaves(compose("train", [*WORDS, *found.best]).plain))
    assert {key for key in asked if asked[key] != best[key]} == {"name"}
    assert "| allocator.actor_learning_rate |" in (place / "tune.md").read_text()


def test_two_workers_share_a_study(tmp_path):
    found = run("tune", [*WORDS, SPACE, "trials=3", "workers=2", "prune=false", f"output_dir={tmp_path}/two"])
    assert len(found.trials) >= 3 and found.trials["trial"].is_unique
    assert all((tmp_path / "two" / "trials" / str(n) / "summary.json").exists() for n in found.trials["trial"])


def test_ranges_that_cannot_be_are_refused(tmp_path):
    for space, said in (
        ("[]", "space.keys: empty"),
        ("[{key:allocator.nope,low:1,high:2}]", "allocator.nope: no such key"),
        ("[{key:cacher.learning_rate,low:2,high:1}]", "no range"),
        ("[{key:cacher.learning_rate,low:a,high:b}]", "no range"),
        ("[{key:cacher.learning_rate,low:1,high:nan}]", "no range"),
        ("[{key:cacher.learning_rate,low:1,high:2,log:perhaps}]", "neither true nor false"),
        ("[{key:seed,low:1,high:2},{key:seed,choices:[3]}]", "seed stands there twice"),
        ("[{key:output_dir,choices:[a,b]}]", "output_dir is the search's own"),
        ("[{key:evaluation.every_n_frames,choices:[0,1]}]", "a search needs evaluations"),
        ("[{key:cacher.learning_rate}]", "either low and high, or choices"),
    ):
        with pytest.raises(UserError, match=said):
            run("tune", [f"space.keys={space}", f"output_dir={tmp_path}/x"])
    assert list(tmp_path.iterdir()) == []


def test_a_search_goes_on_with_its_own_study_only_and_keeps_what_is_there(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "trials.csv").write_text("mine")
    (tmp_path / "two.yaml").write_text("defaults: [paper]\nusers: 2\n")
    words = [*(word for word in WORDS if word != "env.users=3"), f"env={tmp_path}/two.yaml", "channel=umi", "trials=1"]
    found = run("tune", [*words, SPACE, f"output_dir={tmp_path}/a"])
    tuned = [f"--config-dir={tmp_path}/a", "experiment=t2drl_ddpg_tuned", f"env={tmp_path}/two.yaml"]
    composed = compose("train", tuned).plain
    assert composed["env"]["channel"]["_target_"].endswith("UMiChannel") and composed["env"]["users"] == 2
    assert re.search(r"^# Beside it belongs env=.*two\.yaml", found.experiment.read_text(), re.M)
    for change, said in (
        (f"output_dir={tmp_path}/mine", "mine is not empty, and holds no search"),
        (f"output_dir={tmp_path}/a?b", "cannot hold a \\?"),
        ("seed=7", r"study: t2drl searches something else: seed \(0 then, 7 now\)"),
        ("space.keys=[{key:seed,low:1,high:2}]", r"searches something else: space\.keys \("),
    ):
        with pytest.raises(UserError, match=said):
            run("tune", [*words, SPACE, f"output_dir={tmp_path}/a", change])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "mine", "two.yaml"]
    assert (tmp_path / "mine" / "trials.csv").read_text() == "mine"
