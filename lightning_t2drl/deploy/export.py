"""From a checkpoint to ONNX files that decide without PyTorch: what `export.py` does."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lightning_t2drl import __version__
from lightning_t2drl.allocators.graphs import OutcomeGraph, names_of
from lightning_t2drl.deploy.controller import FORMAT, POLICY, digest
from lightning_t2drl.envs.worlds import load_per_user
from lightning_t2drl.errors import UserError
from lightning_t2drl.files import temporary_name
from lightning_t2drl.policy import Exported, Graph
from lightning_t2drl.run.compose import Composed
from lightning_t2drl.run.evaluate import load_policies
from lightning_t2drl.run.results_dir import new_directory
from lightning_t2drl.run.screen import console
from lightning_t2drl.system.scenario import Scenario

OPSET = 20

INPUTS = {
    "request": "int64 [batch, users]: requested model, counted from 0",
    "input_bits": "float32 [batch, users]: payload to the edge, bit",
    "output_bits": "float32 [batch, users]: payload back, bit",
    "gain": "float32 [batch, users]: linear power gain of the link",
    "cache": "bool [batch, models]: models the cell holds",
    "attached": "bool [batch, users]: users of this cell",
    "uplink_interference": "float32 [batch]: power that other cells add to the noise at the station, W",
    "downlink_interference": "float32 [batch, users]: the same at each user, W",
    "handover": "bool [batch, users]: users that were taken over in this slot",
    "nearby": "bool [batch, models]: models that another cell holds",
    "noise": "float32 [diffusion_steps, batch, users, 2]: standard normal",
    "shares": "float32 [batch, users, 2]: shares of bandwidth and of step_budget, feasible",
    "outcome": "float32 [batch, users, 6]: hit, nearby, delay (s), quality, late, utility",
    "value": "float32 [batch]: the critics' judgement of the shares, to compare samples by",
    "popularity": "float32 [batch, states or models]: state as one-hot, probabilities, or last frame's frequencies",
    "load": "float32 [batch, 3]: users of the cell times load_per_user, where the cacher looks at it",
    "held": "bool [batch, models]: models held before the decision, where the cacher looks at them",
}


def run_export(composed: Composed) -> dict[str, Any]:
    """Write a checkpoint's decisions as ONNX files and what goes with them as `policy.json`.

    Returns:
        The content of `policy.json`.

    Raises:
        UserError: something is missing, the allocator is none that learns, or the directory cannot be written.
    """
    screen = console()
    if composed.checkpoint is None:
        raise UserError("checkpoint: missing; name the file to export, or DIR/last or DIR/best")
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"export needs {' and '.join(missing)}: pip install 'lightning-t2drl[deploy]'")
    path = composed.checkpoint[0]
    name, scenario, cacher, allocator = load_policies(composed)
    try:
        decision = allocator.export()
    except UserError as error:
        raise UserError(f"checkpoint: {path} has nothing to export: {error}") from None
    try:
        caching = cacher.export()
    except UserError as error:
        caching = Exported({}, {"left_out": str(error)})
    screen.print(f"tracing {name}, which takes a while")
    with new_directory("export", composed.config.output_dir) as target, whole_directory(target) as directory:
        outcome = {"outcome": _outcome(scenario, decision)}
        for file, graph in (decision.graphs | caching.graphs | outcome).items():
            write_graph(graph, directory / f"{file}.onnx")
        policy: dict[str, Any] = {
            "format": FORMAT,
            "version": __version__,
            "name": name,
            **decision.facts,
            "popularity": scenario.popularity_observation,
            "cacher": caching.facts,
            "load_per_user": load_per_user(scenario).tolist(),
            "inputs_and_outputs": INPUTS,
            "scenario": scenario.as_dict(),
            "sha256": {file.name: digest(file) for file in sorted(directory.glob("*.onnx"))},
        }
        (directory / POLICY).write_text(json.dumps(policy, indent=2) + "\n")
    if "left_out" in caching.facts:
        screen.print(f"cacher: left out: {caching.facts['left_out']}", style="yellow")
    screen.print(f"{target}: {name} of {path}")
    return policy


def _outcome(scenario: Scenario, decision: Exported) -> Graph:
    """What comes of shares in a slot, over the same open axes as the decision."""
    graph = decision.graphs["allocator"]
    inputs = {name: graph.inputs[name] for name in names_of(scenario)}
    shares = torch.full((*inputs["request"].shape, 2), 1 / inputs["request"].shape[-1])
    axes = {name: graph.axes[name] for name in inputs} | {"shares": graph.axes["request"]}
    return Graph(OutcomeGraph(scenario, tuple(inputs)), inputs | {"shares": shares}, axes, "outcome")


def write_graph(graph: Graph, path: Path) -> None:
    """Trace a decision and write it as ONNX; axes of one name are of one length, and stay open."""
    dims = {axis: torch.export.Dim(axis) for by in graph.axes.values() for axis in by.values()}
    shapes = tuple({at: dims[axis] for at, axis in graph.axes[name].items()} for name in graph.inputs)
    with _quiet_exporter(), torch.no_grad():
        program = torch.onnx.export(
            graph.module.eval(),
            tuple(graph.inputs.values()),
            input_names=list(graph.inputs),
            output_names=[graph.output],
            dynamic_shapes=(shapes,),
            opset_version=OPSET,
            custom_translation_table={torch.ops.aten.mish.default: _mish()},
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # source locations take half of the file
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
    """Hide the exporter's remarks on operators of libraries that are not used."""
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
    """A directory that is filled, then put in the place of the empty `target`; removed if something goes wrong."""
    temporary = temporary_name(target)
    try:
        temporary.mkdir()
        yield temporary
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
