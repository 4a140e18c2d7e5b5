"""Catalogues: what they set, what they refuse, and the bound where services differ in every respect."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.evaluation import EpisodeMeans, summarise
from lightning_t2drl.networks.features import UserFeatures, floor_share
from lightning_t2drl.run.compose import compose
from lightning_t2drl.system import load_scenario, serve
from lightning_t2drl.system.bounds import slot_bound
from lightning_t2drl.system.service import steps_of
from lightning_t2drl.system.serving import situation
from lightning_t2drl.system.world import initial_state


def model(name, **keys):
    whole = {"name": name, "knots": [[60, 110], [170, 28]], "seconds_per_step": 0.18, "base_seconds": 5.74}
    return whole | {"storage_gb": 1.0} | keys


THREE = (
    model("image", cost_per_step=0.18),
    model("text", metric="words", knots=[[1, 0.2], [4, 0.5], [12, 0.7], [40, 0.8]], better="higher", alpha=0.7,
          seconds_per_step=0.2, base_seconds=0.5, deadline=12.0, input_mb=[0.1, 0.2], output_mb=[0.1, 0.2],
          cost_per_step=0.2),
    model("video", metric="PSNR", knots=[[2, 14], [5, 19], [10, 21]], better="higher", seconds_per_step=2.0,
          deadline=80.0, deadline_penalty=1.0, output_mb=[10, 20], cost_per_step=2.0),
)  # fmt: skip


def three(**overrides):
    return load_scenario("paper", catalogue={"models": THREE}, **{"storage_capacity_gb": 3.0, **overrides})


def test_image10_is_the_paper():
    """Every value, and with them every draw and every reward, bit for bit."""
    plain, listed = load_scenario("paper"), load_scenario("paper", catalogue="image10")
    labels = {"model_names", "services", "metrics"}
    assert {k for k, v in plain.as_dict().items() if v != listed.as_dict()[k]} <= labels
    rollouts = [EdgeAIGCEnv(scenario, 2, 1) for scenario in (plain, listed)]
    torch.manual_seed(0)
    for _ in range(3):
        raw = torch.rand(2, 1, 10, 2) * 2 - 1
        one, other = (env.play(raw) for env in rollouts)
        assert (one == other).all()


def test_mixed_in_si_units():
    s = load_scenario("mixed")
    assert s.models == 12 and len(s.kinds) == 4 and s.knots is not None
    assert s.input_bits.shape == (12, 2) and len(set(s.deadline.tolist())) == 3 and isinstance(s.alpha, float)
    cells = EdgeAIGCEnv(s, 3, 0).observe()
    low, high = s.input_bits[cells["request"]].unbind(-1)
    assert ((low <= cells["input_bits"]) & (cells["input_bits"] <= high)).all()
    torch.testing.assert_close(s.budget_steps * s.step_cost, torch.full((12,), s.step_budget))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000))
def test_each_user_is_served_by_its_own_service(seed):
    """`serve` against the equations, user by user."""
    s, draw = three(), np.random.default_rng(seed)
    request = draw.integers(3, size=4)
    steps, shares, hit = draw.uniform(0, 200, 4), draw.uniform(0.1, 1, 4), draw.random(3) < 0.6
    bits = torch.full((4,), 4e7)
    served = serve(s, torch.tensor(request), bits, bits, torch.full((4,), 1e-9), torch.tensor(hit),
                   torch.tensor(shares).float(), torch.tensor(steps).float())  # fmt: skip
    for u, m in enumerate(request):
        keys = THREE[m]
        x, metric = np.array(keys["knots"], dtype=float).T
        value = np.interp(steps[u] if hit[m] else x[-1], x, metric)
        quality = (value - metric[0]) / (metric[-1] - metric[0])
        deadline, alpha = keys.get("deadline", 60.0), keys.get("alpha", 0.5)
        delay = served["delay"][u].item()
        utility = alpha * quality + (1 - alpha) * max(1 - delay / deadline, -1)
        utility -= keys.get("deadline_penalty", 0.5) * (delay > deadline)
        assert served["metric"][u].item() == pytest.approx(value, rel=1e-4, abs=1e-5)
        assert served["quality"][u].item() == pytest.approx(quality, abs=1e-5)
        assert served["utility"][u].item() == pytest.approx(utility, abs=1e-4) or abs(delay - deadline) < 1e-3


@settings(max_examples=8, deadline=None)
@given(st.sampled_from(["mixed", "three"]), st.integers(0, 10_000), st.floats(1.0, 500.0))
def test_what_steps_cost_stays_within_the_budget(name, seed, budget):
    s = load_scenario("mixed", step_budget=budget) if name == "mixed" else three(step_budget=budget)
    env, generator = EdgeAIGCEnv(s, 4, seed), torch.Generator().manual_seed(seed)
    cells = env.latch(torch.rand(4, 1, s.models, generator=generator) < 0.6)
    served = env.play(torch.rand(4, 1, s.users, 2, generator=generator) * 6 - 3)["served"]
    steps = steps_of(s, cells["request"], served["shares"][..., 1])
    assert (steps * s.step_cost[cells["request"]]).sum(-1).max() <= budget * (1 + 1e-5)
    found = slot_bound(s, **situation(cells))
    assert (found["steps"] * s.step_cost[cells["request"]]).sum(-1).max() <= budget * (1 + 1e-5)
    assert not steps[~served["hit"]].any() and not found["steps"][~served["hit"]].any()


def slots(scenario, count, seed):
    generator = torch.Generator().manual_seed(seed)
    world = initial_state(scenario, count, generator)
    slot = {key: world[key][:, 0] for key in ("request", "input_bits", "output_bits", "gain")}
    return slot | {"cache": torch.rand(count, scenario.models, generator=generator) < 0.7}


@settings(max_examples=8, deadline=None)
@given(st.sampled_from([3.0, 12.0, 20.0, 54.0]), st.sampled_from([20.0, 100.0]), st.integers(0, 10_000))
def test_brute_force_never_beats_the_bound_of_mixed_services(budget, band, seed):
    s = three(users=2, step_budget=budget, bandwidth_mhz=band)
    slot = slots(s, 6, seed)
    found = slot_bound(s, **slot)
    b = torch.tensor([(v, 1 - v) for v in np.linspace(0, 1, 41)]).float()[:, None]
    parts = [(i, j) for i, j in itertools.product(np.linspace(0, 1, 31), repeat=2) if i + j <= 1]
    share = torch.tensor(parts).float()[None]
    shape = (len(b), share.shape[1], 2)
    for n in range(6):
        one = {key: value[n].expand(*shape[:2], -1) for key, value in slot.items()}
        steps = steps_of(s, one["request"], share.expand(shape))
        best = serve(s, **one, bandwidth=b.expand(shape), steps=steps)["utility"].mean(-1).amax()
        assert best <= found["bound"][n] + 2e-6 and found["achieved"][n] <= found["bound"][n] + 2e-6


def test_the_bound_of_mixed_services_is_achieved():
    for scenario in (load_scenario("mixed"), load_scenario("mixed", step_budget=20.0)):
        found = slot_bound(scenario, **slots(scenario, 40, 0))
        gap = (found["bound"] - found["achieved"]) / found["bound"].abs().clamp_min(0.1)
        assert gap.min() >= -1e-6 and gap.median() < 2e-4 and gap.mean() < 5e-3


def test_cheap_hits_get_their_steps_first():
    """Two dear hits with the fastest links would leave two cheap ones, which fit the budget together, with none."""
    models = [model("dear", cost_per_step=0.18), model("cheap", cost_per_step=0.03)]
    s = load_scenario("paper", users=4, bandwidth_mhz=200.0, step_budget=54.0, catalogue={"models": models})
    bits = torch.full((1, 4), 6e7)
    gain = torch.tensor([[1e-8, 3e-9, 1e-9, 1e-10]])
    found = slot_bound(s, torch.tensor([[0, 0, 1, 1]]), bits, bits, gain, torch.ones(1, 2, dtype=torch.bool))
    assert (found["steps"][:, 2:] >= 170 * (1 - 1e-6)).all()
    assert found["achieved"].item() == pytest.approx(found["bound"].item(), abs=1e-5)


@pytest.mark.parametrize("name", ["paper", "mixed"])
def test_the_most_efficient_steps_are_those_of_the_best_quality_per_step(name):
    scenario = load_scenario(name)
    for m in range(scenario.models):
        steps = torch.linspace(0, float(scenario.full_steps[m]), 4001)[1:]
        if scenario.knots is None:
            floor, full = scenario.floor_steps[m], scenario.full_steps[m]
            score = ((steps - floor) / (full - floor)).clamp_min(0)
        else:
            at, metric = scenario.knots[m].unbind(-1)
            score = torch.from_numpy(np.interp(steps, at, (metric - metric[0]) / (metric[-1] - metric[0]))).float()
        assert float(scenario.efficient_steps[m]) == pytest.approx(float(steps[(score / steps).argmax()]), rel=2e-3)


def test_networks_see_no_unit_of_a_service():
    """Three times slower in every respect, or steps that cost and buy five times as much: all is seen as before."""
    slower = {key: 3.0 for key in ("seconds_per_step", "base_seconds", "deadline")} | {"cost_per_step": 5.0}
    whole = [{"deadline": 60.0} | keys for keys in THREE]  # the env's deadline, too
    scaled = [{key: v * slower[key] if key in slower else v for key, v in keys.items()} for keys in whole]
    plain = three(step_budget=30.0)
    other = load_scenario("paper", catalogue={"models": scaled}, storage_capacity_gb=3.0, step_budget=150.0,
                          bandwidth=plain.bandwidth / 3, noise_density=plain.noise_density * 3,
                          backhaul_rate=plain.backhaul_rate / 3)  # fmt: skip
    cells = EdgeAIGCEnv(plain, 4, 0).latch(torch.tensor([True, False, True]).expand(4, 1, 3))
    seen, as_before = (UserFeatures(s)(s, cells) for s in (other, plain))
    for name, value in as_before.items():
        torch.testing.assert_close(seen[name], value, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(floor_share(other, cells), floor_share(plain, cells))


def test_reports_by_service():
    """Three hits of two services, one of them with steps that end at its floor, and a miss that counts for neither."""
    s = three(users=4, deadline_penalty=0.0)
    request = torch.tensor([[[0, 0, 1, 1]]])
    steps = torch.tensor([[[60.0, 115.0, 40.0, 0.0]]])
    shares = torch.stack((torch.full((1, 1, 4), 0.25), steps / s.budget_steps[request]), -1)
    bits = torch.full((1, 1, 4), 1e6)
    given = {"request": request, "input_bits": bits, "output_bits": bits, "gain": torch.full((1, 1, 4), 1e-9)}
    served = serve(s, **given, cache=torch.ones(1, 1, 3, dtype=torch.bool), bandwidth=shares[..., 0], steps=steps)
    served["shares"], served["hit"][..., 3] = shares, False
    means = EpisodeMeans(s)
    means.add(served, {"attached": torch.ones(1, 1, 4, dtype=torch.bool), "request": request}, torch.zeros(1, 1, 1))
    found = {name: value.item() for name, value in means.take().items()}
    assert found["wasted_steps"] == pytest.approx(1 / 3) and found["hit_ratio"] == 0.75
    assert (found["hit_ratio/image"], found["hit_ratio/text"]) == (1.0, 0.5) and "metric" not in found
    assert found["metric/image"] == pytest.approx((110 + 69) / 2) and found["quality/text"] == pytest.approx(0.5)
    assert found["delay/image"] == pytest.approx(served["delay"][..., :2].mean().item())
    assert np.isnan(found["hit_ratio/video"]) and np.isnan(summarise({"a": torch.tensor([torch.nan])})["a"]["mean"])
    assert summarise({"a": torch.tensor([torch.nan, 2.0, 4.0])})["a"]["mean"] == 3.0


BAD = {
    "knots: missing": {"knots": []},
    "knots: need at least two": {"knots": [[1, 2]]},
    "knots: steps must rise": {"knots": [[5, 2], [5, 1]]},
    "knots: metric is better when lower, but does not improve at 7 steps": {"knots": [[5, 2], [7, 3]]},
    "knots: not concave, metric improves faster beyond 6 steps": {"knots": [[5, 9], [6, 8], [7, 1]]},
    "knots: steps must be 0 or more": {"knots": [[-1, 2], [7, 1]]},
    "seconds_per_step: missing": {"seconds_per_step": None},
    "storage_gb: missing": {"storage_gb": None},
    "modality: 'smell' is none of": {"modality": "smell"},
    "better: 'often' is none of": {"better": "often"},
    "cost_per_step: 0": {"cost_per_step": 0.0},
    "alpha: 2": {"alpha": 2.0},
    "deadline: 0": {"deadline": 0.0},
    "input_mb: [3.0, 2.0] is not a range": {"input_mb": [3, 2]},
    "knot: no such key; the nearest is knots": {"knot": 1},
}


@pytest.mark.parametrize(("line", "keys"), BAD.items())
def test_a_bad_model_is_one_line_that_names_it(line, keys):
    with pytest.raises(UserError) as error:
        load_scenario("paper", catalogue={"models": [model("mine", **keys)]})
    assert str(error.value).startswith(f"env.catalogue.mine.{line}") and "\n" not in str(error.value)


@pytest.mark.parametrize("models", [["image1"], {"image1": {}}, "image1"])
def test_models_are_groups_of_keys(models):
    with pytest.raises(UserError, match=r"^env\.catalogue\.modles: no such key; a catalogue has models"):
        load_scenario("paper", catalogue={"models": [model("mine")], "modles": models})
    with pytest.raises(UserError, match=r"^env\.catalogue: .* is neither the name of a catalogue nor a group"):
        load_scenario("paper", catalogue={"models": models})


def test_files_of_ones_own(tmp_path):
    (tmp_path / "service").mkdir()
    (tmp_path / "service" / "sketch.yaml").write_text(
        "name: sketch\nknots: [[1, 9], [5, 2]]\nseconds_per_step: 0.1\nstorage_gb: 2.0\nprovenance: {by: me}\n"
    )
    path = tmp_path / "desk.yaml"
    path.write_text("models:\n- {name: a, service: sketch}\n- {name: b, service: text, storage_gb: 1}\n")
    composed = compose("train", [f"env.catalogue={path}", f"--config-dir={tmp_path}"])
    held = composed.plain["env"]["catalogue"]
    assert held["models"][0] == {"name": "a", "service": "sketch", "knots": [[1, 9], [5, 2]], "seconds_per_step": 0.1,
                                 "storage_gb": 2.0}  # fmt: skip
    s = load_scenario("paper", catalogue=held)
    assert s.model_names == ("a", "b") and s.services[0] == "sketch" and s.metrics[1] == "words (share of real words)"
    for words, line in {
        ("env.catalogue=nowhere",): "env.catalogue=nowhere: no such catalogue; there are image10",
        (f"env.catalogue={path}",): "env.catalogue.a.service=sketch: no such service",
        ("env=mixed", "env.model_storage_gb=[1,2]"): "env.model_storage_gb: the catalogue says it",
        ("env=mixed", "env.service.full_steps=150"): "env.service.full_steps: the catalogue says it",
    }.items():
        with pytest.raises(UserError) as error:
            compose("train", list(words))
        assert str(error.value).startswith(line)
