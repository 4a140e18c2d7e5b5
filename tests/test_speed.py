"""The speed benchmark end to end, and that its reference computes what the project computes."""

import json
import math
import time

import pytest
import torch

from benchmarks.__main__ import ITEMS, main, parse
from benchmarks.measure import BLOCK, exponent, interleave, peak_bytes
from benchmarks.reference import Chain, Denoiser, TensorReplay, WholeSetDenoiser
from benchmarks.subjects import HIDDEN, allocator, mlp_allocator, plain_d3pg, plain_fields, same_shapes, transitions
from benchmarks.whole_run import BASE, HERE, name_in, page
from lightning_t2drl.errors import UserError
from lightning_t2drl.networks.actors.diffusion import EpsilonDiffusion, EpsilonDiffusionConfig, linear_betas


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
    assert {"cpu", "vendor", "cores", "torch", "libraries"} <= set(content["provenance"])


def same_noise(chain, actor, seen, state):
    """Both chains on the same state and, from the global generator, the same noise; [b, A] each."""
    rows = len(state["hit"])
    torch.manual_seed(1)
    plain = chain(seen)
    torch.manual_seed(1)
    noise = torch.stack([torch.randn(rows, chain.action_width) for _ in range(chain.steps)])
    return plain, actor(state, noise.unflatten(-1, (-1, 2))).flatten(-2)


def state_of(policy):
    """A state of 64 worlds."""
    return transitions(policy, policy.scenario, 64)[0]["state"].to_dict()


@torch.no_grad()
def test_the_project_denoises_as_the_reference_does_with_the_same_weights():
    """Evaluating state and step once per chain changes nothing but the time it takes."""
    policy = mlp_allocator("d3pg", same_shapes(), "mish")
    state, denoiser, trunk = state_of(policy), Denoiser(63, 20, HIDDEN), policy.actor.trunk
    first, _, second, _, out = denoiser.body
    from_x, from_time, from_state = first.weight.split([20, 16, 63], 1)
    trunk.from_action.weight.copy_(from_x)
    trunk.from_state.weight.copy_(from_state)
    trunk.from_state.bias.copy_(first.bias)
    trunk.from_step.copy_(denoiser.time(torch.arange(5)) @ from_time.T)
    for ours, theirs in zip(trunk.tail.layers, (second, out), strict=True):
        ours.load_state_dict(theirs.state_dict())
    chain = Chain(denoiser, 20, linear_betas(5, 0.05, 0.3))
    torch.testing.assert_close(*same_noise(chain, policy.actor, state["features"], state), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_set_network_denoises_alike_whether_evaluated_once_per_chain_or_wholly_in_every_step():
    policy = allocator("d3pg", same_shapes())
    config = EpsilonDiffusionConfig(schedule="linear", beta_min=0.05, beta_max=0.3, epsilon_bound=1.0)
    state, actor = state_of(policy), EpsilonDiffusion(policy.make_trunk, config)
    torch.nn.init.normal_(actor.trunk.out.weight)
    chain = Chain(WholeSetDenoiser(actor.trunk), 20, linear_betas(5, 0.05, 0.3))
    torch.testing.assert_close(*same_noise(chain, actor, state, state), rtol=1e-4, atol=1e-5)


def test_the_reference_learns():
    """It is a D3PG that works, not only one that takes time: the critic's value of its actions rises."""
    policy = mlp_allocator("d3pg", same_shapes(), "relu")
    fields = plain_fields(transitions(policy, policy.scenario, 64))
    reference = plain_d3pg()
    losses = [reference.update(fields) for _ in range(30)]
    assert losses[-1]["critic_loss"] < losses[0]["critic_loss"]
    assert losses[-1]["actor_loss"] < losses[0]["actor_loss"]


def test_the_plain_buffer_keeps_the_newest_rows():
    replay = TensorReplay({"reward": torch.arange(3.0)})
    for value in (3.0, 4.0):
        replay.extend({"reward": torch.tensor([value])})
    assert replay.fields["reward"].tolist() == [3, 4, 2]


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


def test_whole_runs_are_compared_pair_by_pair_under_each_commits_own_names(tmp_path):
    runs = {HERE: [{"cpu_seconds": 3.0, "utility": 2.0}], BASE: [{"cpu_seconds": 2.0, "utility": 1.0}]}
    origin = {"command": "it", **dict.fromkeys(("commit", "date", "cpu", "vendor", "instructions", "machine"), "that")}
    origin |= dict.fromkeys(("cores", "system", "python", "torch", "libraries", "threads"), "this")
    assert "| quickstart | 1 | 2 [2, 2] | 3 [3, 3] | 1.5 [1.5, 1.5] | 1" in page(origin, "old", {"quickstart": runs})
    assert name_in(tmp_path, "t2drl") == "t2drl"
    (tmp_path / "configs/experiment").mkdir(parents=True)
    (tmp_path / "configs/experiment/t2drl_set.yaml").touch()  # version 0.1
    assert [name_in(tmp_path, name) for name in ("t2drl", "t2drl_literal", "lru")] == ["t2drl_set", "t2drl", "lru"]


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
