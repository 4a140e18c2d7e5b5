"""(c) Slots per second of the environment."""

from __future__ import annotations

import importlib.util
from typing import Any

from benchmarks.budget import Budget
from benchmarks.measure import Advance, Job, Spread, interleave
from benchmarks.report import Section
from benchmarks.subjects import Play, allocator
from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.system import Scenario, load_scenario

PLAY, COMPILED, STEP = "env.play", "env.play, compiled", "Gymnasium's step"
COMPILED_WORLDS = 64  # more do not gain


def episode(scenario: Scenario, num_envs: int, policy: Allocator | None, compiled: bool = False) -> Job:
    """A whole episode and the reset that ends it, as training plays it; with the allocator's features if asked."""
    play = Play(scenario, num_envs)
    if compiled:
        play.env.compile()

    def job() -> None:
        for _ in range(scenario.slots_per_episode):
            following = play.step()
            if policy is not None:
                policy.state(following)
        play.env.reset()
        play.env.observe()

    return job


def steps(scenario: Scenario, **options: Any) -> Job:
    """A whole episode of one world as an agent from outside plays it, and the reset that ends it."""
    import gymnasium  # not everybody has it

    env = gymnasium.make("lightning_t2drl.envs.gymnasium:EdgeAIGC-v0", scenario=scenario, **options)
    actions = [env.action_space.sample() for _ in range(Play.KEPT)]
    env.reset(seed=0)

    def job() -> None:
        for slot in range(scenario.slots_per_episode):
            env.step(actions[slot % Play.KEPT])
        env.reset()

    return job


def run(budget: Budget, advance: Advance) -> Section:
    scenario = load_scenario("paper")
    kinds: dict[str, Allocator | None] = {PLAY: None}
    for name in ("d3pg", "d3pg_paper"):
        kinds[f"env.play and the state of allocator={name}"] = allocator(name, scenario)
    contenders = {
        (num_envs, kind): episode(scenario, num_envs, policy)
        for num_envs in budget.environments
        for kind, policy in kinds.items()
    }
    outside = importlib.util.find_spec("gymnasium") is not None
    if outside:
        contenders[1, STEP] = steps(scenario)
    if budget.compiled:
        few = [num_envs for num_envs in budget.environments if num_envs <= COMPILED_WORLDS]
        contenders |= {(num_envs, COMPILED): episode(scenario, num_envs, None, compiled=True) for num_envs in few}
        if outside:
            contenders[1, f"{STEP}, compiled"] = steps(scenario, compile=True)
    timings = interleave(contenders, budget.seconds, budget.rounds, advance)
    slots = scenario.slots_per_episode
    return Section(
        "Environment",
        f"env=paper: {scenario.users} users, {scenario.models} models; whole episodes of {slots} slots with the reset "
        "at their end; random caches and allocations.",
        [
            {
                "worlds N": num_envs,
                "what": kind,
                "slots per second": Spread.of(num_envs * slots / seconds),
                "ms per call": Spread.of(seconds / slots * 1e3),
            }
            for (num_envs, kind), seconds in timings.items()
        ],
        [
            "A slot is one slot of one world: amender, serving, rewards, popularity, requests, mobility, fading and "
            "the observation.",
            "Compiled: one kernel of `torch.compile` per slot; the seconds that making it takes are not counted. "
            "Gymnasium's step also turns actions and observations into arrays and takes the slot's means.",
        ],
    )
