"""What is measured of actors and critics, what is said of it, and that a run does not notice."""

import pytest
import torch

from lightning_t2drl.allocators.diagnosis import actor_and_critics
from lightning_t2drl.allocators.exact import ExactAllocator, ExactConfig
from lightning_t2drl.allocators.objectives import true_utility
from lightning_t2drl.building import build_policies
from lightning_t2drl.cachers.popular import PopularCacher, PopularConfig
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.loop.checkpoints import in_order, load_checkpoint
from lightning_t2drl.loop.diagnosis import Progress, diagnose, signatures, unset
from lightning_t2drl.run.cli import main
from lightning_t2drl.run.compose import compose
from lightning_t2drl.system import load_scenario
from tests.allocators.test_kinds import make

GOOD = {
    "actor_spread": 0.4,
    "chain_noise": 0.1,
    "critic_correlation": 0.9,
    "critic_cosine_bandwidth": 0.9,
    "critic_cosine_steps": 0.9,
    "steps_below_floor": 0.0,
    "hit_ratio": 0.7,
    "hit_ratio_popular": 0.7,
    "violation_ratio": 0.01,
    "violation_ratio_exact": 0.01,
}


def measured(allocator):
    env = EdgeAIGCEnv(allocator.scenario, 16, seed=1)
    cache = torch.zeros_like(env.observe()["cache"])
    cache[..., :3] = True
    cells = env.latch(cache)
    with torch.no_grad():
        return actor_and_critics(allocator, cells, torch.Generator().manual_seed(0))


def test_a_critic_that_is_the_truth_has_correlation_and_cosines_of_one():
    allocator = make("ddpm")
    for sign in (1, -1):
        allocator.value = lambda critics, state, shares, sign=sign: (
            sign * true_utility(allocator.scenario, state, shares)
        )
        found = measured(allocator)
        names = ("critic_correlation", "critic_cosine_bandwidth", "critic_cosine_steps")
        torch.testing.assert_close(torch.tensor([found[name] for name in names]), torch.full((3,), float(sign)))


def test_the_share_of_noise_is_one_for_noise_alone_and_zero_without():
    allocator = make("ddpm")
    for forward, low, high in (
        (lambda state, noise: 0.5 * noise[0], 0.9, 1.0),
        (lambda state, noise: state["features"][..., :2] + 0 * noise[0], 0.0, 0.01),
    ):
        allocator.actor.forward = forward
        assert low <= measured(allocator)["chain_noise"] <= high


def test_each_signature_has_one_line_with_its_cause():
    fell = [Progress(0, 0.3), Progress(100, 0.55), Progress(200, 0.4)]
    cases = {
        "poor convergence: utility fell from 0.550 at frame 100 to 0.400; 90% of the actor's spread": {
            "chain_noise": 0.9
        },
        "the critics hardly see the action (correlation 0.20": {"critic_correlation": 0.2},
        "points elsewhere than the true one (cosine 0.10": {"critic_cosine_steps": 0.1},
        "late users: 30.0%, where exact allocation has 1.0%": {"violation_ratio": 0.3},
        "few hits: 40.0%, where popular caching has 70.0%; the cacher lets 30.0% of hits slide": {"hit_ratio": 0.4},
        "wasted steps: 50.0%": {"steps_below_floor": 0.5},
    }
    assert signatures(GOOD, fell[:2]) == []
    for line, changed in cases.items():
        assert any(line in said for said in signatures(GOOD | changed, fell)), line


@pytest.mark.parametrize(("experiment", "lacking"), [
    ("t2drl", []),
    ("t2drl_literal", ["cacher.discount=0", "allocator.discount=0", "allocator.critic.per_user=true",
                       "allocator.actor.hits=true", "allocator.critic.hits=true"]),
])  # fmt: skip
def test_a_line_advises_what_is_not_set_yet(experiment, lacking):
    config = compose("train", [f"experiment={experiment}"]).config
    found = unset(*build_policies(config.env, config.cacher, config.allocator)[1:])
    assert found == lacking
    few, blind = signatures(GOOD | {"hit_ratio": 0.4, "violation_ratio": 0.3, "critic_correlation": 0.2}, (), found)[
        ::-1
    ]
    assert few.endswith(f"slide ({' or '.join(['more frames', *lacking[:1]])})")
    assert blind.endswith(f"truth; {' or '.join(['more frames', *lacking[1:]])})")


def test_a_pair_that_learns_nothing_is_diagnosed_too():
    allocator = make("ddpm")
    scenario = allocator.scenario
    found = diagnose(scenario, PopularCacher(scenario, PopularConfig()), ExactAllocator(scenario, ExactConfig()), 1, 8)
    assert found["hit_ratio"] == found["hit_ratio_popular"] and "chain_noise" not in found
    assert found["violation_ratio"] == found["violation_ratio_exact"] and found["steps_below_floor"] == 0
    assert signatures(found) == []


def test_what_another_cell_serves_is_no_hit_that_is_missing():
    found = {}
    for link in (200.0, None):
        scenario = load_scenario("paper", cells=2, users=12, edge_link_mbps=link, storage_capacity_gb=60.0)
        cacher = PopularCacher(scenario, PopularConfig())
        first = torch.tensor([[True], [False]])  # holds all models, the second cell none
        cacher.decide = lambda cells, explore=False, first=first: first & torch.ones_like(cells["cache"])
        found[link] = diagnose(scenario, cacher, ExactAllocator(scenario, ExactConfig()), 1, 8)["hit_ratio"]
    assert found[200.0] == 1.0 and found[None] < 0.9


def test_a_run_does_not_notice_and_an_old_one_is_diagnosed(run_train, tmp_path, capsys):
    parameters = []
    for wanted in ("true", "false"):
        run_train(f"evaluation.diagnosis={wanted}", "frames=4", output_dir=tmp_path / wanted)
        parameters.append(load_checkpoint(in_order(tmp_path / wanted / "checkpoints")[-1])["state_dict"])
    assert all(torch.equal(a, b) for a, b in zip(*(p.values() for p in parameters), strict=True))
    columns = (tmp_path / "true" / "evaluations.csv").read_text().splitlines()[0]
    assert "diagnosis_critic_correlation" in columns
    main(["diagnose", str(tmp_path / "true"), "worlds=8"])
    said = capsys.readouterr().out
    assert "critic_correlation: correlation of Q with the true utility" in said and "hit_ratio_popular" in said
