"""What is measured: the project's policies as configured, their data, and the peers, all in the same shapes."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import math
import tempfile
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from benchmarks.reference import Chain, PlainD3PG
from lightning_t2drl.accel.compiled import CompiledUpdate
from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.deploy.controller import ALLOCATOR, Controller
from lightning_t2drl.deploy.export import run_export
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import NonFiniteError
from lightning_t2drl.loop.gradients import clip_gradients
from lightning_t2drl.loop.replay import PackedReplay
from lightning_t2drl.networks.actors.diffusion import linear_betas
from lightning_t2drl.networks.features import network_inputs
from lightning_t2drl.policy import Policy
from lightning_t2drl.registry import build
from lightning_t2drl.run.cli import compose_config
from lightning_t2drl.run.cli import run as run_entry_point
from lightning_t2drl.run.schemas import ExportConfig, TrainConfig
from lightning_t2drl.run.train import train
from lightning_t2drl.system import Scenario, load_scenario

HIDDEN, LAYERS, STEPS = 256, 2, 5
MODEL_STORAGE_GB = [4.3, 6.9, 2.1, 5.2, 3.4, 7.7, 2.6, 4.9, 3.1, 6.0]
SAME_SHAPES: dict[str, Any] = {"model_storage_gb": MODEL_STORAGE_GB[:3], "storage_capacity_gb": 10.0}
SHAPES = (
    f"I = {STEPS}, MLPs {HIDDEN} x {LAYERS}, 20 action dimensions, state of 63 inputs (env=paper with three models)"
)


def same_shapes() -> Scenario:
    """`env=paper` with three models: ten users make 20 action dimensions and a flat state of 63 inputs."""
    return load_scenario("paper", **SAME_SHAPES)


def with_models(models: int) -> Scenario:
    """`env=paper` with a catalogue of `models`."""
    sizes = [MODEL_STORAGE_GB[m % len(MODEL_STORAGE_GB)] for m in range(models)]
    return load_scenario("paper", model_storage_gb=sizes)


def allocator(name: str, scenario: Scenario, *overrides: str) -> Allocator:
    """`allocator=NAME` of the config tree with `overrides` (without their leading `allocator.`)."""
    return _policy("allocator", name, scenario, overrides)


def cacher(name: str, scenario: Scenario, *overrides: str) -> Cacher:
    """`cacher=NAME` of the config tree."""
    return _policy("cacher", name, scenario, overrides)


def _policy(group: str, name: str, scenario: Scenario, overrides: tuple[str, ...]) -> Any:
    values: Any = OmegaConf.to_container(OmegaConf.merge(_chosen(group, name), OmegaConf.from_dotlist(list(overrides))))
    torch.manual_seed(0)
    return build(values, scenario, key=group)


@functools.cache
def _chosen(group: str, name: str) -> DictConfig:
    """`group=NAME` of the config tree."""
    return compose_config("train", [f"{group}={name}"])[group]


def mlp_shape(activation: str, hidden: int = HIDDEN) -> list[str]:
    """Overrides that give actor and critic of an MLP allocator the shapes of the reference."""
    keys = {"hidden": hidden, "layers": LAYERS, "activation": activation}
    return [f"{network}.{key}={value}" for network in ("actor", "critic") for key, value in keys.items()]


def plain_d3pg(chain: type[Chain] = Chain, activation: type[nn.Module] = nn.Mish) -> PlainD3PG:
    """The reference with the schedule that `allocator=d3pg` is configured with."""
    torch.manual_seed(0)
    return PlainD3PG(63, 20, linear_betas(STEPS, 0.05, 0.3), HIDDEN, chain, activation)


class Minimise:
    """What `TwoTimescaleModule` does with a loss, without Lightning: check, backward, clip, step."""

    def __init__(self, policy: Policy, clip: float = 10.0) -> None:
        self.optimizers = policy.optimizers_by_name()
        self.clip = clip

    def __call__(self, name: str, loss: Tensor) -> None:
        if not math.isfinite(loss.item()):
            raise NonFiniteError(f"the {name} loss is {loss.item()}")
        optimizer = self.optimizers[name]
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        for p in parameters:
            p.grad = None
        loss.backward(inputs=parameters)
        clip_gradients(parameters, self.clip)
        optimizer.step()


def compiled_job(policy: Any, replay: PackedReplay, batch_size: int) -> Callable[[], object]:
    """An allocator's update as one compiled graph, with the check that the training loop makes of its losses."""
    update = CompiledUpdate(policy, policy.optimizers_by_name(), clip=10.0)

    def job() -> None:
        if not all(math.isfinite(loss.item()) for loss in update(replay.sample(batch_size)).values()):
            raise NonFiniteError("a loss is NaN")

    return job


def exported(name: str, *overrides: str) -> tuple[Controller, Any] | None:
    """`allocator=NAME` in `same_shapes`, trained for one frame and exported.

    Returns:
        The operator's controller and a bare ONNX Runtime session of the allocator; None without the deploy extra.
    """
    if any(importlib.util.find_spec(package) is None for package in ("onnx", "onnxscript", "onnxruntime")):
        return None
    with tempfile.TemporaryDirectory() as directory, contextlib.redirect_stdout(io.StringIO()):
        arguments = [f"allocator={name}", *(f"allocator.{override}" for override in overrides)]
        arguments += [f"env.{key}={value}" for key, value in SAME_SHAPES.items()]
        arguments += ["frames=1", "env.num_envs=1", "evaluation.every_n_frames=0", "evaluation.final_episodes=0"]
        arguments += ["progress_bar=false", "figures=false", f"output_dir={directory}/run"]
        run_entry_point("train", TrainConfig, train, arguments)
        arguments = [f"checkpoint={directory}/run/checkpoints/last", f"output={directory}/policy"]
        run_entry_point("export", ExportConfig, run_export, arguments)
        return Controller(f"{directory}/policy"), _session(f"{directory}/policy/{ALLOCATOR}")


def _session(path: str) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


# -- data


class Play:
    """Random caches and allocations for N worlds, drawn beforehand so that drawing them costs no time."""

    KEPT = 8

    def __init__(self, scenario: Scenario, num_envs: int) -> None:
        self.scenario = scenario
        self.env = EdgeAIGCEnv(scenario, num_envs, seed=0)
        generator = torch.Generator().manual_seed(0)
        cells = (self.KEPT, num_envs, scenario.cells)
        self.caches = torch.rand(*cells, scenario.models, generator=generator) < 0.5
        self.raws = 2 * torch.rand(*cells, scenario.users, 2, generator=generator) - 1
        self.slot = 0

    def step(self) -> Any:
        """Play one slot; the cells' next observation [N, B]."""
        frame = self.slot // self.scenario.slots_per_frame
        following = self.env.play(self.caches[frame % self.KEPT], self.raws[self.slot % self.KEPT])
        self.slot += 1
        return following


def transitions(policy: Allocator, scenario: Scenario, rows: int, num_envs: int = 64) -> list[dict[str, Tensor]]:
    """At least `rows` transitions of random play, as `PackedReplay.extend` takes them, `num_envs` at a time."""
    play = Play(scenario, num_envs)
    state = policy.state(play.env.observe())
    out: list[dict[str, Tensor]] = []
    while len(out) * num_envs < rows:
        shares = (policy.act(state, explore=True) + 1) / 2  # what `raw_from_shares` undoes
        following = play.step()
        next_state = policy.state(following)
        out.append(policy.transition(state, shares, following["served"], next_state))
        state = next_state
    return out


def filled_replay(policy: Allocator, batches: list[dict[str, Tensor]]) -> PackedReplay:
    """The project's buffer with these transitions."""
    replay = PackedReplay(policy.transition_fields(), sum(len(b["state"]) for b in batches), 0, "cpu")
    for batch in batches:
        replay.extend(batch)
    return replay


def filled_frame_replay(policy: Cacher, scenario: Scenario, frames: int, num_envs: int = 64) -> PackedReplay:
    """The project's buffer with this many frames of exploration in `num_envs` worlds."""
    play = Play(scenario, num_envs)
    replay = PackedReplay(policy.transition_fields(), frames * num_envs, 0, "cpu")
    cells = play.env.observe()
    for _ in range(frames):
        state, cache = policy.state(cells), policy.decide(cells, explore=True)
        for _ in range(scenario.slots_per_frame):
            cells = play.step()
        replay.extend(policy.transition(state, cache, cells["reward", "frame"], policy.state(cells)))
    return replay


def plain_fields(batches: list[dict[str, Tensor]], users: int) -> dict[str, Tensor]:
    """The same transitions [rows, width] as code without amending columns sees them: network inputs, raw actions."""
    rows = {name: torch.cat([batch[name].flatten(0, -2) for batch in batches]) for name in batches[0]}
    return {
        "state": network_inputs(rows["state"], users).contiguous(),
        "action": 2 * rows["shares"] - 1,
        "reward": rows["reward"],
        "next_state": network_inputs(rows["next_state"], users).contiguous(),
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
