"""(a) One decision for one state."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from benchmarks.budget import Budget
from benchmarks.measure import Advance, Job, interleave, table
from benchmarks.reference import Chain, ClampedChain, WholeSetDenoiser
from benchmarks.report import Section
from benchmarks.subjects import (
    SHAPES,
    STEPS,
    Play,
    allocator,
    exported,
    mlp_shape,
    plain_d3pg,
    plain_fields,
    same_shapes,
    sb3_ddpg,
    transitions,
)
from lightning_t2drl.networks.actors.diffusion import linear_betas
from lightning_t2drl.system import Scenario

PLAIN = "plain eager D3PG"
PLAIN_SET = "plain eager chain, set networks"
PEER = "Stable-Baselines3 DDPG, predict"
EXPORTED: dict[str, tuple[str, list[str]]] = {
    "d3pg": ("D3PG", mlp_shape("mish")),
    "d3pg_set": ("D3PG, set networks", []),
}
MEASURED = ("request", "input_bits", "output_bits", "gain", "cache")


def run(budget: Budget, advance: Advance) -> Section:
    scenario = same_shapes()
    contenders: dict[str, Job] = {}
    missing = []
    fields = plain_fields(transitions(allocator("d3pg", scenario), scenario, 64), scenario.users)
    seen = fields["state"][:1]
    plain, clamped = plain_d3pg(), plain_d3pg(ClampedChain)
    contenders[PLAIN] = lambda: plain.act(seen)
    contenders[f"{PLAIN} by way of clamped x_0"] = lambda: clamped.act(seen)
    contenders |= _ours(scenario)
    for name in budget.exported:
        label, shape = EXPORTED[name]
        jobs = _exported(scenario, name, shape)
        if jobs is None:
            missing.append(f"{label}: exported")
        else:
            contenders |= {f"{label}: exported, {kind}": job for kind, job in jobs.items()}
    model = sb3_ddpg(fields)
    if model is None:
        missing.append(PEER)
    else:
        observation = seen[0].numpy()
        contenders[PEER] = lambda: model.predict(observation, deterministic=True)
    rows = table(interleave(contenders, budget.decision, budget.rounds, advance), PLAIN)
    return Section(
        "One decision for one state",
        f"{SHAPES}; Mish where not said otherwise; 'times faster' is against '{PLAIN}'.",
        rows + [{"contender": name, "ms": "not installed"} for name in missing],
        [
            "A decision of the project ends in a feasible allocation (head and amender included), a plain one in the "
            "chain's output. 'From the observation' includes the features, as do the exported ones, which draw their "
            "noise with NumPy; the controller also checks its inputs.",
            f"The set networks are those of allocator=d3pg_set (64 wide, ReLU); '{PLAIN_SET}' evaluates the same "
            "network wholly in every step. Stable-Baselines3 uses ReLU.",
        ],
    )


def _ours(scenario: Scenario) -> dict[str, Job]:
    """The project's decisions in PyTorch, from a state that is there and from the observation on."""
    cells = Play(scenario, 1).step()
    d3pg: Any = allocator("d3pg", scenario, *mlp_shape("mish"))
    ddpg = allocator("ddpg", scenario, *mlp_shape("mish"))
    sets: Any = allocator("d3pg_set", scenario)
    state, set_state = d3pg.state(cells)[0], sets.state(cells)[0]

    @torch.no_grad()
    def chain_alone() -> torch.Tensor:
        return d3pg.actor(state, d3pg.draw_noise((1,)))

    whole = Chain(WholeSetDenoiser(sets.actor.trunk), 2 * scenario.users, linear_betas(STEPS, 0.05, 0.3))

    @torch.no_grad()
    def plain_set() -> torch.Tensor:
        return whole(set_state)

    @torch.no_grad()
    def set_chain_alone() -> torch.Tensor:
        return sets.actor(set_state, sets.draw_noise((1,)))

    return {
        PLAIN_SET: plain_set,
        "D3PG, set networks: chain alone": set_chain_alone,
        "D3PG": lambda: d3pg.act(state),
        "D3PG: chain alone": chain_alone,
        "D3PG: from the observation": lambda: d3pg.decide(cells),
        "D3PG, set networks": lambda: sets.act(set_state),
        "D3PG, set networks: from the observation": lambda: sets.decide(cells),
        "DDPG": lambda: ddpg.act(state),
    }


def _exported(scenario: Scenario, name: str, shape: list[str]) -> dict[str, Job] | None:
    """The same decision as ONNX, by a bare session and by the operator's controller; None where it cannot be had."""
    pair = exported(name, *shape)
    if pair is None:
        return None
    controller, session = pair
    cells = Play(scenario, 1).step()
    measured = {key: cells[0, 0][key].numpy() for key in MEASURED}
    feeds = {key: value[None] for key, value in measured.items()} | {"attached": np.ones((1, scenario.users), bool)}
    generator = np.random.default_rng(0)
    shape_of_noise = (controller.denoising_steps, 1, scenario.users, 2)

    def by_session() -> object:
        feeds["noise"] = generator.standard_normal(shape_of_noise, np.float32)
        return session.run(None, feeds)

    return {"ONNX Runtime session": by_session, "controller": lambda: controller.allocate(**measured)}
