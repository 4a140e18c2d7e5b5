"""What is measured: the project's policies as configured, their data, and the peers, all in the same shapes."""

from __future__ import annotations

import functools
import importlib.util
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from torch import Tensor, nn

from benchmarks.measure import Job
from benchmarks.reference import PlainD3PG
from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.deploy.controller import ALLOCATOR, CRITIC, POLICY, Controller
from lightning_t2drl.deploy.export import write_graph
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.loop.finite import FiniteWatch
from lightning_t2drl.loop.replay import Replay
from lightning_t2drl.networks.actors.diffusion import linear_betas
from lightning_t2drl.policy import Policy
from lightning_t2drl.registry import build
from lightning_t2drl.run.compose import compose
from lightning_t2drl.system import Scenario, load_scenario

HIDDEN, LAYERS, STEPS = 256, 2, 5
MODEL_STORAGE_GB = [4.3, 6.9, 2.1, 5.2, 3.4, 7.7, 2.6, 4.9, 3.1, 6.0]
SHAPES = (
    f"I = {STEPS}, MLPs {HIDDEN} x {LAYERS}, 20 action dimensions, state of 63 inputs (env=paper with three models)"
)


def same_shapes() -> Scenario:
    """`env=paper` with three models: ten users make 20 action dimensions and a flat state of 63 inputs."""
    return load_scenario("paper", model_storage_gb=MODEL_STORAGE_GB[:3], storage_capacity_gb=10.0)


def with_models(models: int) -> Scenario:
    """`env=paper` with a catalogue of `models`."""
    sizes = [MODEL_STORAGE_GB[m % len(MODEL_STORAGE_GB)] for m in range(models)]
    return load_scenario("paper", model_storage_gb=sizes)


def allocator(name: str, scenario: Scenario, *overrides: str) -> Any:
    """`allocator=NAME` of the config tree with `overrides` (without their leading `allocator.`)."""
    return _policy("allocator", name, scenario, overrides)


def cacher(name: str, scenario: Scenario, *overrides: str) -> Any:
    """`cacher=NAME` of the config tree."""
    return _policy("cacher", name, scenario, overrides)


def mlp_allocator(name: str, scenario: Scenario, activation: str, *overrides: str) -> Any:
    """An allocator of MLPs to the letter (`d3pg`, `ddpg`), in the shapes of the reference."""
    keys = {"hidden": HIDDEN, "layers": LAYERS, "activation": activation}
    shape = [f"{network}.{key}={value}" for network in ("actor", "critic") for key, value in keys.items()]
    return allocator(f"{name}_literal", scenario, *shape, *overrides)


def _policy(group: str, name: str, scenario: Scenario, overrides: tuple[str, ...]) -> Any:
    values: Any = OmegaConf.to_container(OmegaConf.merge(_chosen(group, name), OmegaConf.from_dotlist(list(overrides))))
    torch.manual_seed(0)
    return build(values, scenario, key=group)


@functools.cache
def _chosen(group: str, name: str) -> dict[str, Any]:
    """`group=NAME` of the config tree."""
    return compose("train", [f"{group}={name}"]).plain[group]


def plain_d3pg(activation: type[nn.Module] = nn.Mish) -> PlainD3PG:
    """The reference with the schedule of `allocator=d3pg_literal`."""
    torch.manual_seed(0)
    return PlainD3PG(63, 20, linear_betas(STEPS, 0.05, 0.3), HIDDEN, activation)


class Minimise:
    """What `TwoTimescaleModule` does with a loss, without Lightning: watch, backward, clip, step."""

    def __init__(self, policy: Policy, clip: float = 10.0) -> None:
        self.optimizers = policy.optimizers_by_name()
        self.clip = clip
        self.watch = FiniteWatch()

    def __call__(self, name: str, loss: Tensor) -> None:
        self.watch.add(name, loss)
        optimizer = self.optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p in parameters:
            p.grad = None
        loss.backward(inputs=parameters)
        nn.utils.clip_grad_norm_(parameters, self.clip)
        optimizer.step()


def update_job(policy: Policy, replay: Replay, batch_size: int) -> Job:
    """The project's update as its training loop runs it."""
    minimise = Minimise(policy)
    return lambda: policy.update(replay.sample(batch_size), minimise)


def exported(policy: Any) -> tuple[Controller, Any] | None:
    """A diffusion allocator outside this project.

    Returns:
        The operator's controller and a bare ONNX Runtime session of the allocator; None without the deploy extra.
    """
    if any(importlib.util.find_spec(package) is None for package in ("onnx", "onnxscript", "onnxruntime")):
        return None
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    exported = policy.export()
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        for file, graph in exported.graphs.items():
            write_graph(graph, path / f"{file}.onnx")
        assert {p.name for p in path.iterdir()} == {ALLOCATOR, CRITIC}
        content = exported.facts | {
            "format": 2,
            "popularity": "state",
            "cacher": {"left_out": "not measured"},
            "scenario": policy.scenario.as_dict(),
            "sha256": {},
        }
        (path / POLICY).write_text(json.dumps(content))
        return Controller(path), onnxruntime.InferenceSession(path / ALLOCATOR, options)


# -- data


class Play:
    """Random caches and allocations for N worlds, drawn beforehand so that drawing them costs no time."""

    KEPT = 8

    def __init__(self, scenario: Scenario, num_envs: int, device: str = "cpu") -> None:
        self.scenario = scenario
        self.env = EdgeAIGCEnv(scenario, num_envs, 0, device)
        generator = torch.Generator(device).manual_seed(0)
        cells = (self.KEPT, num_envs, scenario.cells)
        self.caches = torch.rand(*cells, scenario.models, generator=generator, device=device) < 0.5
        self.raws = 2 * torch.rand(*cells, scenario.users, 2, generator=generator, device=device) - 1
        self.slot = 0

    def step(self) -> TensorDict:
        """Play one slot, and before a frame's first exchange the caches; the cells' next observation [N, B]."""
        frame, within = divmod(self.slot, self.scenario.slots_per_frame)
        if within == 0:
            self.env.latch(self.caches[frame % self.KEPT])
        following = self.env.play(self.raws[self.slot % self.KEPT])
        self.slot += 1
        return following


@torch.no_grad()
def transitions(policy: Allocator, scenario: Scenario, rows: int, num_envs: int = 64) -> list[TensorDict]:
    """At least `rows` transitions of random play, `num_envs` at a time."""
    play = Play(scenario, num_envs)
    state = policy.state(play.env.observe())
    out: list[TensorDict] = []
    while len(out) * num_envs < rows:
        following = play.step()
        next_state = policy.state(following)
        out.append(policy.transition(state, following, next_state).reshape(-1))
        state = next_state
    return out


def filled_replay(batches: list[TensorDict], device: str = "cpu") -> Replay:
    """The project's buffer with these transitions."""
    replay = Replay(sum(len(batch) for batch in batches), 0, device)
    for batch in batches:
        replay.extend(batch)
    return replay


def filled_frame_replay(policy: Cacher, scenario: Scenario, frames: int, num_envs: int = 64) -> Replay:
    """The project's buffer with this many frames of exploration in `num_envs` worlds."""
    play = Play(scenario, num_envs)
    replay = Replay(frames * num_envs, 0, "cpu")
    cells = play.env.observe()
    for _ in range(frames):
        state, cache = policy.state(cells), policy.decide(cells, explore=True)
        for _ in range(scenario.slots_per_frame):
            cells = play.step()
        replay.extend(policy.transition(state, cache, cells["reward", "frame"], policy.state(cells)))
    return replay


def plain_fields(batches: list[TensorDict]) -> dict[str, Tensor]:
    """Transitions of an MLP allocator as plain code sees them: a tensor [rows, width] per field, raw actions."""
    rows = torch.cat(batches)
    return {
        "state": rows["state", "features"],
        "action": (2 * rows["shares"] - 1).flatten(1),
        "reward": rows["reward"],
        "next_state": rows["next_state", "features"],
    }


# -- peers


def sb3_ddpg(fields: dict[str, Tensor]) -> Any:
    """Stable-Baselines3's DDPG in the same shapes with these transitions in its buffer; None where not installed."""
    try:
        import gymnasium
        from stable_baselines3 import DDPG
        from stable_baselines3.common.logger import Logger
    except ImportError:
        return None
    rows, width = fields["state"].shape

    class Nothing(gymnasium.Env):
        """Spaces only: nothing is played here."""

        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (width,), np.float32)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, fields["action"].shape[1:], np.float32)

    model = DDPG(
        "MlpPolicy", Nothing(), policy_kwargs={"net_arch": [HIDDEN] * LAYERS}, buffer_size=rows, device="cpu", seed=0
    )
    model.set_logger(Logger(None, []))
    columns = (fields[name].numpy() for name in ("state", "next_state", "action", "reward"))
    buffer: Any = model.replay_buffer
    for state, following, action, reward in zip(*columns, strict=True):
        buffer.add(state, following, action, reward, np.zeros(1), [{}])
    return model
