"""Translates checkpoints of version 0.1 (format 1), for evaluation and export; runs of it cannot be resumed."""

from __future__ import annotations

from typing import Any

DIFFUSION = "lightning_t2drl.networks.actors.diffusion"
HEADS = "lightning_t2drl.networks.heads"

# Keys of format 1 that became keys of a section of their own, by section.
MOVED = {
    "diffusion": {"denoising_steps": "steps", "schedule": "schedule", "beta_min": "beta_min", "beta_max": "beta_max"},
    "head": {"head_scale": "scale", "step_scale": "step_scale"},
}


def translate(own: dict[str, Any]) -> dict[str, Any]:
    """The project's part of a checkpoint of format 1, with the present config keys; parameters keep their names."""
    config = dict(own["config"])
    return own | {
        "config": config | {"cacher": _cacher(config["cacher"]), "allocator": _allocator(config["allocator"])}
    }


def _cacher(old: dict[str, Any]) -> dict[str, Any]:
    new = dict(old)
    if new.pop("infeasible", "penalty") == "mask":
        new["infeasible_penalty"] = None
    return new


def _allocator(old: dict[str, Any]) -> dict[str, Any]:
    if "head" not in old:  # one that follows a rule
        return old
    new = {key: value for key, value in old.items() if not any(key in keys for keys in MOVED.values())}
    diffusion = {key: old[was] for was, key in MOVED["diffusion"].items() if was in old}
    penalty = new.pop("saturation_penalty", None)
    if new.pop("prediction", None) == "epsilon":
        kind = {"_target_": f"{DIFFUSION}.EpsilonDiffusion", "epsilon_bound": 1.0, "saturation_penalty": penalty}
    else:
        kind = {"_target_": f"{DIFFUSION}.SampleDiffusion"}
    if diffusion:
        new["diffusion"] = kind | diffusion
    if old["head"] == "competitive":
        scales = {key: old[was] for was, key in MOVED["head"].items()}
        new["head"] = {"_target_": f"{HEADS}.CompetitiveHead"} | scales
    else:
        new["head"] = {"_target_": f"{HEADS}.TanhHead"}
    return new
