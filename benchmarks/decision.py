"""(a) One decision for one state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.budget import Budget
from benchmarks.measure import Advance, Job, interleave, table
from benchmarks.reference import Chain, WholeSetDenoiser
from benchmarks.report import Section
from benchmarks.subjects import (
    SHAPES,
    Play,
    allocator,
    exported,
    mlp_allocator,
    plain_d3pg,
    plain_fields,
    same_shapes,
    sb3_ddpg,
    transitions,
)
from lightning_t2drl.networks.actors.diffusion import linear_betas

PLAIN = "plain eager D3PG"
PLAIN_SET = "plain eager chain, set networks"
PEER = "Stable-Baselines3 DDPG, predict"
MEASURED = ("request", "input_bits", "output_bits", "gain", "cache")


def run(budget: Budget, advance: Advance) -> Section:
    scenario = same_shapes()
    cells = Play(scenario, 1).step()
    measured = {key: cells[0, 0][key].numpy() for key in MEASURED}
    d3pg, ddpg = (mlp_allocator(name, scenario, "mish") for name in ("d3pg", "ddpg"))
    fields = plain_fields(transitions(d3pg, scenario, 64))
    seen, plain = fields["state"][:1], plain_d3pg()
    contenders: dict[str, Job] = {PLAIN: lambda: plain.act(seen), "DDPG": deciding(ddpg, cells)}
    missing = []
    for label, policy in {"D3PG": d3pg, "D3PG, set networks": allocator("d3pg", scenario)}.items():
        contenders[label] = deciding(policy, cells)
        contenders[f"{label}: from the observation"] = lambda policy=policy: policy.decide(cells)
        contenders[f"{label}: chain alone"] = chain_alone(policy, cells)
        if budget.exported:
            jobs = outside(policy, measured)
            missing += [] if jobs else [f"{label}: exported"]
            contenders |= {f"{label}: exported, {kind}": job for kind, job in jobs.items()}
    whole = Chain(WholeSetDenoiser(policy.actor.trunk), 2 * scenario.users, linear_betas(policy.actor.steps, 0.05, 0.3))
    state = policy.state(cells)[0].to_dict()
    contenders[PLAIN_SET] = torch.no_grad()(lambda: whole(state))
    model = sb3_ddpg(fields)
    if model is None:
        missing.append(PEER)
    else:
        observation = seen[0].numpy()
        contenders[PEER] = lambda: model.predict(observation, deterministic=True)
    rows = table(interleave(contenders, budget.seconds, budget.rounds, advance), PLAIN)
    return Section(
        "One decision for one state",
        f"{SHAPES}; Mish where not said otherwise; 'times faster' is against '{PLAIN}'.",
        rows + [{"contender": name, "ms": "not installed"} for name in missing],
        [
            "A decision of the project ends in a feasible allocation (head and amender included), a plain one in the "
            "chain's output. 'From the observation' includes the features, as do the exported ones, which draw their "
            "noise with NumPy; the controller also checks its inputs.",
            f"The set networks are those of allocator=d3pg (I = 2, 64 wide, ReLU); '{PLAIN_SET}' evaluates the same "
            "network wholly in every step. Stable-Baselines3 uses ReLU.",
        ],
    )


def deciding(policy: Any, cells: Any) -> Job:
    """A decision for a state that is there."""
    state = policy.state(cells)[0]
    return lambda: policy.act(state)


def chain_alone(policy: Any, cells: Any) -> Job:
    """The chain without the head."""
    state = policy.state(cells)[0].to_dict()
    return torch.no_grad()(lambda: policy.actor(state, policy.draw_noise(state)))


def outside(policy: Any, measured: dict[str, Any]) -> dict[str, Job]:
    """The same decision as ONNX, by a bare session and by the operator's controller; none where it cannot be had."""
    pair = exported(policy)
    if pair is None:
        return {}
    controller, session = pair
    users = len(measured["request"])
    feeds = {key: value[None] for key, value in measured.items()} | {"attached": np.ones((1, users), bool)}
    generator = np.random.default_rng(0)

    def by_session() -> object:
        feeds["noise"] = generator.standard_normal((policy.exported_draws, 1, users, 2), np.float32)
        return session.run(None, feeds)

    return {"ONNX Runtime session": by_session, "controller": lambda: controller.allocate(**measured)}
