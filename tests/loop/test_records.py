"""Records hold every decision, and give the summary back exactly."""

import sys

import pandas as pd
import pytest
import torch

from lightning_t2drl.allocators.equal import EqualAllocator, EqualConfig
from lightning_t2drl.allocators.exact import ExactAllocator, ExactConfig
from lightning_t2drl.cachers.oracle import OracleCacher, OracleConfig
from lightning_t2drl.cachers.random import RandomCacher, RandomConfig
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.evaluation import evaluate
from lightning_t2drl.loop.records import FILES, Recorder, episode_means, read_records
from lightning_t2drl.system import load_scenario

SEVERAL = {"cells": 3, "active_users": [4, 12], "edge_link_mbps": 200.0, "arrival_rate": 0.3, "departure_rate": 0.3,
           "switch_cost_per_gb": 0.001}  # fmt: skip


def play(directory, **changes):
    scenario = load_scenario("paper", users=12, frames_per_episode=4, slots_per_frame=3, **changes)
    pair = RandomCacher(scenario, RandomConfig()), ExactAllocator(scenario, ExactConfig())
    with Recorder(directory, scenario, 5) as recorder:
        return scenario, evaluate(scenario, *pair, 5, 1, watch=recorder)


@pytest.mark.parametrize("changes", [{}, SEVERAL], ids=["one", "several"])
def test_records_give_the_means_back_exactly(tmp_path, changes):
    scenario, found = play(tmp_path, **changes)
    again = episode_means(tmp_path)
    assert again.keys() == found.keys()
    assert all(torch.equal(again[name], found[name]) for name in found)
    slots, frames = read_records(tmp_path)
    assert len(frames) == 5 * 4 * scenario.cells
    assert not slots.duplicated(["world", "slot", "user"]).any()
    if not changes:
        assert len(slots) == 5 * 12 * 12
    assert (slots["frame"] == slots["slot"] // 3).all()
    assert (slots.groupby(["world", "slot", "cell"])[["bandwidth", "steps"]].sum() <= (1.0001, 1000.1)).all().all()
    assert (slots.loc[~slots["hit"], "steps"] == 0).all()
    late = (slots["delay"] > 60) == slots["violated"]
    assert late.all() and ((slots["bandwidth_asked"] - slots["bandwidth"]) > -1e-6).all()
    held = slots.merge(frames, on=["world", "frame", "cell"])
    assert (held["hit"] == [model in cache for model, cache in zip(held["model"], held["cache"], strict=True)]).all()
    first = frames[(frames["world"] == 0) & (frames["cell"] == 0)].reset_index()
    storage, before = scenario.model_storage / 8e9, set()
    for row in first.itertuples():
        assert row.loaded_gb == pytest.approx(sum(storage[m].item() for m in set(row.cache) - before), abs=1e-4)
        before = set(row.cache)


def test_they_say_what_the_oracle_would_hold(tmp_path):
    scenario = load_scenario("paper", users=4, frames_per_episode=6, slots_per_frame=2)
    pair = RandomCacher(scenario, RandomConfig()), EqualAllocator(scenario, EqualConfig())
    oracle = OracleCacher(scenario, OracleConfig(slots=16))
    for directory, knows in (("a", oracle), ("b", None)):
        with Recorder(tmp_path / directory, scenario, 3, knows) as recorder:
            evaluate(scenario, *pair, 3, 1, watch=recorder)
    _, frames = read_records(tmp_path / "a")
    best = [row.nonzero().flatten().tolist() for row in oracle.caches.of(torch.tensor(frames["popularity_state"]))]
    assert [list(models) for models in frames["oracle_cache"]] == best and len({*map(tuple, best)}) > 1
    assert frames["world"].tolist() == [0, 1, 2] * 6
    assert read_records(tmp_path / "b")[1]["oracle_cache"].isna().all()


def test_they_give_back_the_means_by_service_too(tmp_path):
    scenario = load_scenario("mixed", frames_per_episode=2, slots_per_frame=4)
    pair = RandomCacher(scenario, RandomConfig()), EqualAllocator(scenario, EqualConfig())
    with Recorder(tmp_path, scenario, 3) as recorder:
        found = evaluate(scenario, *pair, 3, 1, watch=recorder)
    again = episode_means(tmp_path)
    assert again.keys() == found.keys() and "quality/text" in found and "wasted_steps" in found
    assert all(torch.equal(again[name].nan_to_num(-1), found[name].nan_to_num(-1)) for name in found)


def test_nothing_half_written_stays_behind(tmp_path, monkeypatch):
    with pytest.raises(KeyboardInterrupt):
        _interrupted(tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="no records"):
        read_records(tmp_path / "a")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"pip install \"lightning-t2drl\[records\]\""):
        play(tmp_path / "b")


def _interrupted(directory):
    scenario = load_scenario("paper", users=3, frames_per_episode=2, slots_per_frame=2)
    pair = RandomCacher(scenario, RandomConfig()), ExactAllocator(scenario, ExactConfig())

    def stop(done, total):
        if done == 3:
            raise KeyboardInterrupt

    with Recorder(directory, scenario, 2) as recorder:
        evaluate(scenario, *pair, 2, 1, stop, recorder)


def test_the_command_writes_them(tmp_path, run_evaluate):
    small = ["env.users=3", "env.frames_per_episode=2", "env.slots_per_frame=2", "episodes=2", "references=[rcars]"]
    run_evaluate(*small, records="true", output_dir=tmp_path / "e")
    for scheme in ("scheme", "rcars"):
        assert [len(pd.read_parquet(tmp_path / "e" / "records" / scheme / name)) for name in FILES] == [24, 4]
    run_evaluate(*small, output_dir=tmp_path / "f")
    assert not (tmp_path / "f" / "records").exists()
