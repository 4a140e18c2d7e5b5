"""Requests from a file: what is written and played back is the same world; one line per fault; exact resume."""

import re
import time

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchrl.envs import check_env_specs

from lightning_t2drl.cachers.oracle import OracleCacher, OracleConfig
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError
from lightning_t2drl.run.commands import run
from lightning_t2drl.run.trace import trace
from lightning_t2drl.system import all_caches, load_scenario
from lightning_t2drl.system.demands.trace import in_turn
from lightning_t2drl.system.recordings import whole_slots

TARGET = "lightning_t2drl.system.demands.trace.TraceDemand"
WALK = "lightning_t2drl.system.mobilities.trace.TraceMobility"
SHORT = {"frames_per_episode": 2, "slots_per_frame": 3}


def played(file, name="paper", keys=None, **overrides):
    return load_scenario(name, demand={"_target_": TARGET, "file": str(file), **(keys or {})}, **overrides)


def write(path, text):
    path.write_text(text)
    return path


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=1, max_size=30))
def test_who_asks_twice_waits(rows):
    slots, user = (np.array(column) for column in zip(*sorted(rows, key=lambda row: row[0]), strict=True))
    free = dict.fromkeys(range(4), -1)
    expected = []
    for slot, whose in zip(slots, user, strict=True):
        free[whose] = max(slot, free[whose] + 1)
        expected.append(free[whose])
    assert in_turn(slots, user).tolist() == expected


def test_a_file_by_hand(tmp_path):
    file = write(tmp_path / "t.csv", "when,what,who,input_mb\n60,b,1,2\n120,a,0,4\n130,c,0,1\n" + "720,a,2,1\n")
    keys = {"columns": {"time": "when", "model": "what", "user": "who"}, "models": ["a", "b", "c"]}
    s = played(file, keys=keys, model_storage_gb=[2, 2, 2], storage_capacity_gb=4, users=3, **SHORT)
    table = s.requests.request_table.tolist()
    assert table[:4] == [[-1, 1, -1], [0, -1, -1], [2, -1, -1], [-1] * 3] and len(table) == 12 and table[11][2] == 0
    assert s.requests.size_table["input_mb"][:3].tolist() == [[1, 16e6, 1], [32e6, 1, 1], [8e6, 1, 1]]
    assert s.training_starts.tolist() == [0] and s.held_out_starts.tolist() == [6]
    assert (s.popularity_states, s.popularity_observation, s.one_crowd) == (1, "frequencies", False)
    torch.testing.assert_close(s.request_probability, torch.full((1, 3), 1 / 3))
    env = EdgeAIGCEnv(s, 2)
    cells = env.observe()
    assert cells["attached"][:, 0].tolist() == [[False, True, False]] * 2 and cells["request"][0, 0, 1] == 1
    assert cells["ahead"][:, 0].tolist() == [[1, 1, 1]] * 2
    following = env.play(torch.zeros(2, 1, 3, 2))
    assert following["ahead"][0, 0].tolist() == [1, 0, 1] and following["attached"][0, 0].tolist() == [
        True,
        False,
        False,
    ]
    assert (following["served", "utility"][..., [0, 2]] == 0).all()
    for _ in range(2):
        following = env.play(torch.zeros(2, 1, 3, 2))
    assert following["reward", "slot"].tolist() != [[[0.0]], [[0.0]]]  # of the third request
    assert env.play(torch.zeros(2, 1, 3, 2))["reward", "slot"].tolist() == [[[0.0]], [[0.0]]]  # nobody asks
    check_env_specs(EdgeAIGCEnv(s, 3))


@pytest.mark.parametrize("begin", [0.0, 1.7e9])
@pytest.mark.parametrize("length", [0.1, 0.007, 60.0])
def test_multiples_of_a_slot_are_in_that_slot(begin, length):
    number = np.arange(10_000)
    seconds = (round(begin / length) + number) * length
    assert (whole_slots(seconds, None, length) == number).all()


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_dates_are_times(ending, tmp_path):
    times = pd.date_range("2026-01-31 23:59:00", periods=20, freq="45s")
    table, file = pd.DataFrame({"time": times, "model": [0, 1] * 10}), tmp_path / f"t.{ending}"
    table.to_csv(file, index=False) if ending == "csv" else table.to_parquet(file)
    s = played(file, **SHORT, keys={"held_out": [[times[-8].timestamp(), 2e9]]})
    assert s.requests.begin == times[0].timestamp() and s.requests.covers == 15
    table["time"] = table["time"].astype(str)
    table.loc[3, "time"] = "2026-13-01"
    write(tmp_path / "bad.csv", table.to_csv(index=False))
    with pytest.raises(UserError, match=r"row 4: time '2026-13-01' is no date$"):
        played(tmp_path / "bad.csv", **SHORT)


@pytest.mark.parametrize("overrides", [{}, {"activity": 0.4}])
def test_a_world_played_back_is_the_same_world(overrides, tmp_path):
    """Statistics and utility of the Markov world and of its trace agree within their standard errors."""
    chain = {
        "zipf_skewness": [1.0],
        "popularity_transition": [[1.0]],
    }  # slots are independent, so that errors are known
    markov = load_scenario("paper", **chain, **overrides, **SHORT)
    table = trace(markov, range(500), seed=1)
    table.to_csv(tmp_path / "t.csv", index=False)
    recorded = played(tmp_path / "t.csv", **SHORT, keys={"held_out": [[0, 60 * 6]]})
    assert len(table) == pytest.approx(500 * 10 * markov.activity, rel=0.1)
    shares = np.bincount(table["model"], minlength=10) / len(table)
    assert np.abs(shares - markov.request_probability[0].numpy()).max() < 5 * 0.5 / len(table) ** 0.5
    torch.testing.assert_close(recorded.request_probability[0], torch.tensor(shares).float(), atol=0.01, rtol=0)

    def utility(scenario):
        env = EdgeAIGCEnv(scenario, 80, seed=3)
        cache = torch.zeros(80, 1, 10, dtype=torch.bool)
        cache[..., [0, 1, 2]] = True
        env.latch(cache)
        rewards = torch.cat([env.play(torch.zeros(80, 1, 10, 2))["reward", "slot"].flatten() for _ in range(3)])
        return rewards.mean().item(), (rewards.std() / len(rewards) ** 0.5).item()

    (a, error_a), (b, error_b) = utility(markov), utility(recorded)
    assert abs(a - b) < 4 * (error_a**2 + 2 * error_b**2) ** 0.5  # slots of the trace may be played twice


def test_cells_and_places_come_back_as_they_were(tmp_path):
    several = load_scenario("cells3", **SHORT)
    table = trace(several, range(20), seed=0)
    table.to_parquet(tmp_path / "t.parquet", index=False)
    mobility = {"_target_": WALK, "file": str(tmp_path / "t.parquet")}
    users = sorted(table["user"].unique())
    assert users == list(range(len(users)))
    s = played(tmp_path / "t.parquet", "cells3", users=len(users), active_users=None, mobility=mobility, **SHORT)
    assert s.request_probability.shape == (3, 1, 10)
    env = EdgeAIGCEnv(s, 4)
    env.play(torch.zeros(4, 3, s.users, 2))
    world = env.get_state()["world"]
    for n, slot in enumerate((world["origin"] + world["slot"]).tolist()):
        rows = table[table["slot"] == slot]
        cell, user = world["attached"][n].nonzero(as_tuple=True)
        assert sorted(zip(cell.tolist(), user.tolist(), strict=True)) == sorted(
            zip(rows["cell"], rows["user"], strict=True)
        )
        place = torch.tensor(rows[["x", "y"]].to_numpy()).float()
        torch.testing.assert_close(world["position"][n, rows["user"].to_list()], place)


def test_slots_without_a_request_earn_nothing_and_are_in_no_ratio():
    from lightning_t2drl.allocators.equal import EqualAllocator, EqualConfig
    from lightning_t2drl.cachers.random import RandomCacher, RandomConfig
    from lightning_t2drl.loop.evaluation import evaluate

    scenario = load_scenario("paper", users=2, activity=0.2, storage_capacity_gb=50, **SHORT)  # room for all models
    slots: list[torch.Tensor] = []
    cacher, allocator = RandomCacher(scenario, RandomConfig()), EqualAllocator(scenario, EqualConfig())
    means = evaluate(scenario, cacher, allocator, 40, 0,
                     watch=lambda env, slot: slots.append(slot.following["reward", "slot"]) if slot else None)  # fmt: skip
    played = means["hit_ratio"].isfinite()
    assert (means["hit_ratio"][played] == 1).all() and 20 < played.sum() <= 40
    torch.testing.assert_close(means["total_utility"], sum(slots).flatten())


def test_the_oracle_knows_the_frame(tmp_path):
    scenario = load_scenario("paper", activity=0.3, **SHORT)
    trace(scenario, range(60), seed=0).to_csv(tmp_path / "t.csv", index=False)
    s = played(tmp_path / "t.csv", **SHORT)
    env = EdgeAIGCEnv(s, 5, held_out=True)
    cells = env.observe()
    cache = OracleCacher(s, OracleConfig()).decide(cells)
    subsets, feasible = all_caches(s)
    asked = torch.zeros(5, 10)
    for _ in range(s.slots_per_frame):
        asked.scatter_add_(-1, cells["request"][:, 0], cells["attached"][:, 0].float())
        cells = env.play(torch.zeros(5, 1, 10, 2))
    assert torch.equal((asked * cache[:, 0]).sum(-1), (asked @ subsets[feasible].float().T).amax(-1))
    assert torch.isin(env.get_state()["world"]["origin"], s.held_out_starts).all()


BAD = {
    "empty": ("", r"t\.csv is empty$"),
    "no rows": ("slot,model\n", r"t\.csv holds no rows$"),
    "unknown model": ("slot,model\n0,3\n1,10\n", r"t\.csv, row 2: model 10 is not a whole number from 0 to 9 "),
    "unknown name": ("slot,model\n0,cat\n", r"t\.csv, row 1: model 'cat' is none of 0, 1, "),
    "backwards": ("time,model\n60,1\n59,1\n", r"t\.csv, row 2: time goes back from 60 to 59$"),
    "negative size": ("slot,model,input_mb\n0,1,5\n1,1,-5\n", r"t\.csv, row 2: input_mb -5 is not above 0 MB$"),
    "NaN": ("slot,model,output_mb\n0,1,\n", r"t\.csv, row 1: output_mb is missing$"),
    "infinite": ("time,model\ninf,1\n", r"t\.csv, row 1: time inf is not finite$"),
    "no column": ("slot,service\n0,1\n", r"t\.csv has no column 'model'; there are slot, service$"),
    "never": ("time,model\n1e300,1\n", r"t\.csv, row 1: time 1e\+300 is above 1e\+12$"),
    "no time": ("model\n1\n", r"t\.csv has no column 'time'; there are model$"),
    "cell": ("slot,model,cell\n0,1,1\n", r"t\.csv, row 1: cell 1 is not a whole number from 0 to 0 \(env\.cells\)$"),
    "user": ("slot,model,user\n0,1,10\n", r"t\.csv, row 1: user 10 is not a whole number from 0 to 9 \(env\.users\)$"),
    "too much": ("slot,model,user\n" + "0,1,0\n" * 103, r"t\.csv, row 102: waits more than 100 slots"),
    "more fields than columns": ("slot,model\n0,1,5\n1,1,5\n", r"t\.csv: its rows have more fields than its header$"),
    "a column twice": ("slot,slot,model\n0,0,1\n", r"t\.csv has two columns 'slot'$"),
    "no table": (b"\x80\x00\xff", r"t\.csv is no table that can be read \("),
    "too short": ("slot,model\n0,1\n", r"^env\.frames_per_episode: an episode takes 6 slots, .* lasts 1$"),
    "nothing to train on": ("slot,model\n0,1\n7,1\n", r"^env\.demand\.held_out: no episode of 6 slots is left for tr"),
}


IDLE = {
    "columns.tme: no such column; the nearest is time; there are time, slot": {"keys": {"columns": {"tme": "when"}}},
    "models: 1 different names for 10 models": {"keys": {"models": ["cat"] * 10}},
    "start: nan is not a time in s": {"keys": {"start": float("nan")}},
}


@pytest.mark.parametrize("line", IDLE)
def test_keys_that_would_count_for_nothing_are_refused(line, tmp_path):
    rows = "".join(f"{slot},{slot % 10}\n" for slot in range(20))
    with pytest.raises(UserError, match=rf"^env\.demand\.{line}"):
        played(write(tmp_path / "t.csv", f"slot,model\n{rows}"), **SHORT, **IDLE[line])


@pytest.mark.parametrize("key", ["zipf_skewness", "popularity_observation", "ranking"])
def test_a_recording_has_its_own_popularity(key, tmp_path):
    with pytest.raises(UserError, match=rf"^env\.{key}: counts for nothing beside env/demand=trace$"):
        played(tmp_path / "t.csv", **{key: None})


def test_names_of_models_may_be_numbers(tmp_path):
    names = [str(9 - model) for model in range(10)]
    file = write(tmp_path / "t.csv", "slot,model\n" + "".join(f"{slot},{slot % 10}\n" for slot in range(20)))
    file.write_text(
        file.read_text().replace("model\n", "model,\n").replace("\n", ",\n").replace(",,", ",")
    )  # some end so
    asked = played(file, keys={"models": names}, users=1, **SHORT).requests.request_table
    assert asked[:12, 0].tolist() == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 9, 8]


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_with_a_trace_is_one_line(case, tmp_path):
    content, line = BAD[case]
    (tmp_path / "t.csv").write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UserError, match=line) as raised:
        played(tmp_path / "t.csv", **SHORT)
    assert "\n" not in str(raised.value)


def test_a_long_trace_loads_fast_and_trains(run_train, tmp_path):
    draw = np.random.default_rng(0)
    rows = {"time": np.sort(draw.uniform(0, 6e5, 100_000)).round(2), "model": draw.integers(0, 10, 100_000)}
    pd.DataFrame(rows | {"user": draw.integers(0, 12, 100_000)}).to_csv(tmp_path / "t.csv", index=False)
    start = time.process_time()
    words = ["env/demand=trace", f"env.demand.file={tmp_path}/t.csv", "env.users=12", "cacher=ddqn"]
    scenario = played(tmp_path / "t.csv", users=12)
    assert time.process_time() - start < 5 and 10_000 <= scenario.recorded_slots < 10_100
    summary = run_train(*words, "evaluation.final_episodes=4", output_dir=tmp_path / "run")
    assert summary["gradient_steps"] > 0 and 0 < summary["hit_ratio"] < 1


def test_runs_on_a_trace_resume_exactly_and_on_the_same_file_only(run_train, same_run, tmp_path):
    file = tmp_path / "t.csv"
    run("trace", ["env.activity=0.5", "slots=60", f"output={file}", "progress_bar=false"])
    words = ["env/demand=trace", f"env.demand.file={file}", "env/mobility=random_waypoint", "env/channel=umi"]
    words += ["allocator=equal", "schedule_frames=4", "frames=4"]
    run_train(*words, output_dir=tmp_path / "whole")
    for name in ("cut", "other"):
        run_train(*words, "frames=3", output_dir=tmp_path / name)
    run_train(*words, output_dir=tmp_path / "cut", resume="auto")
    same_run(tmp_path / "whole", tmp_path / "cut")
    file.write_text(file.read_text().replace(",0,", ",1,", 1))
    with pytest.raises(UserError, match=r"^env: demand follows another recording"):
        run_train(*words, output_dir=tmp_path / "other", resume="auto")


def test_the_command_writes_a_file_that_it_never_overwrites(tmp_path, capsys):
    words = ["slots=3", "env.users=4", "progress_bar=false"]
    for name in ("t.csv", "t.parquet"):
        run("trace", [*words, f"output={tmp_path}/{name}"])
        assert re.search(r"written to .*: 12 requests of 4 users in 3 slots", capsys.readouterr().out.replace("\n", ""))
    read = pd.read_csv(tmp_path / "t.csv"), pd.read_parquet(tmp_path / "t.parquet")
    pd.testing.assert_frame_equal(*read, check_dtype=False, rtol=1e-5)
    assert read[1]["time"].dtype == float  # float32 would put 8.2 s into slot 81 of 0.1 s
    for wrong in (f"output={tmp_path}/t.csv", f"output={tmp_path}/t.txt", f"output={tmp_path}/no/t.csv"):
        with pytest.raises(UserError, match=r"^output: "):
            run("trace", [*words, wrong])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.parquet"]
