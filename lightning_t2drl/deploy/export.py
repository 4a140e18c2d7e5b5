"""From a checkpoint to ONNX files that decide without PyTorch: what `export.py` does."""

from __future__ import annotations

import copy
import dataclasses
import importlib.util
import json
import logging
import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from tensordict import TensorDict
from torch import Tensor, nn

from lightning_t2drl import __version__
from lightning_t2drl.allocators.actor_critic import ActorCriticAllocator
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.cachers.popular import PopularCacher
from lightning_t2drl.cachers.q_learning import QLearningCacher
from lightning_t2drl.deploy.controller import ALLOCATOR, CACHER, CRITIC, FORMAT, POLICY
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.checkpoints import resolve
from lightning_t2drl.networks.features import UserFeatures
from lightning_t2drl.run.evaluate import load_policies
from lightning_t2drl.run.schemas import ExportConfig
from lightning_t2drl.system import amend_cache

OPSET = 20
LEAST_GAIN = 1e-30  # weaker links are taken for this one, so that no float32 overflows

INPUTS = {
    "request": "int64 [batch, users]: requested model, counted from 0",
    "input_bits": "float32 [batch, users]: payload to the edge, bit",
    "output_bits": "float32 [batch, users]: payload back, bit",
    "gain": "float32 [batch, users]: linear power gain of the link",
    "cache": "bool [batch, models]: models the cell holds",
    "attached": "bool [batch, users]: users of this cell",
    "noise": "float32 [denoising_steps, batch, users, 2]: standard normal",
    "shares": "float32 [batch, users, 2]: shares of bandwidth and of step_budget, feasible",
    "value": "float32 [batch]: the critics' judgement of the shares, to compare samples by",
    "popularity": "float32 [batch, states or models]: popularity state as one-hot, or last frame's request frequencies",
    "held": "bool [batch, models]: models held before the decision, where the cacher looks at them",
}


class AllocatorGraph(nn.Module):
    """One slot's decision, from what an operator measures to feasible shares."""

    def __init__(self, allocator: ActorCriticAllocator) -> None:
        super().__init__()
        self.allocator = copy.copy(allocator)  # `state` exchanges its scenario
        self.scenario = allocator.scenario

    def state(
        self, request: Tensor, input_bits: Tensor, output_bits: Tensor, gain: Tensor, cache: Tensor, attached: Tensor
    ) -> Tensor:
        # As many users as come in: where that number is left open, it must not be traced as the scenario's.
        self.allocator.scenario = dataclasses.replace(self.scenario, users=request.shape[-1])
        observation: Any = {
            "request": request,
            "input_bits": input_bits,
            "output_bits": output_bits,
            "gain": gain.clamp_min(LEAST_GAIN),
            "cache": cache,
            "attached": attached,
        }
        return self.allocator.state(observation)

    def forward(self, *inputs: Tensor) -> Tensor:
        """Shares [N, U, 2] from `request` to `attached` and, for a diffusion chain, `noise` of `INPUTS`."""
        *observed, noise = inputs if self.allocator.actor.steps else (*inputs, torch.empty(0))
        return self.allocator.shares(self.allocator.actor, self.state(*observed), noise)


class CriticGraph(AllocatorGraph):
    """What the critics think of shares, by which the best of several samples is found."""

    def forward(self, *inputs: Tensor) -> Tensor:
        """Values [N] from `request` to `attached` and `shares` of `INPUTS`."""
        *observed, shares = inputs
        return self.allocator.value(self.allocator.critics, self.state(*observed), shares).mean(-1)


class CacherGraph(nn.Module):
    """One frame's cache, from what the cacher sees of the demand."""

    def __init__(self, cacher: QLearningCacher) -> None:
        super().__init__()
        self.cacher = cacher

    def forward(self, *inputs: Tensor) -> Tensor:
        """Bool [N, M] from `popularity` and, where the cacher looks at it, `held` of `INPUTS`."""
        observation: Any = dict(zip(("popularity", "cache"), inputs, strict=False))
        return amend_cache(self.cacher.scenario, self.cacher.decide(observation))


def run_export(config: ExportConfig, raw: DictConfig, overrides: list[str]) -> dict[str, Any]:
    """Write a checkpoint's decisions as ONNX files and what goes with them as `policy.json`.

    Args:
        config: the composed and checked configuration.
        raw: the same as Hydra composed it.
        overrides: the command line; what it says of keys of env, cacher and allocator changes the checkpoint's config.

    Returns:
        The content of `policy.json`.

    Raises:
        UserError: something is missing, the allocator is none that learns, or the directory cannot be written.
    """
    console = Console()
    if config.checkpoint is None:
        raise UserError("checkpoint: missing; name the file to export, or DIR/last or DIR/best")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export.py needs {' and '.join(missing)}: pip install 'lightning-t2drl[deploy]'")
    path, checkpoint = resolve(config.checkpoint, lambda text: console.print(text, style="yellow"))
    name, scenario, cacher, allocator = load_policies(checkpoint, path, raw, overrides)
    if not isinstance(allocator, ActorCriticAllocator):
        raise UserError(
            f"checkpoint: {path} has nothing to export, {type(allocator).__name__} does not learn; "
            "allocators of ddpg and d3pg can be exported"
        )
    with whole_directory(Path(config.output)) as directory:
        export_allocator(allocator, directory)
        policy: dict[str, Any] = {
            "format": FORMAT,
            "version": __version__,
            "name": name,
            "users": None if serves_any_users(allocator) else scenario.users,
            "denoising_steps": allocator.actor.steps,
            "decision_samples": getattr(allocator.config, "decision_samples", 1),
            "popularity": scenario.popularity_observation,
            "cacher": export_cacher(cacher, directory),
            "inputs_and_outputs": INPUTS,
            "scenario": scenario.as_dict(),
        }
        (directory / POLICY).write_text(json.dumps(policy, indent=2) + "\n")
    if "left_out" in policy["cacher"]:
        console.print(f"cacher: left out, {policy['cacher']['left_out']}", style="yellow")
    console.print(f"{config.output}: {name} of {path}")
    return policy


def serves_any_users(allocator: ActorCriticAllocator) -> bool:
    """Whether the networks take users as a set, of any size."""
    return isinstance(allocator.features, UserFeatures)


def export_allocator(allocator: ActorCriticAllocator, directory: Path) -> None:
    """Write the actor's decision and, for a diffusion chain, the critics' judgement of it."""
    scenario, batch = allocator.scenario, 3  # 1 would be traced as a constant
    users = 4 if serves_any_users(allocator) else scenario.users
    observed = {
        "request": torch.zeros(batch, users, dtype=torch.int64),
        **{name: torch.ones(batch, users) for name in ("input_bits", "output_bits", "gain")},
        "cache": torch.ones(batch, scenario.models, dtype=torch.bool),
        "attached": torch.ones(batch, users, dtype=torch.bool),
    }
    axes: dict[str, Any] = {name: {0: "batch", 1: "users"} for name in observed} | {"cache": {0: "batch"}}
    axes |= {"noise": {1: "batch", 2: "users"}, "shares": {0: "batch", 1: "users"}}
    if not serves_any_users(allocator):
        axes = {name: {at: axis for at, axis in by.items() if axis == "batch"} for name, by in axes.items()}
    chain = {"noise": torch.zeros(allocator.actor.steps, batch, users, 2)} if allocator.actor.steps else {}
    write_graph(AllocatorGraph(allocator), observed | chain, axes, "shares", directory / ALLOCATOR)
    if chain:
        shares = {"shares": torch.full((batch, users, 2), 1 / users)}
        write_graph(CriticGraph(allocator), observed | shares, axes, "value", directory / CRITIC)


def export_cacher(cacher: Cacher, directory: Path) -> dict[str, Any]:
    """Write the cacher's decision if it is a function of what an operator can see, and say what became of it.

    Returns:
        `observes_cache` for a cacher with a graph, `constant` (bool [M]) for a static one, `left_out` (why) for others.
    """
    scenario = cacher.scenario
    if isinstance(cacher, PopularCacher):
        return {"constant": cacher.decide(TensorDict({}, batch_size=[])).tolist()}
    if not isinstance(cacher, QLearningCacher):
        return {"left_out": f"{type(cacher).__name__} has no network; ddqn, knapsack and popular can be exported"}
    inputs = {"popularity": torch.full((3, scenario.popularity_width), 1 / scenario.popularity_width)}
    if cacher.config.observe_cache:
        inputs["held"] = torch.ones(3, scenario.models) > 0
    write_graph(CacherGraph(cacher), inputs, {name: {0: "batch"} for name in inputs}, "cache", directory / CACHER)
    return {"observes_cache": cacher.config.observe_cache}


def write_graph(
    module: nn.Module, inputs: dict[str, Tensor], axes: dict[str, dict[int, str]], output: str, path: Path
) -> None:
    """Trace a module and write it as ONNX.

    Args:
        module: its `forward` takes `*inputs`.
        inputs: tensors of the right shapes and types; their values do not matter, but one tensor given twice would be
            taken for one input.
        axes: names of the axes left open, by input and position; axes of one name are of one length.
        output: name of the result.
        path: the file.
    """
    dims = {axis: torch.export.Dim(axis) for by in axes.values() for axis in by.values()}
    shapes = tuple({at: dims[axis] for at, axis in axes[name].items()} for name in inputs)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            module.eval(),
            tuple(inputs.values()),
            input_names=list(inputs),
            output_names=[output],
            dynamic_shapes=(shapes,),
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.mish.default: _mish()},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # where in which file of this machine it came from: half of the file
    program.save(str(path))


def _mish() -> Any:
    """Mish as x / (1 + 2 / (e (e + 2))), e = exp(x): half the time of ONNX Runtime's own, and finite for every x."""
    from onnxscript import opset20 as op

    def mish(x: Any) -> Any:
        e = op.Exp(x)
        return op.Div(x, op.Add(op.Div(2.0, op.Mul(e, op.Add(e, 2.0))), 1.0))

    return mish


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's remarks on operators of libraries that are not used."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


@contextmanager
def whole_directory(target: Path) -> Iterator[Path]:
    """A directory to fill that gets the name `target` when all is in it, and is removed when something goes wrong.

    Raises:
        UserError: `target` exists already or cannot be written.
    """
    if target.exists():
        raise UserError(f"output: {target} exists already; name a new directory or remove it")
    temporary = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    try:
        temporary.mkdir(parents=True)
        yield temporary
        temporary.rename(target)
    except OSError as error:
        raise UserError(f"output: {target} cannot be written ({error.strerror})") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
