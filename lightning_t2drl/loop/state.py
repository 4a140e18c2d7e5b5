"""What a checkpoint holds beside parameters and optimizers, so that a resumed run goes on as if never stopped.

Everything is a plain tensor, number, string, list or dict, so that checkpoints load with `weights_only=True`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.distributed as dist
from torchrl.checkpoint import GlobalRNGState

from lightning_t2drl import __version__
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.legacy import translate
from lightning_t2drl.loop.stored import KEY
from lightning_t2drl.policy import Policy

Module = Any  # the coordinator, `TwoTimescaleModule`, which stands above this file

FORMAT = 2
PARTS = {
    "state_dict": dict,
    "frame": int,
    "slots": int,
    "gradient_steps": int,
    "scenario": dict,
    "config": dict,
    "ranks": list,
}  # what every reader may count on


def capture(module: Module) -> dict[str, Any]:
    """One rank's state: worlds, buffers, generators, memories of policies, running means."""
    return {
        "env": module.env.get_state(),
        "replay": {
            name: replay.state_dict()
            for name, replay in (("slot", module.slot_replay), ("frame", module.frame_replay))
            if replay is not None
        },
        "policies": {name: policy.extra_state() for name, policy in module.policies()},
        "meters": module.meters.state_dict(),
        "global_rng": GlobalRNGState().state_dict(),
    }


def save(module: Module, checkpoint: dict[str, Any]) -> None:
    """Put all ranks' states and the counters into a checkpoint; called on every rank, written by rank 0."""
    ranks: list[Any] = [capture(module)]
    if module.trainer.world_size > 1:
        mine = ranks[0]
        ranks = [None] * module.trainer.world_size
        dist.gather_object(mine, ranks if module.global_rank == 0 else None, dst=0)
    checkpoint[KEY] = {
        "format": FORMAT,
        "version": __version__,
        "frame": module.frame,
        "slots": module.slots,
        "gradient_steps": module.gradient_steps,
        "scenario": module.scenario.as_dict(),
        "ranks": ranks,
        "config": {},
        "run_id": None,
        **module.checkpoint_extra,
    }


def check(checkpoint: Any, path: object) -> dict[str, Any]:
    """The project's own part of a checkpoint; one of format 1 is translated in place.

    Raises:
        UserError: the file is not a checkpoint of this project, of another format, or lacks a part.
    """
    own = checkpoint.get(KEY) if isinstance(checkpoint, dict) else None
    if not isinstance(own, dict):
        raise UserError(f"{path}: not a checkpoint of lightning_t2drl (it has no {KEY!r} entry)")
    if own.get("format") not in (1, FORMAT):
        raise UserError(
            f"{path}: checkpoint format {own.get('format')} of lightning_t2drl {own.get('version')}; "
            f"this version reads format {FORMAT}; use the version that wrote it or train anew"
        )
    for name, kind in PARTS.items():
        if not isinstance((checkpoint if name == "state_dict" else own).get(name), kind):
            raise UserError(f"{path}: not a whole checkpoint (it has no {name!r}, or one of another kind)")
    if own["format"] == 1:
        own = checkpoint[KEY] = translate(own)
    return own


def mine(module: Module, checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Take the counters and this rank's state out of a checkpoint; `restore` applies the latter later."""
    own = check(checkpoint, "resume")
    world_size = module.trainer.world_size
    if len(own["ranks"]) != world_size:
        raise UserError(
            f"resume: the checkpoint was written by {len(own['ranks'])} process(es), this run has {world_size}; "
            "an exact resume needs the same number (trainer.devices)"
        )
    _load_counters(module, own)
    return own["ranks"][module.global_rank]


def restore(module: Module, state: dict[str, Any]) -> None:
    """Apply a rank's state, as the last thing before the first frame."""
    module.env.set_state(state["env"])
    for name, replay in (("slot", module.slot_replay), ("frame", module.frame_replay)):
        if replay is not None:
            replay.load_state_dict(state["replay"][name])
    for name, policy in module.policies():
        policy.load_extra_state(state["policies"][name])
    module.meters.load_state_dict(state["meters"], module.device)
    GlobalRNGState().load_state_dict(state["global_rng"])


def load_parameters(module: Module, checkpoint: dict[str, Any]) -> None:
    """Load parameters and counters alone, which is enough to play no further frame."""
    _load_counters(module, check(checkpoint, "resume"))
    module.load_state_dict(checkpoint["state_dict"])
    for name, policy in module.policies():
        tell_of_parameters(policy, name, checkpoint[KEY])


def tell_of_parameters(policy: Policy, name: str, own: Mapping[str, Any]) -> None:
    """Tell a policy what its checkpoint says of the parameters it was given; those that ship say nothing."""
    if own["ranks"]:
        policy.parameters_loaded(own["ranks"][0].get("policies", {}).get(name, {}))


def _load_counters(module: Module, own: dict[str, Any]) -> None:
    module.frame, module.slots, module.gradient_steps = own["frame"], own["slots"], own["gradient_steps"]
