"""Several cells through the entry points: every scheme trains and evaluates, resumes exactly, and moves to more cells."""

import shutil

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from lightning_t2drl.allocators.d3pg import D3PGAllocator, D3PGConfig
from lightning_t2drl.allocators.graphs import names_of
from lightning_t2drl.building import build_policies
from lightning_t2drl.cachers.ddqn import DDQNCacher, DDQNConfig
from lightning_t2drl.deploy.export import run_export
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError
from lightning_t2drl.run.compose import compose
from lightning_t2drl.run.evaluate import load_policies
from lightning_t2drl.system import load_scenario

LEARNERS = ["quickstart", "t2drl_ddpg", "t2drl_paper"]


@pytest.mark.parametrize("experiment", LEARNERS)
def test_every_learner_trains_and_evaluates(experiment, tmp_path, run_train, run_evaluate):
    more = ["cacher.observe_load=true"] if experiment == "quickstart" else []
    run_train(f"experiment={experiment}", "env=cells3", *more, output_dir=tmp_path / "a")
    result = run_evaluate(f"checkpoint={tmp_path}/a/checkpoints/last", "episodes=2")
    (scheme,) = result["schemes"].values()
    assert 0 < scheme["handover_ratio"]["mean"] < 1 and "nearby_ratio" not in scheme


SEEN = ["experiment=quickstart", "env.shadowing_db=4", "env.departure_rate=0.3", "env.arrival_rate=0.3",
        "cacher.observe_load=true", "cacher.observe_nearby=true"]  # fmt: skip


@pytest.mark.parametrize("words", [SEEN, ["experiment=t2drl_cooperative", "env.switch_cost_per_gb=0.001"]])
def test_a_resumed_run_of_several_cells_is_the_same_run_and_exported(words, tmp_path, run_train, same_run):
    more = [*words, "env=cells3", "env.edge_link_mbps=200"]
    whole, part = tmp_path / "whole", tmp_path / "part"
    run_train(*more, output_dir=whole)
    shutil.copytree(whole, part)
    for late in part.glob("checkpoints/frame=*6.ckpt"):
        late.unlink()
    run_train(*more, "resume=auto", output_dir=part)
    same_run(whole, part)
    _, _, cacher, _ = load_policies(compose("evaluate", [f"checkpoint={part}/checkpoints/last"]))
    facts = {"observes_cache": words is not SEEN, "observes_load": True, "observes_nearby": True}
    assert cacher.export().facts == facts


def test_a_policy_of_three_cells_serves_seven(tmp_path, run_train, run_evaluate):
    run_train("experiment=quickstart", "env=cells3", output_dir=tmp_path / "a")
    result = run_evaluate(f"checkpoint={tmp_path}/a/checkpoints/last", "env=cells7", "episodes=2")
    assert result["scenario"] == "cells7"


def test_a_run_of_several_cells_leaves_a_map(tmp_path, run_train):
    run_train("experiment=rcars", "env=cells3", "frames=1", "figures=true", output_dir=tmp_path / "a")
    assert (tmp_path / "a" / "figures" / "map.png").stat().st_size > 10_000


@pytest.mark.parametrize("pair", [("random", "equal"), ("popular", "exact"), ("most_requested", "equal"),
                                  ("lru", "equal"), ("knapsack", "equal")])  # fmt: skip
def test_reference_policies_serve_several_cells(pair, run_evaluate):
    cacher, allocator = pair
    result = run_evaluate("env=cells7_cooperative", f"cacher={cacher}", f"allocator={allocator}", "episodes=2",
                          "env.frames_per_episode=2", "env.slots_per_frame=2")  # fmt: skip
    (scheme,) = result["schemes"].values()
    if cacher != "knapsack":  # untrained, it holds the same everywhere
        assert 0 < scheme["nearby_ratio"]["mean"] < 1


def test_users_of_other_cells_change_nothing_of_an_allocation_or_a_gradient():
    """A cell's users keep their values and gradients whatever stands in the rest of the table."""
    scenario = load_scenario("cells3")
    torch.manual_seed(0)
    allocator = D3PGAllocator(scenario, D3PGConfig(exploration_noise=0.0, exploration_noise_end=0.0))
    cells = EdgeAIGCEnv(scenario, 4, seed=1).observe()
    state, other = allocator.state(cells), allocator.state(cells)
    attached = state["attached"]
    other["features"][~attached] = 7.0
    noise = allocator.draw_noise(state.to_dict())
    for value in (state, other):
        value["shares"] = torch.where(attached.unsqueeze(-1), 0.05, 0.0).expand(-1, -1, -1, 2)
    losses = [(allocator.critic_loss(s.to_dict(), s["shares"], torch.zeros(4, 3, 30)),
               allocator.actor_loss(s.to_dict(), noise)) for s in (state, other)]  # fmt: skip
    torch.testing.assert_close(losses[0], losses[1])
    for s in (state, other):
        allocator.seed(3)
        s["raw"] = allocator.act(s.exclude("shares"))
    torch.testing.assert_close(state["raw"], other["raw"])
    assert state["raw"].shape == (4, 3, 30, 2) and (state["raw"][~attached] == -1).all()


def test_a_compiled_update_takes_the_whole_table_and_the_others_their_users_alone(monkeypatch):
    scenario = load_scenario("cells3")
    allocator = D3PGAllocator(scenario, D3PGConfig())
    cells = EdgeAIGCEnv(scenario, 4, seed=1).observe()
    state = allocator.state(cells).flatten()
    batch = TensorDict({"state": state, "shares": torch.full((12, 30, 2), 0.05), "reward": torch.zeros(12, 30)}, [12])
    widths = []
    monkeypatch.setattr(allocator, "critic_loss", lambda state, shares, target: widths.append(
        {shares.shape[1], target.shape[1], state["hit"].shape[1]}) or torch.zeros(()))  # fmt: skip
    allocator.update(batch, lambda name, loss: None)
    allocator.compiled = True
    allocator.update(batch, lambda name, loss: None)
    assert widths == [{int(state["attached"].sum(-1).max())}, {30}]


def test_nearby_needs_an_edge_link():
    with pytest.raises(UserError, match="edge_link_mbps"):
        DDQNCacher(load_scenario("paper"), DDQNConfig(observe_nearby=True))


@torch.no_grad()
def slots(scenario, cacher, allocator):
    """Slots of one frame, so that the cache stays: the cells, what a graph sees of them, its noise, PyTorch's shares."""
    env = EdgeAIGCEnv(scenario, 3, seed=4)
    for _ in range(3):
        cells = env.latch(cacher.decide(env.observe()))
        state = allocator.state(cells.flatten())
        noise = allocator.draw_noise(state.to_dict())
        seen = {name: cells[name].flatten(0, 1) for name in names_of(scenario)}
        yield cells, seen, {"noise": noise}, allocator.decision(state, noise)
        env.play(torch.zeros(3, 3, 30, 2))


@pytest.mark.parametrize("experiment", ["quickstart", "t2drl_paper"])
def test_what_is_exported_is_what_pytorch_decides_for_a_cell(experiment):
    """The graph as PyTorch runs it; as ONNX it is tested below, and for set networks in tests/deploy."""
    torch.manual_seed(0)
    config = compose("train", [f"experiment={experiment}", "env=cells3", "env.edge_link_mbps=200"]).config
    policies = build_policies(config.env, config.cacher, config.allocator)
    graph = policies[2].export().graphs["allocator"]
    for _, seen, noise, expected in slots(*policies):
        with torch.no_grad():
            shares = graph.module(*(({**seen, **noise})[name] for name in graph.inputs))
        torch.testing.assert_close(shares, expected, rtol=0, atol=2e-3)


def test_an_exported_policy_decides_for_a_cell_as_pytorch_does(tmp_path, run_train):
    onnxruntime = pytest.importorskip("onnxruntime")
    from lightning_t2drl.deploy import Controller

    small = ["frames=2", "evaluation.every_n_frames=0"]  # without a chain: each of its steps is traced anew
    cells3 = ["env=cells3", "env.edge_link_mbps=200", "cacher.observe_nearby=true"]
    run_train("experiment=t2drl_ddpg_paper", "allocator/head=tanh", *cells3, *small, output_dir=tmp_path / "run")
    composed = compose("export", [f"checkpoint={tmp_path}/run/checkpoints/last", f"output_dir={tmp_path}/policy"])
    run_export(composed)
    _, scenario, cacher, allocator = load_policies(composed)
    session = onnxruntime.InferenceSession(tmp_path / "policy" / "allocator.onnx")
    for cells, tensors, _, expected in slots(scenario, cacher, allocator):
        seen = {name: value.numpy() for name, value in tensors.items()}
        (shares,) = session.run(None, seen)
        torch.testing.assert_close(torch.tensor(shares), expected, rtol=0, atol=2e-3)
        asked, nearby, caches = cells["popularity"][0].numpy(), cells["nearby"][0].numpy(), cacher.decide(cells)[0]
    controller = Controller(tmp_path / "policy")
    one = {name: value[0] for name, value in seen.items()}
    bandwidth, _ = controller.allocate(**one, seed=0)
    assert bandwidth.shape == (30,) and not bandwidth[~one["attached"]].any() and bandwidth.sum() <= 1 + 1e-5
    found = [controller.cache(*of_cell) for of_cell in zip(asked, [None] * 3, [None] * 3, nearby, strict=True)]
    assert (np.stack(found) == caches.numpy()).all() and nearby.any()
    with pytest.raises(ValueError, match="downlink_interference"):
        controller.allocate(**one | {"downlink_interference": [-1.0] * 30})
