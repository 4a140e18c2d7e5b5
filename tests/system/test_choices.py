"""Channels, fading and mobility as choices: closed forms, one line per fault, own classes, exact resume."""

import math
import re
from pathlib import Path

import pytest
import torch

from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError
from lightning_t2drl.run.compose import compose
from lightning_t2drl.system import build_scenario, load_scenario
from lightning_t2drl.system.channels.base import Links
from lightning_t2drl.system.world import advance, draw_noise, initial_state

PAGE = Path(__file__).resolve().parents[2] / "docs/how-to/own-channel.md"


def loss(channel, metres):
    return [-10 * math.log10(g) for g in channel.gain(torch.tensor(metres)).tolist()]


def test_umi_losses_and_sight_by_hand():
    """TR 38.901 at 3.5 GHz, 10 m and 1.5 m: breakpoint 4 x 9 x 0.5 x 3.5e9 / 3e8 = 210 m."""
    channel = load_scenario("paper", channel="umi").channel
    assert channel.breakpoint == pytest.approx(210)
    free = 20 * math.log10(3.5)
    near, far = (math.hypot(d, 8.5) for d in (100, 400))
    sight, no_sight = channel.losses(torch.tensor([100.0, 400.0]))
    beyond = 32.4 + 40 * math.log10(far) + free - 9.5 * math.log10(210**2 + 8.5**2)
    assert sight.tolist() == pytest.approx([32.4 + 21 * math.log10(near) + free, beyond], abs=1e-3)
    expected = [35.3 * math.log10(d) + 22.4 + 21.3 * math.log10(3.5) for d in (near, far)]
    assert no_sight.tolist() == pytest.approx(expected, abs=1e-3)
    chance = channel.sight_probability(torch.tensor([5.0, 18.0, 100.0]))
    assert chance.tolist() == pytest.approx([1, 1, 0.18 + math.exp(-100 / 36) * 0.82], rel=1e-6)
    around = channel.losses(torch.tensor([209.99, 210.01]))[0]
    assert (around[1] - around[0]).item() == pytest.approx(0, abs=0.01)  # no jump at the breakpoint


def test_umi_links_keep_their_sight_while_users_stand_and_forget_it_as_they_walk():
    channel = load_scenario("paper", channel="umi").channel
    g = torch.Generator().manual_seed(0)
    shape = (400, 1, 100)
    distance, time = torch.full(shape, 60.0), torch.zeros(400, dtype=torch.int64)

    def slot(memory, moved):
        normal = torch.randn(*shape, 2, generator=g)
        moved = None if moved is None else torch.full((400, 1, 100), moved)
        return channel.long_term(Links(distance, time, moved, normal, memory))

    gain, memory = slot(None, None)
    chance = channel.sight_probability(torch.tensor(60.0)).item()
    assert channel._in_sight(memory, distance).float().mean().item() == pytest.approx(chance, abs=0.01)
    again, same = slot(memory, 0.0)
    assert torch.equal(again, gain) and torch.equal(same, memory)
    _, later = slot(memory, 25.0)
    correlation = (memory[..., 0] * later[..., 0]).mean().item()
    assert correlation == pytest.approx(math.exp(-0.5), abs=0.02) and later[..., 0].std().item() == pytest.approx(
        1, abs=0.01
    )
    assert channel._in_sight(later, distance).float().mean().item() == pytest.approx(chance, abs=0.01)


def test_fadings_have_unit_mean_power():
    normal = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    rayleigh = load_scenario("paper", fading="rayleigh").fading.power(normal)
    assert rayleigh.mean().item() == pytest.approx(1, abs=0.01) and rayleigh.var().item() == pytest.approx(1, abs=0.03)
    assert load_scenario("paper", fading="none").fading.power(normal).eq(1).all()


def test_random_waypoint_by_hand():
    keys = {"_target_": "lightning_t2drl.system.mobilities.random_waypoint.RandomWaypointMobility", "pause": 15.0}
    walk = load_scenario("paper", mobility=keys, slot_duration=10.0).mobility
    state = {"position": torch.zeros(1, 2, 2), "waypoint": torch.tensor([[[30.0, 40.0], [6.0, 8.0]]]),
             "speed": torch.tensor([[2.0, 2.0]]), "rest": torch.zeros(1, 2)}  # fmt: skip
    draws, nothing = torch.full((1, 2, 3), 0.5), torch.zeros(1)
    state = walk.move(state, nothing, nothing, draws)
    assert state["position"].tolist() == [[[12, 16], [6, 8]]] and state["rest"].tolist() == [[0, 15]]
    assert state["waypoint"][0, 0].tolist() == [30, 40] and state["speed"].tolist() == [[2, 1.25]]
    state = walk.move(state, nothing, nothing, draws)
    assert state["position"].tolist() == [[[24, 32], [6, 8]]] and state["rest"].tolist() == [[0, 5]]
    state = walk.move(state, nothing, nothing, draws)  # one rests for 5 s and walks for 5 s at 1.25 m/s
    assert torch.linalg.vector_norm(state["position"][0, 1] - torch.tensor([6.0, 8.0])).item() == pytest.approx(6.25)


@pytest.mark.parametrize("cells", [1, 3])
def test_worlds_go_on_exactly_from_their_state(cells, tmp_path):
    (tmp_path / "loss.csv").write_text("slot,path_loss\n" + "".join(f"{s},{90 + s}\n" for s in range(150)))
    table = {"_target_": "lightning_t2drl.system.channels.table.TableChannel", "file": str(tmp_path / "loss.csv")}
    for channel, mobility in (("umi", "random_waypoint"), (table, "static")):
        scenario = load_scenario("cells3" if cells == 3 else "paper", channel=channel, fading="rayleigh",
                                 mobility=mobility)  # fmt: skip
        one, other = EdgeAIGCEnv(scenario, 3, seed=1), EdgeAIGCEnv(scenario, 3, seed=2)
        raw = torch.zeros(3, cells, scenario.users, 2)
        one.play(raw)
        other.set_state(one.get_state())
        for _ in range(3):
            a, b = one.play(raw), other.play(raw)
            assert torch.equal(a["gain"], b["gain"]) and torch.equal(a["reward", "slot"], b["reward", "slot"])
        assert one.rollout(3)["next", "cells", "reward", "slot"].isfinite().all()


def test_static_users_stay_and_recorded_ones_are_where_the_file_says(tmp_path):
    file = tmp_path / "walks.csv"
    file.write_text("slot,user,x,y\n0,0,0,0\n0,1,5,5\n100,0,100,0\n")
    keys = {"_target_": "lightning_t2drl.system.mobilities.trace.TraceMobility", "file": str(file)}
    g = torch.Generator().manual_seed(0)
    recorded = load_scenario("paper", users=2, mobility=keys)
    state = initial_state(recorded, 50, g)
    assert set(state["origin"].tolist()) == {0, 1}  # 101 slots hold two episodes of 100
    after = advance(recorded, state, draw_noise(recorded, 50, g))
    assert torch.equal(after["position"][:, 0, 0], state["origin"] + 1.0) and (after["position"][:, 1] == 5).all()
    still = load_scenario("paper", mobility="static")
    state = initial_state(still, 2, g)
    assert torch.equal(advance(still, state, draw_noise(still, 2, g))["position"], state["position"])


def test_losses_from_a_file(tmp_path):
    file = tmp_path / "loss.csv"
    file.write_text("distance,path_loss\n10,60\n110,100\n")
    keys = {"_target_": "lightning_t2drl.system.channels.table.TableChannel", "file": str(file)}
    assert loss(load_scenario("paper", channel=keys).channel, [5.0, 10, 60, 500]) == pytest.approx(
        [60, 60, 80, 100], abs=1e-4
    )
    file.write_text("slot,user,path_loss\n0,0,80\n0,1,90\n2,0,85\n5,1,95\n")
    channel = load_scenario("paper", users=2, channel=keys, frames_per_episode=1, slots_per_frame=2).channel
    expected = [[80, 90], [80, 90], [85, 90], [85, 90], [85, 90], [85, 95]]
    torch.testing.assert_close(channel.loss[:, 0], torch.tensor(expected).float())


@pytest.mark.parametrize(
    ("part", "text", "line"),
    [
        ("channel", "", r"is empty$"),
        ("channel", "distance,path_loss\n", r"holds no rows$"),
        ("channel", "distance,path_loss\n1,60\n1,61\n", r", row 2: distance does not rise$"),
        ("channel", "distance,path_loss\n1,loud\n", r", row 1: path_loss 'loud' is no number$"),
        ("channel", "distance,path_loss\n1,501\n", r", row 1: path_loss 501 is above 500$"),
        ("channel", "slot,path_loss\n0,60\n", r"^env\.frames_per_episode: an episode takes 100 slots, .* lasts 1$"),
        ("channel", "slot,user,path_loss\n0,10,60\n", r", row 1: user 10 is not a whole number from 0 to 9 \(env\.users\)$"),
        ("mobility", "slot,user,x,y\n3,0,1,1\n2,0,1,1\n", r", row 2: slot goes back from 3 to 2$"),
        ("mobility", "slot,user,x,y\n3,0,1,\n", r", row 1: y is missing$"),
        ("mobility", "slot,user,x,y\n0,0,1,1\n", r"says nothing of user 1$"),
        ("mobility", "slot,user,x\n0,0,1\n", r"has no column 'y'; there are slot, user, x$"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_a_file_is_one_line(part, text, line, tmp_path):
    (tmp_path / "file.csv").write_text(text)
    choice = {"channel": "table", "mobility": "trace"}[part]
    with pytest.raises(UserError, match=line) as raised:
        build_scenario(compose("train", [f"env/{part}={choice}", f"env.{part}.file={tmp_path}/file.csv"]).config.env)
    assert "\n" not in str(raised.value)


def test_the_class_of_the_page_is_short_and_runs(run_train, run_evaluate, tmp_path, monkeypatch):
    """From a module outside the package, trained, and evaluated from its checkpoint on another channel."""
    code = re.search(r"```python\n(.*?)```", PAGE.read_text(), re.S)[1]
    assert len(code.splitlines()) <= 30
    (tmp_path / "mine_hall.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["env.channel._target_=mine_hall.HallChannel", "+env.channel.exponent=2.5", "env.users=3"]
    words += ["env.mobility._target_=mine_hall.Aisles", "cacher=random", "allocator=equal"]
    run_train(*words, output_dir=tmp_path / "run")
    checkpoint = f"checkpoint={tmp_path}/run/checkpoints/last"
    with pytest.raises(UserError, match=r"its env\.(channel|mobility)\._target_ is mine_hall\..*; trust=\[mine_hall\]"):
        run_evaluate(checkpoint, "episodes=2")
    env = compose("evaluate", [checkpoint, "trust=[mine_hall]"]).plain["env"]
    assert env["channel"] == {"_target_": "mine_hall.HallChannel", "exponent": 2.5}
    found = run_evaluate(checkpoint, "trust=[mine_hall]", "env/channel=umi", "episodes=2")
    assert math.isfinite(found["schemes"]["random+equal"]["utility"]["mean"])
    assert compose("evaluate", [checkpoint, "channel=umi", "mobility=static"]).plain["env"]["channel"]["shadowing"]


def test_choices_in_a_scenarios_file_compose_alike(tmp_path):
    (tmp_path / "street.yaml").write_text(
        "# S.\ndefaults:\n  - cells3\n  - override channel: umi\n  - _self_\nname: street\nchannel: {carrier_ghz: 28.0}\n"
    )
    path = str(tmp_path / "street.yaml")
    scenario = build_scenario(compose("train", [f"env={path}"]).config.env)
    assert scenario == load_scenario(path) and scenario.parts["channel"]["carrier_ghz"] == 28
    assert scenario.parts["channel"] == load_scenario("paper", channel="umi").parts["channel"] | {"carrier_ghz": 28.0}
    with pytest.raises(UserError, match=r"env\.channel: 'sea' is no choice; there are macro, table, umi"):
        load_scenario("paper", channel="sea")
