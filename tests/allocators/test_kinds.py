"""Every kind of actor with every objective: gradients, targets, exact resume, export, and what is refused."""

import dataclasses
import shutil

import numpy as np
import onnxruntime
import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.objectives import TD3Loss

from lightning_t2drl.accel.compiling import Compiled
from lightning_t2drl.allocators.objectives import q_weighted, true_utility
from lightning_t2drl.building import build_policies
from lightning_t2drl.deploy.export import write_graph
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError
from lightning_t2drl.networks.heads import _worth_keeping
from lightning_t2drl.run.compose import compose
from lightning_t2drl.system.bounds import slot_bound
from lightning_t2drl.system.serving import serve, situation
from tests.allocators.test_actor_critic import batch_for
from tests.worlds import slots_of

SMALL = ["allocator.actor.hidden=16", "allocator.critic.hidden=16"]
MLPS = ["allocator/actor=mlp", "allocator/critic=mlp", "allocator/head=competitive", *SMALL]
KINDS = {
    "ddpm": ["allocator=d3pg"],
    "ddim": ["allocator=d3pg", "allocator.diffusion.sampler=ddim"],
    "epsilon ddim": ["allocator=d3pg", "allocator/diffusion=epsilon", "allocator.diffusion.sampler=ddim"],
    "flow": ["allocator=flow"],
    "consistency": ["allocator=consistency", "allocator.diffusion.steps=2"],
    "direct": ["allocator=ddpg"],
    "td3": ["allocator=td3"],
    "sac": ["allocator=sac", "allocator.discount=0.5"],
    "flow mlp": ["allocator=flow", *MLPS],
    "sac mlp": ["allocator=sac", *MLPS],
    "consistency mlp": ["allocator=consistency", "allocator.diffusion.steps=2", *MLPS],
}


def make(kind, *words):
    torch.manual_seed(0)
    config = compose("train", [*KINDS[kind], "env.users=4", *words]).config
    return build_policies(config.env, config.cacher, config.allocator)[2]


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_the_whole_actor(kind):
    allocator = make(kind)
    state = batch_for(allocator)["state"].to_dict()
    allocator.actor_loss(state, allocator.objective_noise(state)).backward(inputs=list(allocator.actor.parameters()))
    still = [name for name, p in allocator.actor.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert not still, still


@pytest.mark.parametrize("objective", ["q_weighted", "analytic"])
def test_losses_compile(objective):
    allocator = make("flow", f"allocator.objective={objective}")
    state = batch_for(allocator, 4)["state"].to_dict()
    noise = allocator.objective_noise(state)
    compiled = Compiled(allocator.actor_loss, backend="eager")
    torch.testing.assert_close(compiled(state, noise), allocator.actor_loss(state, noise))
    assert compiled._call is not compiled._plain


@pytest.mark.parametrize("kind", ["flow", "consistency"])
def test_q_weighted_denoises_towards_what_the_critics_prefer(kind):
    """With critics that like bandwidth for users with slow links, gradient steps give those more."""
    allocator = make(kind, "allocator.objective=q_weighted", "allocator.candidates=16")
    state = batch_for(allocator, 16)["state"].to_dict()

    def value(critics, state, shares):
        return (shares[..., 0] * allocator.features.log_link(state["features"])).sum(-1, keepdim=True)

    allocator.value, allocator.per_user = value, False
    noise = allocator.draw_noise(state)

    def reached():
        with torch.no_grad():
            return value(None, state, allocator.shares(allocator.actor, state, noise)).mean()

    before, optimizer = reached(), torch.optim.Adam(allocator.actor.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        q_weighted(allocator, state, allocator.objective_noise(state)).backward()
        optimizer.step()
    assert reached() > before + 0.05


def test_analytic_climbs_the_true_utility_by_its_true_gradient():
    allocator = make("direct", "allocator.objective=analytic")
    batch, scenario = batch_for(allocator, 16), allocator.scenario
    state, shares = batch["state"].to_dict(), batch["shares"]
    utility = true_utility(scenario, state, shares)
    torch.testing.assert_close(utility, batch["reward"], rtol=1e-4, atol=1e-5)  # what the slot brought
    floats = {f.name: getattr(scenario, f.name) for f in dataclasses.fields(scenario)}
    exact = {
        name: value.double() for name, value in floats.items() if torch.is_tensor(value) and value.is_floating_point()
    }
    scenario = dataclasses.replace(scenario, **exact)
    state = {key: value.double() if value.is_floating_point() else value for key, value in state.items()}
    shares = (0.9 * shares).double().requires_grad_()  # off the kink at full quality
    (gradient,) = torch.autograd.grad(true_utility(scenario, state, shares).sum(), shares)
    step = 1e-6 * torch.randn(shares.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    above, below = (true_utility(scenario, state, shares + s) for s in (step, -step))
    changed = (above - below) / 2
    served = serve(scenario, **situation(state), bandwidth=shares[..., 0], steps=shares[..., 1] * scenario.step_budget)
    late = (served["delay"] / scenario.deadline - 1).abs() < 0.3  # there the gradient is meant to differ
    assert (~late).sum() > 9
    torch.testing.assert_close((gradient * step).sum(-1)[~late], changed[~late], rtol=1e-3, atol=1e-12)


def test_td3_target_is_torchrls():
    allocator = make("td3", "allocator.target_rate=0.5")
    with torch.no_grad():
        for p in (*allocator.target_actor.parameters(), *allocator.target_critics.parameters()):
            p += 0.02 * torch.randn_like(p)
    batch = batch_for(allocator)
    state, following = batch["state"].to_dict(), batch["next_state"].to_dict()
    fields, users = list(state), 4
    torch.manual_seed(7)
    smoothing = torch.randn(16, 2 * users)  # as TD3Loss draws it

    class Actor(torch.nn.Module):
        def __init__(self, actor):
            super().__init__()
            self.actor = actor

        def forward(self, *values):
            return self.actor(dict(zip(fields, values, strict=True))).flatten(-2)

    class Value(torch.nn.Module):
        def __init__(self, critic):
            super().__init__()
            self.critic = critic

        def forward(self, action, *values):
            state = dict(zip(fields, values, strict=True))
            return self.critic(state, allocator.to_shares(state, action.unflatten(-1, (-1, 2)))).mean(-1, keepdim=True)

    value = TensorDictModule(Value(allocator.critics[0]), ["action", *fields], ["state_action_value"])
    loss = TD3Loss(
        TensorDictModule(Actor(allocator.actor), fields, ["action"]),
        [value, TensorDictModule(Value(allocator.critics[1]), ["action", *fields], ["state_action_value"])],
        bounds=(-1.0, 1.0),
        policy_noise=allocator.config.target_noise,
        noise_clip=allocator.config.target_noise_clip,
        num_qvalue_nets=2,
        delay_actor=True,
        delay_qvalue=True,
    )
    loss.make_value_estimator(loss.default_value_estimator, gamma=allocator.config.discount)
    for name, p in loss.target_actor_network_params.flatten_keys(".").items():
        p.data.copy_(dict(allocator.target_actor.named_parameters(prefix="module.actor"))[name].data)
    for name, p in loss.target_qvalue_network_params.flatten_keys(".").items():
        own = [dict(c.named_parameters(prefix="module.critic"))[name].data for c in allocator.target_critics]
        p.data.copy_(torch.stack(own))
    reward, done = batch["reward"].mean(-1, keepdim=True), torch.zeros(16, 1, dtype=torch.bool)
    action = torch.zeros(16, 2 * users)
    data = TensorDict(
        {**state, "action": action, "next": {**following, "reward": reward, "done": done, "terminated": done}}, [16]
    )
    torch.manual_seed(7)
    theirs = loss.value_loss(data)[0]
    allocator.per_user = False  # TorchRL's critics have one value
    allocator.value = lambda critics, s, shares: torch.stack(
        [c(s, shares).mean(-1, keepdim=True) for c in critics]
    ).amin(0)
    target = allocator.target(reward, following, smoothing.view(1, 16, users, 2))
    judged = [
        c(state, allocator.to_shares(state, action.view(16, users, 2))).mean(-1, keepdim=True)
        for c in allocator.critics
    ]
    ours = torch.stack([(q - target).square().mean() for q in judged]).mean()
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_delayed_actor_and_its_targets_move_every_second_round():
    allocator = make("td3", "allocator.actor_warmup=0")
    batch, asked = batch_for(allocator), []
    before = [p.clone() for p in allocator.target_critics.parameters()]
    with torch.no_grad():
        for p in allocator.critics.parameters():
            p += 0.1
    for _ in range(2):
        allocator.update(batch, lambda name, loss: asked.append(name))
        moved = any(not torch.equal(a, b) for a, b in zip(before, allocator.target_critics.parameters(), strict=True))
        assert moved == (len(asked) == 3)
    assert asked == ["critic", "critic", "actor"]


def test_the_actor_waits_until_the_critics_know_something():
    allocator = make("td3", "allocator.actor_warmup=2", "allocator.actor_every=1")
    batch, asked = batch_for(allocator), []
    for _ in range(4):
        allocator.update(batch, lambda name, loss: asked.append(name))
    assert asked == ["critic"] * 3 + ["actor", "critic", "actor"]


def test_the_temperature_falls_where_entropy_is_above_its_target_and_rises_below():
    for target, sign in ((-9.0, 1), (9.0, -1)):
        allocator = make("sac", f"allocator.target_entropy={target}", "allocator.actor_warmup=0")
        losses = {}
        allocator.update(batch_for(allocator), lambda name, loss, losses=losses: losses.setdefault(name, loss))
        (gradient,) = torch.autograd.grad(losses["temperature"], allocator.log_temperature)
        assert gradient.sign() == sign


@pytest.mark.parametrize("kind", ["flow", "consistency", "td3", "sac mlp"])
def test_resumed_equals_uninterrupted(kind, run_train, same_run, tmp_path):
    words = [*KINDS[kind], "env.users=3", "cacher=popular", "evaluation.every_n_frames=0"]
    words += ["allocator.objective=q_weighted"] if kind == "flow" else []
    words += ["allocator.objective=analytic"] if kind == "consistency" else []
    whole, part = tmp_path / "whole", tmp_path / "part"
    assert run_train(*words, output_dir=whole)["gradient_steps"] > 0
    shutil.copytree(whole, part)
    for late in part.glob("checkpoints/frame=*6.ckpt"):
        late.unlink()
    run_train(*words, "resume=auto", output_dir=part)
    same_run(whole, part, files=("metrics.csv",))


@pytest.mark.parametrize("kind", ["consistency mlp", "sac mlp"])
def test_exported_shares_are_those_of_pytorch(kind, tmp_path):
    """With flat networks and the plain head; the others are exported in tests/deploy, and tracing them takes long."""
    own = ["allocator.decision_noise=0.5"] if kind == "consistency mlp" else []
    allocator = make(kind, "allocator/head=tanh", *own)
    exported = allocator.export()
    assert exported.facts["diffusion_steps"] == {"consistency mlp": 2, "sac mlp": 0}[kind]
    write_graph(exported.graphs["allocator"], tmp_path / "allocator.onnx")
    slot = slots_of(allocator.scenario, 6, seed=1)
    slot["attached"] = torch.ones_like(slot["request"], dtype=torch.bool)
    state = allocator.state(TensorDict(slot, batch_size=[6]))
    noise = allocator.draw_noise(state)
    with torch.no_grad():
        expected = allocator.decision(state.to_dict(), noise).numpy()
    feeds = slot | ({"noise": noise} if exported.facts["diffusion_steps"] else {})
    session = onnxruntime.InferenceSession(tmp_path / "allocator.onnx")
    (shares,) = session.run(None, {name: np.asarray(value) for name, value in feeds.items()})
    np.testing.assert_allclose(shares, expected, rtol=0, atol=5e-5)


def test_decisions_by_one_sample_a_mean_or_the_best():
    allocator = make("ddpm", "allocator.decision_samples=8")
    state = batch_for(allocator)["state"]
    scale = torch.nn.init.normal_
    scale(allocator.actor.trunk.out.weight, std=2.0, generator=torch.Generator().manual_seed(0))

    def decide(**keys):
        for key, value in keys.items():
            setattr(allocator.config, key, value)
        allocator.seed(3)
        return (allocator.act(state) + 1) / 2

    best, mean = decide(decision="best"), decide(decision="mean")
    values = [allocator.value(allocator.critics, state, shares).mean(-1) for shares in (best, mean)]
    assert not torch.equal(best, mean) and values[0].mean() >= values[1].mean() - 1e-3
    assert (mean.sum(-2) <= 1 + 1e-5).all()
    still = decide(decision_samples=1, decision_noise=0.0)
    allocator.seed(4)
    assert torch.equal((allocator.act(state) + 1) / 2, still)  # without noise the seed says nothing


def test_what_cannot_be_is_refused_in_one_line():
    for kind, words, line in (
        (
            "direct",
            ["allocator.objective=q_weighted"],
            r"allocator\.objective: q_weighted trains actors that denoise; Dir",
        ),
        (
            "direct",
            ["allocator.target_noise_clip=0.1"],
            r"allocator\.target_noise_clip: counts for nothing without tar",
        ),
        ("sac", ["allocator.target_noise=0.1"], r"allocator\.target_noise: SAC's target action is random by itself"),
        ("consistency", ["allocator.diffusion.levels=2"], r"allocator\.diffusion\.steps: 2 must be below levels, 2"),
        (
            "flow mlp",
            ["allocator.head.keep_deadlines=true"],
            r"allocator\.head\.keep_deadlines: needs networks that see",
        ),
        (
            "flow mlp",
            ["allocator.head.square_root_law=true"],
            r"allocator\.head\.square_root_law: needs networks that see",
        ),
    ):
        with pytest.raises(UserError, match=line):
            make(kind, *words)
    with pytest.raises(UserError, match="decides by a mean of samples, which an exported policy does not"):
        make("flow", "allocator.decision_samples=2", "allocator.decision=mean").export()


@pytest.mark.parametrize("users", [10, 80, 200])
def test_who_is_kept_is_in_time_whatever_the_load(users):
    allocator = make("direct", f"env.users={users}")
    env = EdgeAIGCEnv(allocator.scenario, 16, seed=1)
    env.latch(torch.rand(16, 1, 10) < 0.5)
    state = allocator.state(env.observe())
    output = torch.rand(*state["hit"].shape, 2) - 0.5
    shares = allocator.to_shares(state, output)
    assert bool((shares.sum(-2) <= 1 + 1e-5).all())
    served = env.play(allocator.to_raw(state, output))["served"]
    link = allocator.features.log_link(state["features"]).exp()
    left = 1 - (served["generation_delay"] + served["backhaul_delay"]) / allocator.scenario.deadline
    enough = (left > 0) & (shares[..., 0] >= 1.001 * link / left.clamp_min(1e-6))
    assert not (enough & served["violated"]).any() and enough.float().mean() > 0.2
    starved = shares[..., 0] == 0
    assert bool((served["violated"] | ~starved).all())


@pytest.mark.parametrize("users", [3, 10, 40, 80])
def test_no_other_bandwidth_earns_much_more_with_these_steps(users):
    """Whatever the load, by the rules alone: the actor's output is 0."""
    allocator = make("direct", f"env.users={users}")
    env = EdgeAIGCEnv(allocator.scenario, 16, seed=2)
    env.latch(torch.rand(16, 1, 10) < 0.5)
    cells = env.observe()
    state = situation(cells) | allocator.fields(cells)
    shares = allocator.to_shares(state, torch.zeros(*state["hit"].shape, 2))
    earned = true_utility(allocator.scenario, state, shares).mean(-1)
    best = earned.clone()
    for size in (0.02, 0.1, 0.5) * 20:
        other = shares.clone()
        other[..., 0] *= (size * torch.randn(other.shape[:-1])).exp()
        other[..., 0] /= other[..., 0].sum(-1, keepdim=True)
        best = torch.maximum(best, true_utility(allocator.scenario, state, other).mean(-1))
    assert (best - earned).mean() < 5e-4


def test_steps_go_first_to_who_waits_anyway():
    """Of 200 users half can be in time: the rest have the steps, and the rules alone come close to the bound."""
    allocator = make("direct", "env.users=200")
    env = EdgeAIGCEnv(allocator.scenario, 16, seed=2)
    env.latch(torch.rand(16, 1, 10) < 0.5)
    cells = env.observe()
    state = situation(cells) | allocator.fields(cells)
    output = torch.zeros(*state["hit"].shape, 2)
    shares = allocator.to_shares(state, output, explore=False)
    waits = state["hit"] & (shares[..., 0] == 0)
    assert (shares[..., 1] * ~waits).sum(-1)[waits.sum(-1) > 10].max() < 1e-3  # 1000 steps are enough for six
    earned, before = (true_utility(allocator.scenario, state, other).mean(-1)
                      for other in (shares, allocator.to_shares(state, output, explore=True)))  # fmt: skip
    bound = slot_bound(allocator.scenario, **situation(cells))["bound"].flatten()
    assert (bound - earned.flatten()).mean() < 3e-3 < (bound - before.flatten()).mean()


def test_those_are_kept_who_make_all_earn_most():
    """Against all sets of the users that need least, one by one, and against keeping nobody."""
    generator = torch.Generator().manual_seed(0)
    for users in (1, 3, 12, 60):
        left, link, delay, late, shares = torch.rand(5, 40, users, generator=generator).double()
        left, link = 1.2 * left - 0.2, link / users
        there = torch.rand(40, users, generator=generator) < 0.8
        shares = shares * there / (shares * there).sum(-1, keepdim=True).clamp_min(1e-9)
        need = link / left.clamp_min(1e-6)
        found = _worth_keeping(need, link, left, torch.stack((delay, late), -1), shares, there)
        for world in range(40):
            able = there[world] & (left[world] > 0)
            order = [u for u in need[world].argsort().tolist() if able[u]]
            earned = {}
            for count in range(len(order) + 1):
                kept = torch.zeros(users, dtype=torch.bool)
                kept[order[:count]] = True
                rest = 1 - need[world, kept].sum()
                if rest >= 0:
                    got = need[world] * kept + rest * shares[world]
                    latency = (left[world] - link[world] / got.clamp_min(1e-12)).clamp_min(-1)
                    earned[count] = float(((delay[world] * latency - late[world] * ~kept) * there[world]).sum())
            assert set(order[: max(earned, key=earned.get)]) == set(found[world].nonzero().flatten().tolist())


def test_equal_outputs_share_by_the_square_root_law():
    allocator = make("direct", "allocator/head=competitive", "allocator.head.square_root_law=true")
    env = EdgeAIGCEnv(allocator.scenario, 8, seed=1)
    state = allocator.state(env.observe())
    shares = allocator.to_shares(state, torch.zeros(*state["hit"].shape, 2))
    link = allocator.features.log_link(state["features"]).exp()
    torch.testing.assert_close(shares[..., 0], link.sqrt() / link.sqrt().sum(-1, keepdim=True))
