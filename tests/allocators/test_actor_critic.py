"""DDPG and D3PG losses against TorchRL's DDPGLoss, and what targets, exploration and heads promise."""

import functools

import pytest
import torch
from tensordict import TensorDict
from tensordict.nn import TensorDictModule
from torchrl.objectives import DDPGLoss

from lightning_t2drl.accel.compiling import Compiled
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError
from lightning_t2drl.networks.heads import CompetitiveHead, CompetitiveHeadConfig
from lightning_t2drl.registry import build
from lightning_t2drl.system import amend_allocation, load_scenario

NETWORKS, HEADS, DIFFUSION = (f"lightning_t2drl.networks.{part}" for part in ("", "heads.", "actors.diffusion."))
SET = {
    "actor": {"_target_": f"{NETWORKS}sets.SetTrunk"},
    "critic": {"_target_": f"{NETWORKS}sets.SetCritic"},
    "head": {"_target_": f"{HEADS}CompetitiveHead"},
}
MLP = {
    "actor": {"_target_": f"{NETWORKS}mlp.MLPTrunk", "hidden": 32},
    "critic": {"_target_": f"{NETWORKS}mlp.MLPCritic", "hidden": 32},
    "head": {"_target_": f"{HEADS}TanhHead"},
    "critics": 1,
    "discount": 0.99,
}
EPSILON = {"diffusion": {"_target_": f"{DIFFUSION}EpsilonDiffusion", "schedule": "linear", "beta_max": 0.3}}
PATHS = {
    "ddpg": "lightning_t2drl.allocators.ddpg.DDPGAllocator",
    "d3pg": "lightning_t2drl.allocators.d3pg.D3PGAllocator",
}


def make(kind, *parts, scenario=None, **changes):
    torch.manual_seed(0)
    content = {"_target_": PATHS[kind]}
    for part in parts:
        content |= part
    return build(content | changes, scenario or load_scenario("paper", users=4), key="allocator")


def batch_for(allocator, size=16):
    env = EdgeAIGCEnv(allocator.scenario, size, seed=3)
    cache = env.observe()["cache"].clone()
    cache[..., :3] = True
    cells = env.latch(cache)
    state = allocator.state(cells)
    following = env.play(allocator.act(state, explore=True))
    return allocator.transition(state, following, allocator.state(following)).reshape(-1)


@pytest.mark.parametrize("kind", ["ddpg", "d3pg"])
def test_losses_equal_torchrl(kind):
    allocator = make(kind, MLP)
    for target, online in ((allocator.target_actor, allocator.actor), (allocator.target_critics, allocator.critics)):
        for a, b in zip(target.parameters(), online.parameters(), strict=True):
            a.data.copy_(b.data + 0.05 * torch.randn_like(b))  # targets that differ from the networks
    batch = batch_for(allocator)
    noise = allocator.draw_noise(batch["state"].to_dict())
    next_noise = allocator.draw_noise(batch["state"].to_dict())
    fields = list(batch["state"].keys())

    class Actor(torch.nn.Module):
        """Chain, head and amender as one function of the state; the noise travels batch first, [b, I, U, 2]."""

        def __init__(self, actor):
            super().__init__()
            self.actor = actor

        def forward(self, chain, *state):
            return allocator.shares(self.actor, dict(zip(fields, state, strict=True)), chain.movedim(1, 0)).flatten(-2)

    class Value(torch.nn.Module):
        def __init__(self, critics):
            super().__init__()
            self.critics = critics

        def forward(self, action, *state):
            return self.critics[0](dict(zip(fields, state, strict=True)), action.unflatten(-1, (-1, 2)))

    loss = DDPGLoss(
        TensorDictModule(Actor(allocator.actor), ["chain", *fields], ["action"]),
        TensorDictModule(Value(allocator.critics), ["action", *fields], ["state_action_value"]),
        loss_function="l2",
        delay_actor=True,
        delay_value=True,
    )
    loss.make_value_estimator(loss.default_value_estimator, gamma=allocator.config.discount)
    targets = [*allocator.target_actor.parameters(), *allocator.target_critics.parameters()]
    named = dict(allocator.target_actor.named_parameters(prefix="module.actor"))
    named |= dict(allocator.target_critics.named_parameters(prefix="module.critics"))
    copied = 0
    for group in (loss.target_actor_network_params, loss.target_value_network_params):
        for name, value in group.flatten_keys(".").items():
            if name in named:  # the rest are constants of the chain
                value.data.copy_(named[name].data)
                copied += 1
    assert copied == len(targets)
    done = torch.zeros(16, 1, dtype=torch.bool)
    data = TensorDict(
        {
            **batch["state"],
            "chain": noise.movedim(0, 1),
            "action": batch["shares"].flatten(-2),
            "next": {
                **batch["next_state"],
                "chain": next_noise.movedim(0, 1),
                "reward": batch["reward"],
                "done": done,
                "terminated": done,
            },
        },
        batch_size=[16],
    )
    expected = loss(data)
    target = allocator.target(batch["reward"], batch["next_state"], next_noise)
    critic_loss = allocator.critic_loss(batch["state"], batch["shares"], target)
    actor_loss = allocator.actor_loss(batch["state"], noise)
    torch.testing.assert_close(critic_loss, expected["loss_value"], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(actor_loss, expected["loss_actor"], rtol=1e-5, atol=1e-7)


def test_actor_gradient_reaches_every_step_and_only_the_actor():
    allocator = make("d3pg", SET, critics=2)
    batch = batch_for(allocator)
    loss = allocator.actor_loss(batch["state"], allocator.draw_noise(batch["state"]))
    loss.backward(inputs=list(allocator.actor.parameters()))
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in allocator.actor.parameters())
    assert allocator.actor.trunk.from_step.grad.abs().sum(-1).min() > 0
    assert all(p.grad is None for p in allocator.critics.parameters())


def test_polyak_update():
    allocator = make("ddpg", MLP, target_rate=0.25)
    online, target = allocator.critics[0].tail.layers[-1].bias, allocator.target_critics[0].tail.layers[-1].bias
    with torch.no_grad():
        online.fill_(1.0), target.fill_(0.0)
    allocator.update_targets()
    assert target.item() == pytest.approx(0.25)


def test_myopic_discount_keeps_no_targets_and_learns_the_reward():
    allocator = make("d3pg", SET)
    batch = batch_for(allocator)
    assert not hasattr(allocator, "target_actor") and not allocator.bootstraps and "next_state" not in batch
    assert batch["reward"].shape == (16, 4)


@pytest.mark.parametrize(("cells", "expected"), [(1, (1 + 9) / 2), (3, (1 * 1 + 3 * 9) / 4)])
def test_worlds_count_alike_and_the_cells_of_a_world_by_their_users(cells, expected):
    allocator = make("ddpg", SET, scenario=load_scenario("paper", users=4, cells=cells, active_users=[1, 4]))
    attached = torch.tensor([[1, 0, 0, 0], [1, 1, 0, 1], [0, 0, 0, 0]]) > 0
    value = torch.tensor([1.0, 9.0, 100.0]).unsqueeze(-1).expand(3, 4)
    assert allocator.mean(value, {"attached": attached}).item() == pytest.approx(expected)


def test_saturation_penalty_acts_outside_the_unit_box_only():
    allocator = make("d3pg", MLP, EPSILON)
    batch = batch_for(allocator)
    noise = allocator.draw_noise(batch["state"])
    output = allocator.actor(batch["state"], noise)
    expected = 10 * (output.abs() - 1).clamp_min(0).square().mean()
    value = allocator.value(allocator.critics, batch["state"], allocator.to_shares(batch["state"], output)).mean()
    torch.testing.assert_close(allocator.actor_loss(batch["state"], noise), expected - value)


def competitive(output, hit, users=3):
    attached = torch.ones(1, users, dtype=torch.bool)
    state = {"hit": hit, "attached": attached, "full_share": torch.full((1, users), 0.17)}
    raw = CompetitiveHead(CompetitiveHeadConfig(scale=3.0, step_scale=6.0))(output, state)
    return amend_allocation(raw, hit, attached)


def test_competitive_head_is_centred_and_asks_for_no_more_than_full_quality():
    hit = torch.tensor([[True, True, False]])
    output = torch.tensor([[[0.3, 1.0], [-0.2, -1.0], [0.5, 1.0]]])
    shares = competitive(output, hit)
    shifted = competitive(output + torch.tensor([0.4, 0.0]), hit)
    torch.testing.assert_close(shares[..., 0], shifted[..., 0])
    torch.testing.assert_close(shares[..., 0], (3 * output[..., 0]).softmax(-1))
    most, least = 0.17 * torch.tensor([6.0 + 3.0, -6.0 + 3.0]).sigmoid()
    torch.testing.assert_close(shares[0, :, 1], torch.stack((most, least, torch.zeros(()))))


def test_competitive_head_drops_the_least_wanted_when_steps_are_short():
    hit = torch.ones(1, 8, dtype=torch.bool)
    output = torch.stack((torch.zeros(8), torch.linspace(1, -0.2, 8)), -1).unsqueeze(0).requires_grad_()
    steps = competitive(output, hit, users=8)[0, :, 1] / 0.17
    assert steps.sum().item() == pytest.approx(1 / 0.17, rel=1e-3)
    assert steps[0] > 0.99 and steps[-1] < 0.3 and (steps.diff() < 0).all()
    # Wanting more takes from the others and leaves the sum: the gradient knows of the threshold.
    (gradient,) = torch.autograd.grad(steps[5], output)
    assert gradient[0, 5, 1] > 0 and (gradient[0, :, 1].sum() / gradient[0, 5, 1]).abs() < 0.02


def test_best_of_many_samples_is_the_critics_choice():
    allocator = make("d3pg", SET, decision_samples=16)
    single = make("d3pg", SET, decision_samples=1)
    single.load_state_dict(allocator.state_dict())
    state = batch_for(allocator)["state"]

    def value(policy):
        policy.seed(5)
        shares = (policy.act(state) + 1) / 2
        return policy.value(policy.critics, state, shares).mean()

    assert value(allocator) > value(single)


def test_same_seed_same_decisions_and_state_of_the_generator_is_restored():
    allocator = make("d3pg", MLP, EPSILON)
    state = batch_for(allocator)["state"]
    allocator.seed(1, "a")
    saved = allocator.extra_state()
    first, second = allocator.act(state, explore=True), allocator.act(state, explore=True)
    assert not torch.equal(first, second)
    allocator.load_extra_state(saved)
    assert torch.equal(allocator.act(state, explore=True), first)


def test_actor_and_critic_must_read_the_same():
    with pytest.raises(UserError, match="SetTrunk reads UserFeatures, MLPCritic FlatFeatures"):
        make("d3pg", SET, critic=MLP["critic"])


def test_compiled_losses_are_the_eager_ones():
    eager, compiled = make("d3pg", SET), make("d3pg", SET)
    compiled.critic_loss = Compiled(compiled.critic_loss, backend="aot_eager")
    compiled.actor_loss = Compiled(compiled.actor_loss, backend="aot_eager")
    batch = batch_for(eager)
    state, noise = batch["state"].to_dict(), eager.draw_noise(batch["state"])
    for loss, inputs in (("critic_loss", (state, batch["shares"], batch["reward"])), ("actor_loss", (state, noise))):
        values = [getattr(allocator, loss)(*inputs) for allocator in (eager, compiled)]
        torch.testing.assert_close(*values)
        parts = [a.critics if loss == "critic_loss" else a.actor for a in (eager, compiled)]
        for part, value in zip(parts, values, strict=True):
            value.backward(inputs=list(part.parameters()))
        for a, b in zip(*(part.parameters() for part in parts), strict=True):
            torch.testing.assert_close(a.grad, b.grad)


def test_what_cannot_be_compiled_is_computed_plainly_with_one_line(capsys):
    def fails(graph, inputs):
        raise RuntimeError("no compiler\nhere")

    double = Compiled(lambda x: 2 * x, backend=fails)
    assert double(torch.ones(())).item() == 2 and double(torch.ones(())).item() == 2
    assert capsys.readouterr().err.count("compile: not possible here") == 1


def test_cached_properties_are_no_hindrance_to_compiling(capsys):
    class Box:
        @functools.cached_property
        def factor(self):
            return 2

    box = Box()
    double = Compiled(lambda x: box.factor * x, backend="eager")
    assert double(torch.ones(())).item() == 2 and not capsys.readouterr().err
