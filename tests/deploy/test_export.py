"""export.py for real, and its files on ONNX Runtime: what PyTorch decides, they decide."""

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnxruntime
import pytest
import torch
from tensordict import TensorDict

from lightning_t2drl import load_policy
from lightning_t2drl.deploy import Controller
from lightning_t2drl.deploy import controller as deploy
from lightning_t2drl.deploy import export as exporting
from lightning_t2drl.envs.worlds import load_per_user
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.checkpoints import AtomicCheckpointIO, in_order
from lightning_t2drl.loop.state import KEY
from lightning_t2drl.networks.heads import CompetitiveHead, TanhHead
from lightning_t2drl.run.cli import main
from lightning_t2drl.run.commands import quiet_libraries, run
from lightning_t2drl.run.compose import compose
from lightning_t2drl.run.evaluate import load_policies
from lightning_t2drl.system import amend_allocation
from tests.conftest import TINY
from tests.worlds import slots_of

OLD = Path(__file__).parents[1] / "data" / "version-0.1"
(SHIPPED,) = (Path(__file__).parents[2] / "policies" / "t2drl-any-load").glob("*.ckpt")
KNAPSACK = [
    "allocator=ddpg_paper",
    "allocator/head=tanh",  # tracing takes a third as long
    "cacher=knapsack",
    "cacher.observe_cache=true",
    "cacher.observe_load=true",
    "env.model_storage_gb=[2,3,4,5]",
    "env.storage_capacity_gb=8",
    "env.popularity_observation=frequencies",
]
# What is exported: the policy that ships for any number of users, D3PG as published from a checkpoint of version 0.1,
# and one that is made here.
POLICIES = ("sets", "mlps", "ddpg")
DIFFUSION = ("sets", "mlps")
STEPS = 2  # left of the chain, as each step is traced anew
# The competitive head multiplies outputs by step_scale = 60 before a sigmoid, and where rounding tips a comparison its
# search for the threshold ends one interval further: the last digits of float32 show that much larger.
TOLERANCE = {TanhHead: 1e-6, CompetitiveHead: 5e-5}


def export(*overrides, **keys):
    """`export.py` in this process."""
    return run("export", [*overrides, *(f"{k}={v}" for k, v in keys.items())])


def trained(directory):
    """The checkpoint of a tiny run."""
    sizes = [f"{n}.hidden=16" for n in ("allocator.actor", "allocator.critic", "cacher.network")]
    keys = [*TINY, "frames=2", "evaluation.every_n_frames=0", *KNAPSACK, *sizes, f"output_dir={directory}"]
    run("train", keys)
    return in_order(directory / "checkpoints")[-1]


def random_slots(scenario, count=48):
    """Slots of which some miss all, hit all, or have users of another cell, or none at all; and noise for them."""
    slot = slots_of(scenario, count, seed=5)
    slot["cache"][:8] = False
    slot["cache"][8:16] = True
    generator = torch.Generator().manual_seed(6)
    attached = torch.ones_like(slot["request"], dtype=torch.bool)
    attached[16:24] = torch.rand(attached[16:24].shape, generator=generator) < 0.5
    attached[23] = False
    return slot | {"attached": attached}, torch.randn(5, count, scenario.users, 2, generator=generator)


@torch.no_grad()
def shares_of(allocator, slot, noise):
    """What PyTorch decides in slots."""
    state = allocator.state(TensorDict(slot, batch_size=[len(slot["request"])]))
    return allocator.decision(state, noise[: allocator.actor.steps]).numpy()


def made(name, directory):
    """A checkpoint whose decisions depend on what it sees, what `export.py` made of it, and the same in PyTorch."""
    quiet_libraries()
    source = {"sets": SHIPPED, "mlps": OLD / "mlps.ckpt"}.get(name) or trained(directory / "run")
    path = directory / "changed.ckpt"
    stored = torch.load(source, weights_only=True)
    parameters, generator = stored["state_dict"], torch.Generator().manual_seed(0)
    for key, value in parameters.items():
        if key.startswith("cacher.network.") and name != "sets":  # which is trained
            value += 0.5 * torch.randn(value.shape, generator=generator)
        if key.endswith("from_step"):
            parameters[key] = value[:STEPS]
    config = stored[KEY]["config"]
    if name == "mlps":
        config["allocator"]["denoising_steps"] = STEPS
    if name == "sets":
        config["env"] |= {"users": 10, "active_users": None}
    AtomicCheckpointIO().save_checkpoint(stored, path)

    def load(*changes):
        return load_policies(compose("export", [f"checkpoint={path}", *changes]))[1:]

    content = export(checkpoint=path, output_dir=directory / "policy")
    scenario, cacher, allocator = load()
    return SimpleNamespace(
        name=name,
        checkpoint=path,
        path=directory / "policy",
        content=content,
        load=load,
        scenario=scenario,
        cacher=cacher,
        allocator=allocator,
        tolerance=TOLERANCE[type(allocator.head)],
    )


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """Each of `POLICIES` by name, made once."""
    return functools.cache(lambda name: made(name, tmp_path_factory.mktemp(name)))


@pytest.fixture(params=POLICIES)
def policy(request, policies):
    return policies(request.param)


def run_graph(policy, name, **inputs):
    return onnxruntime.InferenceSession(policy.path / name).run(None, {k: np.asarray(v) for k, v in inputs.items()})[0]


def one_slot(scenario, seed=0):
    """What an operator knows of one slot."""
    return {name: value[0].numpy() for name, value in slots_of(scenario, 1, seed).items()}


def both(policy, scenario, allocator):
    """Shares of random slots as exported, and as PyTorch computes them from the same noise."""
    slot, noise = random_slots(scenario)
    chain = {"noise": noise[: allocator.actor.steps]} if allocator.actor.steps else {}
    return run_graph(policy, deploy.ALLOCATOR, **slot, **chain), shares_of(allocator, slot, noise)


def test_exported_shares_are_those_of_pytorch(policy):
    shares, expected = both(policy, policy.scenario, policy.allocator)
    np.testing.assert_allclose(shares, expected, rtol=0, atol=policy.tolerance)
    assert np.median(expected[24:].std(1), 0).min() > 0.005  # users are told apart, or agreement would mean little
    assert shares[:8, :, 1].max() == 0 and shares[23].max() == 0


@pytest.mark.parametrize("users", [1, 5, 17])
def test_set_networks_serve_any_number_of_users_and_flat_ones_say_so(policy, users):
    if policy.name == "sets":
        scenario, _, allocator = policy.load(f"env.users={users}")
        shares, expected = both(policy, scenario, allocator)
        np.testing.assert_allclose(shares, expected, rtol=0, atol=policy.tolerance)
        assert len(Controller(policy.path).allocate(**one_slot(scenario)).steps) == users
    else:
        slot = {k: v if k == "cache" else np.resize(v, users) for k, v in one_slot(policy.scenario).items()}
        with pytest.raises(ValueError, match=f"request: {users} users, but this policy serves exactly"):
            Controller(policy.path).allocate(**slot)


@pytest.mark.parametrize("users", [4, 30, 200])
def test_all_rules_of_the_head_are_exported(policies, users):
    """At loads that need all of them."""
    policy = policies("sets")
    scenario, _, allocator = policy.load(f"env.users={users}")
    shares, expected = both(policy, scenario, allocator)
    alike = np.abs(shares - expected).max((-2, -1)) < 2e-3
    assert alike.mean() > 0.9  # rounding may tip whom to keep


@pytest.mark.parametrize("samples", [1, 12])
def test_the_controller_decides_as_act_does_the_best_sample_included(policy, samples, monkeypatch):
    chain = policy.name in DIFFUSION
    scenario, _, allocator = policy.load(*([f"allocator.decision_samples={samples}"] if chain else []))
    for seed in range(6):
        shape = (allocator.actor.steps, samples, scenario.users, 2)
        noise = torch.tensor(np.random.default_rng(seed).standard_normal(shape, np.float32))
        if chain:
            monkeypatch.setattr(allocator, "draw_noise", lambda state, z=noise: z.view(len(z), *state["hit"].shape, 2))
        slot = one_slot(scenario, seed)
        attached = {"attached": np.ones(scenario.users, bool)}
        seen = {name: torch.tensor(value)[None] for name, value in (slot | attached).items()}
        state = allocator.state(TensorDict(seen, batch_size=[1]))
        hit = torch.tensor(slot["cache"][slot["request"]])
        expected = amend_allocation(allocator.act(state)[0], hit, torch.ones_like(hit)).numpy()
        decision = Controller(policy.path, seed).allocate(**slot, samples=samples)
        shares = np.stack((decision.bandwidth, decision.steps / scenario.step_budget), -1)
        np.testing.assert_allclose(shares, expected, rtol=0, atol=policy.tolerance)


def test_noise_comes_from_the_seed_alone(policy):
    slot = one_slot(policy.scenario)

    def decide(controller, **keys):
        return np.stack(controller.allocate(**slot, **keys))

    one, same, other = (Controller(policy.path, seed) for seed in (1, 1, 2))
    first, second = decide(one), decide(one)
    assert np.array_equal(decide(same), first) and np.array_equal(decide(same), second)
    assert np.array_equal(decide(one, seed=9), decide(other, seed=9))
    if policy.name in DIFFUSION:
        assert not np.array_equal(first, second) and not np.array_equal(decide(other), first)


def test_exported_caches_are_those_of_pytorch(policy):
    scenario, generator = policy.scenario, torch.Generator().manual_seed(8)
    controller = Controller(policy.path)
    state = scenario.popularity_observation == "state"
    asked = torch.randint(20, (64, scenario.models), generator=generator)
    asked[:3] = 0
    seen = (
        torch.eye(3)[torch.arange(64) % 3]
        if state
        else (asked / asked.sum(-1, keepdim=True)).nan_to_num(1 / scenario.models)
    )
    held = torch.rand(64, scenario.models, generator=generator) < 0.5
    load = (torch.arange(64) % 7).unsqueeze(-1) * load_per_user(scenario)
    observed = TensorDict({"popularity": seen, "cache": held, "load": load}, batch_size=[64])
    expected = policy.cacher.decide(observed).numpy()
    decided = [controller.cache(i % 3 if state else asked[i].numpy(), held[i].numpy(), i % 7) for i in range(64)]
    assert np.array_equal(decided, expected)
    if policy.name != "mlps":
        assert len(np.unique(expected, axis=0)) > 1  # it depends on what it is shown
        inputs = {"popularity": seen} | ({"held": held} if policy.content["cacher"]["observes_cache"] else {})
        inputs |= {"load": load} if policy.content["cacher"]["observes_load"] else {}
        assert np.array_equal(run_graph(policy, deploy.CACHER, **inputs), expected)


def test_signal_to_noise_ratio_stands_for_the_gain(policy):
    scenario, slot = policy.scenario, one_slot(policy.scenario)
    controller = Controller(policy.path)
    expected = controller.allocate(**slot, seed=0)
    gain = slot.pop("gain").astype(float)
    snr = scenario.user_power * gain / (scenario.noise_density * scenario.bandwidth)
    decision = controller.allocate(**slot, snr_db=10 * np.log10(snr), seed=0)
    np.testing.assert_allclose(decision.bandwidth, expected.bandwidth, atol=1e-5)
    np.testing.assert_allclose(decision.steps, expected.steps, atol=0.1)


@pytest.mark.parametrize(
    "extreme", [{"gain": 0.0}, {"gain": 1.0}, {"input_bits": 0.0, "output_bits": 0.0}, {"input_bits": 1e15}]
)
def test_whatever_it_accepts_it_decides(policy, extreme):
    slot = one_slot(policy.scenario) | {name: np.full(policy.scenario.users, value) for name, value in extreme.items()}
    decision = Controller(policy.path).allocate(**slot)
    assert (decision.bandwidth >= 0).all() and decision.bandwidth.sum() <= 1 + 1e-5
    assert (decision.steps >= 0).all() and decision.steps.sum() <= policy.scenario.step_budget * (1 + 1e-5)


WRONG = {  # with the four users and five models of "mlps"
    "request: 5 is not among 0 to 4": {"request": [5] * 4},
    "request: -1 is not among": {"request": [-1] * 4},
    "request: need whole numbers": {"request": [0.5] * 4},
    "input_bits: nan of user 3 is not": {"input_bits": [1e7] * 3 + [np.nan]},
    "output_bits: -1.0 of user 0": {"output_bits": [-1.0] * 4},
    "output_bits: shape": {"output_bits": [1e7] * 9},
    "output_bits: not an array of numbers": {"output_bits": ["many"] * 4},
    "gain: inf of user 2": {"gain": [1e-10] * 2 + [np.inf, 1e-10]},
    "gain: -95 of user 0": {"gain": [-95] * 4},
    "gain, snr_db: give one": {"snr_db": [10.0] * 4},
    "snr_db: nan of user 0": {"gain": None, "snr_db": [np.nan] * 4},
    "cache: shape": {"cache": [True] * 9},
    "cache: need true or false": {"cache": [2] * 5},
    "cache: takes 20 GB, but the cell's storage holds 10 GB": {"cache": [True] * 5},
    "attached: shape": {"attached": [True] * 11},
    "samples: 0": {"samples": 0},
    "samples: '3' is not a whole number": {"samples": "3"},
    "samples: 2.5": {"samples": 2.5},
}


@pytest.fixture(scope="module")
def small_storage(policies, tmp_path_factory):
    """ "mlps" with less storage than all models take."""
    policy = policies("mlps")
    path = shutil.copytree(policy.path, tmp_path_factory.mktemp("small") / "policy")
    scenario = policy.content["scenario"] | {"storage_capacity": 8e10}
    (path / deploy.POLICY).write_text(json.dumps(policy.content | {"scenario": scenario}))
    return path


@pytest.mark.parametrize(("line", "wrong"), WRONG.items(), ids=WRONG)
def test_the_controller_names_what_is_wrong(policies, small_storage, line, wrong):
    slot = one_slot(policies("mlps").scenario) | {"cache": [False] * 5}
    with pytest.raises(ValueError) as error:
        Controller(small_storage).allocate(**(slot | wrong))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_a_whole_number_of_numpy_will_do(policies):
    policy = policies("mlps")
    assert Controller(policy.path).allocate(**one_slot(policy.scenario), samples=np.int64(2)).steps.shape == (4,)


WRONG_DEMAND = [
    ("mlps", (3,), "popularity: 3 is not among 0 to 2"),
    ("mlps", (0.5,), "popularity: need whole numbers"),
    ("mlps", ([1],), "popularity: need whole numbers"),
    ("ddpg", ([1, 2, 3], [True] * 4), "popularity: shape"),
    ("ddpg", ([-1] * 4, [True] * 4), "popularity: -1 of model 0"),
    ("ddpg", ([1] * 4,), "held: missing"),
    ("ddpg", ([1] * 4, [True] * 3), "held: shape"),
    ("ddpg", ([1] * 4, [True] * 4), "users: missing"),
    ("ddpg", ([1] * 4, [True] * 4, 3, [True] * 4), "nearby: this policy was made where there is none"),
]


@pytest.mark.parametrize(("name", "arguments", "line"), WRONG_DEMAND)
def test_the_controller_names_what_is_wrong_with_the_demand(policies, name, arguments, line):
    with pytest.raises(ValueError, match=line):
        Controller(policies(name).path).cache(*arguments)


# -- damaged, changed and old directories


@pytest.fixture
def copied(policies, tmp_path):
    """A copy of "mlps" to be damaged."""
    return shutil.copytree(policies("mlps").path, tmp_path / "copy")


def rewrite(path, content):
    (path / deploy.POLICY).write_text(json.dumps(content))
    return path


def format_1(path):
    """What version 0.1 wrote: another name for the chain's length, no checksums."""
    content = json.loads((path / deploy.POLICY).read_text())
    content |= {"format": 1, "version": "0.1.0", "denoising_steps": content.pop("diffusion_steps")}
    del content["sha256"]
    return rewrite(path, content)


def test_policies_of_format_1_still_decide(policies, copied):
    policy = policies("mlps")
    old, new = Controller(format_1(copied)), Controller(policy.path)
    slot = one_slot(policy.scenario)
    assert np.array_equal(old.allocate(**slot, seed=1, samples=3), new.allocate(**slot, seed=1, samples=3))
    assert np.array_equal(old.cache(1), new.cache(1))


@pytest.mark.parametrize("name", [deploy.ALLOCATOR, deploy.CRITIC, deploy.CACHER])
@pytest.mark.parametrize("old", [False, True])
def test_missing_and_changed_files_are_named(copied, name, old):
    if old:
        format_1(copied)
    content = (copied / name).read_bytes()
    at = len(content) // 2  # within the weights or near them
    (copied / name).write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
    if not old:  # format 1 has no checksum
        assert refusal(copied).startswith(f"{copied / name}: damaged or changed since it was exported")
    (copied / name).write_bytes(b"half")
    assert refusal(copied).startswith(f"{copied / name}: {'cannot be loaded' if old else 'damaged or changed'}")
    (copied / name).unlink()
    assert refusal(copied) == f"{copied / name}: missing; export the policy anew"


def refusal(path):
    with pytest.raises(ValueError) as error:
        Controller(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_no_policy_is_named(policies, copied, tmp_path):
    content = policies("mlps").content
    assert "nowhere: no exported policy" in refusal(tmp_path / "nowhere")
    assert "policy of format list; this loader reads 1, 2" in refusal(rewrite(copied, [content]))
    assert "policy of format 3; this loader reads 1, 2" in refusal(rewrite(copied, content | {"format": 3}))
    for key in ("scenario", "sha256"):
        less = {name: value for name, value in content.items() if name != key}
        assert f"policy.json: damaged, it holds no '{key}'" in refusal(rewrite(copied, less))
    (copied / deploy.POLICY).write_text("{")
    assert "no exported policy" in refusal(copied)


def test_broken_parameters_and_a_missing_runtime_are_named(policies, monkeypatch):
    policy = policies("mlps")
    broken = Controller(policy.path)
    monkeypatch.setattr(broken, "_shares", lambda *_: np.full((4, 2), np.nan, np.float32))
    with pytest.raises(RuntimeError, match="NaN"):
        broken.allocate(**one_slot(policy.scenario))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-t2drl\[deploy\]'"):
        Controller(policy.path)


def test_the_loader_works_alone(policies, tmp_path):
    """Copied beside the policy, without this package, PyTorch or Lightning."""
    policy = policies("sets")
    shutil.copy(deploy.__file__, tmp_path / "loader.py")
    slot = {name: value.tolist() for name, value in one_slot(policy.scenario).items()}
    code = (
        "import json, sys; from loader import Controller\n"
        "decision = Controller(sys.argv[1], seed=3).allocate(**json.loads(sys.argv[2]))\n"
        "assert not {'torch', 'lightning', 'hydra', 'lightning_t2drl'} & set(sys.modules)\n"
        "print(json.dumps([part.tolist() for part in decision]))"
    )
    command = [sys.executable, "-c", code, str(policy.path), json.dumps(slot)]
    out = subprocess.run(command, cwd=tmp_path, env={}, check=True, capture_output=True, text=True).stdout
    np.testing.assert_array_equal(np.float32(json.loads(out)), np.stack(Controller(policy.path, 3).allocate(**slot)))


# -- version 0.1, and what cannot be exported

FIGURES = {"sets": (0.3408573071, 0.3666666746, 1e-6), "mlps": (0.1718520951, 0.5000000050, 1e-5)}


@pytest.mark.parametrize("name", FIGURES)
def test_checkpoints_of_version_0_1_evaluate_to_what_they_did(name, run_evaluate):
    utility, hit_ratio, tolerance = FIGURES[name]
    results = run_evaluate("episodes=3", checkpoint=OLD / f"{name}.ckpt")
    (scheme,) = results["schemes"].values()
    assert scheme["utility"]["mean"] == pytest.approx(utility, abs=tolerance)
    assert scheme["hit_ratio"]["mean"] == pytest.approx(hit_ratio, abs=tolerance)


@pytest.fixture
def no_tracing(policies, monkeypatch):
    """Files that were written before instead of new ones, where it is not the graphs that matter."""

    before = policies("ddpg").path  # made here, while graphs are still traced

    def copy(graph, path):
        shutil.copy(before / path.name, path)

    monkeypatch.setattr(exporting, "write_graph", copy)


@pytest.fixture
def exchanged(policies, tmp_path_factory):
    """ "ddpg" with a cacher or an allocator without parameters in its place."""

    def go(section, target):
        stored = torch.load(policies("ddpg").checkpoint, weights_only=True)
        stored[KEY]["config"][section] = {"_target_": f"lightning_t2drl.{section}s.{target}"}
        stored["state_dict"] = {k: v for k, v in stored["state_dict"].items() if not k.startswith(section)}
        path = tmp_path_factory.mktemp("exchanged") / "changed.ckpt"
        AtomicCheckpointIO().save_checkpoint(stored, path)
        return path

    return go


def test_a_cacher_without_a_network_is_left_out_and_named(exchanged, no_tracing, tmp_path, capsys):
    export(checkpoint=exchanged("cacher", "lru.LRUCacher"), output_dir=tmp_path / "policy")
    assert "cacher: left out: LRUCacher has no network" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == [deploy.ALLOCATOR, deploy.OUTCOME, deploy.POLICY]
    with pytest.raises(ValueError, match="decides no cache: LRUCacher"):
        Controller(tmp_path / "policy").cache([1] * 4)


def test_a_static_cacher_is_exported_as_its_one_cache(exchanged, no_tracing, tmp_path):
    """The models count from the most popular; of 2, 3, 4 and 5 GB the first two fit into 8 GB."""
    export(checkpoint=exchanged("cacher", "popular.PopularCacher"), output_dir=tmp_path / "policy")
    assert Controller(tmp_path / "policy").cache([1] * 4).tolist() == [True, True, False, False]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("output_dir=new", "checkpoint: missing"),
        ("checkpoint=missing.ckpt", "missing.ckpt: no such checkpoint"),
        ("checkpoint={equal}", "has nothing to export: EqualAllocator"),
        ("checkpoint={ddpg} output_dir=full", "output_dir: full is not empty"),
        ("checkpoint={ddpg} output_dir=file/policy", "output_dir: file/policy cannot be written"),
        ("checkpoint={ddpg} outptu=new", "outptu: no such key"),
        ("checkpoint={ddpg} env.users=5", "does not fit the changed config"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, line, policies, exchanged, tmp_path, monkeypatch, capsys):
    checkpoints = {"ddpg": policies("ddpg").checkpoint, "equal": exchanged("allocator", "equal.EqualAllocator")}
    monkeypatch.chdir(tmp_path)
    Path("full").mkdir()
    Path("full/notes").touch()
    Path("file").write_text("mine")
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["export", *arguments.format(**checkpoints).split()])
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1 and line in error
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "full", "notes"]


def test_an_export_that_fails_halfway_leaves_nothing(policies, tmp_path, monkeypatch):
    def full(graph, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "write_graph", full)
    with pytest.raises(UserError, match=r"output_dir: .*policy cannot be written \(No space left on device\)"):
        export(checkpoint=policies("ddpg").checkpoint, output_dir=tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_missing_exporters_are_named(policies, tmp_path, monkeypatch):
    checkpoint = policies("ddpg").checkpoint
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'lightning-t2drl\[deploy\]'"):
        export(checkpoint=checkpoint, output_dir=tmp_path / "policy")


SLOT = {"popularity": [4, 2, 1, 1], "held": [], "request": [0, 1, 2, 3, 0, 1, 2, 3, 0, 0], "input_mb": [6.0] * 10,
        "output_mb": [7.0] * 10, "snr_db": [10, 12, 9, 15, 20, 7, 11, 13, 18, 14]}  # fmt: skip


def test_explanations_agree_with_and_without_pytorch_and_stay_below_the_bound(policies):
    made = policies("ddpg")
    without, with_it = Controller(made.path).explain(SLOT), load_policy(made.checkpoint).explain(SLOT)
    assert with_it["bound"] >= with_it["exact_utility"] >= with_it["utility"] - 1e-5
    assert with_it["cache"] == without["cache"] and with_it["next_best"]["cache"] == without["next_best"]["cache"]
    for key in ("utility", "expected_utility"):
        assert with_it[key] == pytest.approx(without[key], abs=2e-5)
    for ours, theirs in zip(with_it["users"], without["users"], strict=True):
        assert ours["from"] == theirs["from"] and ours["bandwidth"] == pytest.approx(theirs["bandwidth"], abs=1e-4)
    best = with_it["next_best"]
    assert best["cost"] == pytest.approx(with_it["expected_utility"] - best["expected_utility"], abs=2e-5)
    asked = Controller(made.path).explain({k: v for k, v in SLOT.items() if k != "popularity"} | {"cache": [3]})
    assert asked["cache"] == [3] and asked["expected_utility"] == pytest.approx(asked["utility"])


@pytest.mark.parametrize(
    ("change", "said"),
    [({"snr": 3}, "snr: no such key; the nearest is snr_db"), ({"request": [0, 9]}, "request: 9 is not among"),
     ({"input_mb": [6.0] * 9}, "input_mb"), ({"input_mb": [1e300] * 10}, "input_mb .*8e\\+306 of user 0"), ({"held": [4]}, "held: .* from 0 to 3"), ({"popularity": None}, "popularity"),
     ({"cache": [0, 1, 2, 3]}, "cache: takes 14 GB"), ({"snr_db": None}, "gain, snr_db")],
)  # fmt: skip
def test_a_situation_that_cannot_be_is_refused_in_one_line(policies, change, said):
    for explain in (Controller(policies("ddpg").path).explain, load_policy(policies("ddpg").checkpoint).explain):
        with pytest.raises(UserError, match=said):
            explain(SLOT | change)
