"""export.py for real, and its files on ONNX Runtime: what PyTorch decides, they decide."""

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

from lightning_t2drl.deploy import Controller
from lightning_t2drl.deploy import controller as deploy
from lightning_t2drl.deploy import export as exporting
from lightning_t2drl.deploy.export import run_export
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.checkpoints import in_order, load_checkpoint
from lightning_t2drl.run.cli import entry_point, quiet_libraries, run
from lightning_t2drl.run.evaluate import load_policies
from lightning_t2drl.run.schemas import ExportConfig, TrainConfig
from lightning_t2drl.run.train import train
from lightning_t2drl.system import amend_allocation
from tests.conftest import TINY
from tests.worlds import slots_of

# Every kind of allocator and of cacher, in few pairs.
SCHEMES = {
    "d3pg": ["allocator=d3pg", "cacher=ddqn"],
    "d3pg_set": [
        "allocator=d3pg_set",
        "cacher=ddqn",
        "cacher.network._target_=lightning_t2drl.networks.q.CacheQNetwork",
        "cacher.observe_cache=true",
    ],
    "ddpg": [
        "allocator=ddpg",
        "cacher=knapsack",
        "env.model_storage_gb=[2,3,4,5,6,7]",
        "env.popularity_observation=frequencies",
    ],
    "ddpg_set": ["allocator=ddpg_set", "cacher=popular"],
}
DIFFUSION = ("d3pg", "d3pg_set")
# The competitive head multiplies outputs by step_scale = 60 before a sigmoid, and where rounding tips a comparison its
# search for the threshold ends one interval further: the last digits of float32 show that much larger.
TOLERANCE = {"tanh": 1e-6, "competitive": 5e-5}


def export(*overrides, **keys):
    """`export.py` in this process."""
    return run("export", ExportConfig, run_export, [*overrides, *(f"{k}={v}" for k, v in keys.items())])


def checkpoint_of(directory, *overrides):
    """The last checkpoint of a tiny run."""
    quiet_libraries()
    sizes = (
        [f"{n}.hidden=32" for n in ("allocator.actor", "allocator.critic")]
        if "allocator=equal" not in overrides
        else []
    )
    keys = [*TINY, "frames=2", "evaluation.every_n_frames=0", *sizes, *overrides, f"output_dir={directory}"]
    run("train", TrainConfig, train, keys)
    return directory / "checkpoints" / "last"


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
    return allocator.shares(allocator.actor, allocator.state(slot), noise[: allocator.actor.steps]).numpy()


def tell_users_apart(allocator):
    """Scale the last layer so that outputs vary as a trained network's do: a fresh set network's hardly do."""
    out, seen = allocator.actor.trunk.out, []
    hook = out.register_forward_hook(lambda module, inputs, output: seen.append(output))
    shares_of(allocator, *random_slots(allocator.scenario))
    hook.remove()
    std, mean = torch.std_mean(seen[-1], (0, 1))
    with torch.no_grad():
        out.weight /= std[:, None]
        out.bias.copy_((out.bias - mean) / std)


@pytest.fixture(scope="module", params=SCHEMES)
def policy(request, tmp_path_factory):
    """A checkpoint whose decisions depend on what it sees, what `export.py` made of it, and the same in PyTorch."""
    directory = tmp_path_factory.mktemp(request.param)
    last = checkpoint_of(directory / "run", *SCHEMES[request.param])
    path = in_order(last.parent)[-1]
    checkpoint = load_checkpoint(path)
    parameters, generator = checkpoint["state_dict"], torch.Generator().manual_seed(0)

    def load(*changes):
        return load_policies(checkpoint, path, None, list(changes))[1:]

    for key, value in parameters.items():
        if key.startswith("cacher.network."):
            value += 0.5 * torch.randn(value.shape, generator=generator)
    scenario, cacher, allocator = load()
    if request.param.endswith("set"):
        tell_users_apart(allocator)
        parameters |= {f"allocator.{key}": value for key, value in allocator.state_dict().items()}
    torch.save(checkpoint, path)
    content = export(checkpoint=last, output=directory / "policy")
    return SimpleNamespace(
        name=request.param,
        path=directory / "policy",
        content=content,
        load=load,
        scenario=scenario,
        cacher=cacher,
        allocator=allocator,
        tolerance=TOLERANCE[allocator.config.head],
    )


def run_graph(policy, name, **inputs):
    return onnxruntime.InferenceSession(policy.path / name).run(None, {k: np.asarray(v) for k, v in inputs.items()})[0]


def one_slot(scenario, seed=0):
    """What an operator knows of one slot."""
    return {name: value[0].numpy() for name, value in slots_of(scenario, 1, seed).items()}


def both(policy, scenario, allocator):
    """Shares of random slots as exported, and as PyTorch computes them from the same noise."""
    slot, noise = random_slots(scenario)
    chain = {"noise": noise} if allocator.actor.steps else {}
    return run_graph(policy, deploy.ALLOCATOR, **slot, **chain), shares_of(allocator, slot, noise)


def test_exported_shares_are_those_of_pytorch(policy):
    shares, expected = both(policy, policy.scenario, policy.allocator)
    np.testing.assert_allclose(shares, expected, rtol=0, atol=policy.tolerance)
    assert np.median(expected[24:].std(1), 0).min() > 0.005  # users are told apart, or agreement would mean little
    assert shares[:8, :, 1].max() == 0 and shares[23].max() == 0


@pytest.mark.parametrize("users", [1, 5, 17])
def test_set_networks_serve_any_number_of_users_and_flat_ones_say_so(policy, users):
    if policy.name.endswith("set"):
        scenario, _, allocator = policy.load(f"env.users={users}")
        shares, expected = both(policy, scenario, allocator)
        np.testing.assert_allclose(shares, expected, rtol=0, atol=policy.tolerance)
        assert len(Controller(policy.path).allocate(**one_slot(scenario)).steps) == users
    else:
        slot = {k: v if k == "cache" else np.resize(v, users) for k, v in one_slot(policy.scenario).items()}
        with pytest.raises(ValueError, match=f"request: {users} users, but this policy serves exactly 10"):
            Controller(policy.path).allocate(**slot)


@pytest.mark.parametrize("samples", [1, 12])
def test_the_controller_decides_as_act_does_the_best_sample_included(policy, samples, monkeypatch):
    chain = policy.name in DIFFUSION
    scenario, _, allocator = policy.load(*([f"allocator.decision_samples={samples}"] if chain else []))
    for seed in range(6):
        shape = (allocator.actor.steps, samples, scenario.users, 2)
        noise = torch.tensor(np.random.default_rng(seed).standard_normal(shape, np.float32))
        if chain:
            monkeypatch.setattr(allocator, "draw_noise", lambda batch, z=noise: z.view(len(z), *batch, *z.shape[2:]))
        slot = one_slot(scenario, seed)
        attached = {"attached": np.ones(scenario.users, bool)}
        state = allocator.state({name: torch.tensor(value)[None] for name, value in (slot | attached).items()})
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
    expected = policy.cacher.decide(TensorDict({"popularity": seen, "cache": held}, batch_size=[64])).numpy()
    decided = [controller.cache(i % 3 if state else asked[i].numpy(), held[i].numpy()) for i in range(64)]
    assert np.array_equal(decided, expected)
    if policy.name in ("d3pg_set", "ddpg"):
        assert len(np.unique(expected, axis=0)) > 1  # it depends on what it is shown
        inputs = {"popularity": seen} | ({"held": held} if policy.content["cacher"]["observes_cache"] else {})
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
    slot = one_slot(policy.scenario) | {name: np.full(10, value) for name, value in extreme.items()}
    decision = Controller(policy.path).allocate(**slot)
    assert (decision.bandwidth >= 0).all() and decision.bandwidth.sum() <= 1 + 1e-5
    assert (decision.steps >= 0).all() and decision.steps.sum() <= policy.scenario.step_budget * (1 + 1e-5)


WRONG = {
    "request: 10 is not among 0 to 9": {"request": [10] * 10},
    "request: -1 is not among": {"request": [-1] * 10},
    "request: need whole numbers": {"request": [0.5] * 10},
    "input_bits: nan of user 3 is not": {"input_bits": [1e7] * 3 + [np.nan] + [1e7] * 6},
    "output_bits: -1.0 of user 0": {"output_bits": [-1.0] * 10},
    "output_bits: shape": {"output_bits": [1e7] * 9},
    "output_bits: not an array of numbers": {"output_bits": ["many"] * 10},
    "gain: inf of user 9": {"gain": [1e-10] * 9 + [np.inf]},
    "gain: -95 of user 0": {"gain": [-95] * 10},
    "gain, snr_db: give one": {"snr_db": [10.0] * 10},
    "snr_db: nan of user 0": {"gain": None, "snr_db": [np.nan] * 10},
    "cache: shape": {"cache": [True] * 9},
    "cache: need true or false": {"cache": [2] * 10},
    "attached: shape": {"attached": [True] * 11},
    "samples: 0": {"samples": 0},
}


@pytest.mark.parametrize(("line", "wrong"), WRONG.items(), ids=WRONG)
@pytest.mark.parametrize("policy", ["d3pg"], indirect=True)
def test_the_controller_names_what_is_wrong(policy, line, wrong):
    with pytest.raises(ValueError) as error:
        Controller(policy.path).allocate(**(one_slot(policy.scenario) | wrong))
    assert str(error.value).startswith(line) and "\n" not in str(error.value)


def test_the_controller_names_what_is_wrong_with_the_demand(policy):
    controller = Controller(policy.path)
    if policy.name == "d3pg":
        wrong = {"popularity: 3 is not among 0 to 2": (3,), "popularity: need whole numbers": (0.5,)}
    elif policy.name == "d3pg_set":
        wrong = {"held: missing": (0,), "held: shape": (0, [True] * 3)}
    elif policy.name == "ddpg":
        wrong = {"popularity: shape": ([1, 2, 3],), "popularity: -1 of model 0": ([-1] * 6,)}
    else:
        wrong = {}
    for line, arguments in wrong.items():
        with pytest.raises(ValueError, match=line):
            controller.cache(*arguments)


@pytest.mark.parametrize("policy", ["d3pg"], indirect=True)
def test_damaged_policies_are_named(policy, tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"nowhere: no exported policy"):
        Controller(tmp_path / "nowhere")
    copy = shutil.copytree(policy.path, tmp_path / "copy")
    (copy / deploy.CRITIC).write_bytes(b"half")
    with pytest.raises(ValueError, match=r"critic\.onnx: cannot be loaded"):
        Controller(copy)
    (copy / deploy.POLICY).write_text(json.dumps(policy.content | {"format": 2}))
    with pytest.raises(ValueError, match="format 2; this loader reads 1"):
        Controller(copy)
    broken = Controller(policy.path)
    monkeypatch.setattr(broken, "_shares", lambda *_: np.full((10, 2), np.nan, np.float32))
    with pytest.raises(RuntimeError, match="NaN"):
        broken.allocate(**one_slot(policy.scenario))
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ImportError, match=r"pip install 'lightning-t2drl\[deploy\]'"):
        Controller(policy.path)


@pytest.mark.parametrize("policy", ["d3pg_set"], indirect=True)
def test_the_loader_works_alone(policy, tmp_path):
    """Copied beside the policy, without this package, PyTorch or Lightning."""
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


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Checkpoints of a scheme that learns nothing, and of one whose cacher has no network."""
    root = tmp_path_factory.mktemp("mixed")
    return {
        "fixed": checkpoint_of(root / "fixed", "allocator=equal", "cacher=random"),
        "half": checkpoint_of(root / "half", "allocator=ddpg", "cacher=lru"),
    }


def test_a_cacher_without_a_network_is_left_out_and_named(mixed, tmp_path, capsys):
    export(checkpoint=mixed["half"], output=tmp_path / "policy")
    assert "cacher: left out, LRUCacher has no network" in capsys.readouterr().out
    assert sorted(p.name for p in (tmp_path / "policy").iterdir()) == [deploy.ALLOCATOR, deploy.POLICY]
    with pytest.raises(ValueError, match="decides no cache: LRUCacher"):
        Controller(tmp_path / "policy").cache(0)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("output=new", "checkpoint: missing"),
        ("checkpoint=missing.ckpt", "missing.ckpt: no such checkpoint"),
        ("checkpoint={fixed}", "EqualAllocator does not learn"),
        ("checkpoint={half} output=there", "output: there exists already"),
        ("checkpoint={half} output=file/policy", "output: file/policy cannot be written"),
        ("checkpoint={half} outptu=new", "outptu: no such key"),
        ("checkpoint={half} env.users=5", "does not fit the changed config"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(arguments, line, mixed, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("file").write_text("mine")
    monkeypatch.setattr(sys, "argv", ["export.py", *arguments.format(**mixed).split()])
    with pytest.raises(SystemExit) as stop:
        entry_point("export", ExportConfig, run_export)
    error = capsys.readouterr().err
    assert stop.value.code == 1 and error.startswith("error: ") and error.count("\n") == 1 and line in error
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "there"]


def test_an_export_that_fails_halfway_leaves_nothing(mixed, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(exporting, "export_cacher", full)
    with pytest.raises(UserError, match=r"output: .*policy cannot be written \(No space left on device\)"):
        export(checkpoint=mixed["half"], output=tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_missing_exporters_are_named(mixed, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(UserError, match=r"needs onnxscript: pip install 'lightning-t2drl\[deploy\]'"):
        export(checkpoint=mixed["half"], output=tmp_path / "policy")
