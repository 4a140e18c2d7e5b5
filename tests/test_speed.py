"""The speed benchmark end to end, and that its reference computes what the project computes."""

import json
import math
import time

import pytest
import torch

from benchmarks.__main__ import ITEMS, main, parse
from benchmarks.measure import BLOCK, exponent, interleave, peak_bytes
from benchmarks.reference import Chain, ClampedChain, Denoiser, WholeSetDenoiser
from benchmarks.subjects import plain_d3pg, plain_fields, same_shapes, transitions
from lightning_t2drl.allocators.ddpg import DDPGAllocator
from lightning_t2drl.errors import UserError
from lightning_t2drl.networks.actors.diffusion import DiffusionActor, linear_betas
from lightning_t2drl.networks.mlp import MLPConfig, MLPTrunk
from lightning_t2drl.networks.sets import SetConfig, SetTrunk

SET_ACTOR = {"_target_": "lightning_t2drl.networks.sets.SetTrunk"}


def numbers(content):
    if isinstance(content, dict):
        return [n for value in content.values() for n in numbers(value)]
    if isinstance(content, list):
        return [n for value in content for n in numbers(value)]
    return [content] if isinstance(content, (int, float)) else []


def test_every_item_is_measured_and_reported(tmp_path):
    page = main(["--budget", "tiny", "--output", str(tmp_path)])
    content = json.loads((tmp_path / "speed.json").read_text())
    assert set(content["items"]) == set(ITEMS)
    for name, item in content["items"].items():
        assert item["rows"], name
        assert f"## {item['title']}" in page
        assert all(math.isfinite(n) for n in numbers(item)), name
    assert (tmp_path / "README.md").read_text() == page
    assert (tmp_path / "growth.png").stat().st_size > 10_000
    shares = {row["part"]: row["% of the frame"] for row in content["items"]["frame"]["rows"]}
    assert all(share > 0 for share in shares.values())
    contenders = {row["contender"] for row in content["items"]["decision"]["rows"]}
    assert {"plain eager D3PG", "D3PG", "DDPG", "D3PG, set networks"} <= contenders


class Wave(torch.nn.Module):
    """A stand-in denoiser: some smooth function of noisy action and step, for either chain."""

    def context(self, state):
        return state

    def forward(self, *inputs):
        if inputs[1].dtype == torch.long:  # x, t, state as the reference asks
            return torch.sin(3 * inputs[0] + inputs[1][:, None])
        return torch.sin(3 * inputs[1] + inputs[2])  # context, x, step as the project asks


def same_noise(chain, actor, state):
    """Both chains on the same state and, from the global generator, the same noise; [b, A] each."""
    torch.manual_seed(1)
    plain = chain(state)
    torch.manual_seed(1)
    noise = torch.stack([torch.randn(len(state), chain.action_width) for _ in range(chain.steps)])
    return plain, actor(state, noise.unflatten(-1, (-1, 2))).flatten(-2)


@pytest.mark.parametrize("kind", [Chain, ClampedChain])
def test_both_chains_have_the_same_posterior_mean_and_noise(kind, monkeypatch):
    monkeypatch.setattr(ClampedChain, "limit", 1e9)  # without the clamp the detour leads to the same place
    chain = kind(Wave(), 20, linear_betas(5, 0.05, 0.3))
    actor = DiffusionActor(Wave(), 5, "linear", 0.05, 0.3, "epsilon")
    torch.testing.assert_close(*same_noise(chain, actor, torch.randn(4, 63)), rtol=1e-4, atol=1e-5)


def test_the_project_denoises_as_the_reference_does_with_the_same_weights():
    """Hoisting the state and tabulating the step change nothing but the time it takes."""
    scenario = same_shapes()
    denoiser, trunk = Denoiser(63, 20, 32), MLPTrunk(scenario, 5, MLPConfig(hidden=32, layers=2, activation="mish"))
    first, _, second, _, out = denoiser.body
    state_layer, action_layer, second_layer, out_layer = (m for m in trunk.modules() if isinstance(m, torch.nn.Linear))
    with torch.no_grad():
        from_x, from_time, from_state = first.weight.split([20, 16, 63], 1)
        action_layer.weight.copy_(from_x)
        state_layer.weight.copy_(from_state)
        state_layer.bias.copy_(first.bias)
        trunk.from_step.copy_(denoiser.time(torch.arange(5)) @ from_time.T)
        second_layer.load_state_dict(second.state_dict())
        out_layer.load_state_dict(out.state_dict())
        chain = Chain(denoiser, 20, linear_betas(5, 0.05, 0.3))
        actor = DiffusionActor(trunk, 5, "linear", 0.05, 0.3, "epsilon")
        state = torch.randn(4, 63)
        torch.manual_seed(1)
        plain = chain(state)
        torch.manual_seed(1)
        noise = torch.stack([torch.randn(4, 20) for _ in range(5)]).unflatten(-1, (10, 2))
        columns = torch.cat((torch.ones(4, 30), state), -1)  # the amending columns are not the network's
        torch.testing.assert_close(actor(columns, noise).flatten(-2), plain, rtol=1e-4, atol=1e-5)


def test_the_set_network_denoises_alike_whether_hoisted_or_evaluated_wholly():
    torch.manual_seed(0)
    policy = DDPGAllocator(same_shapes(), DDPGAllocator.Config(actor=SET_ACTOR))
    state = transitions(policy, policy.scenario, 64)[0]["state"].flatten(0, -2)
    trunk = SetTrunk(policy.scenario, 5, SetConfig(hidden=8))
    torch.nn.init.normal_(trunk.out.weight)
    chain = Chain(WholeSetDenoiser(trunk), 20, linear_betas(5, 0.05, 0.3))
    with torch.no_grad():
        plain, ours = same_noise(chain, DiffusionActor(trunk, 5, "linear", 0.05, 0.3, "epsilon"), state)
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-5)


def test_the_reference_learns():
    """It is a D3PG that works, not only one that takes time: the critic's value of its actions rises."""
    scenario = same_shapes()
    policy = DDPGAllocator(scenario, DDPGAllocator.Config())
    fields = plain_fields(transitions(policy, scenario, 256), scenario.users)
    reference = plain_d3pg()
    losses = [reference.update(fields) for _ in range(30)]
    assert losses[-1]["critic_loss"] < losses[0]["critic_loss"]
    assert losses[-1]["actor_loss"] < losses[0]["actor_loss"]


def test_contenders_take_turns_in_changing_order():
    turns = []

    def contender(name):
        def job():
            time.sleep(2 * BLOCK)  # so long that a turn is one call
            turns.append(name)

        return job

    timings = interleave({name: contender(name) for name in "abc"}, seconds=0, rounds=6)
    assert [len(values) for values in timings.values()] == [6, 6, 6]
    after_warm_up = turns[6:]
    rounds = ["".join(after_warm_up[i : i + 3]) for i in range(0, 18, 3)]
    assert {"".join(sorted(r)) for r in rounds} == {"abc"}
    assert len(set(rounds)) > 1


def test_peak_bytes_counts_what_lives_at_once():
    def job():
        a = torch.ones(1000)
        b = a + 1
        del a
        return torch.cat((b, b))

    assert 12_000 <= peak_bytes(job) < 13_000


def test_exponent_of_a_power_law():
    assert exponent([1, 2, 4, 8], [3 * x**1.5 for x in (1, 2, 4, 8)]) == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "decision,nope"], "--only: 'nope' is none of decision"),
        (["--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, message):
    with pytest.raises(UserError, match=message) as raised:
        parse(arguments)
    assert "\n" not in str(raised.value)
