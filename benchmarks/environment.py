"""(c) Slots per second of the environment."""

from __future__ import annotations

from benchmarks.budget import Budget
from benchmarks.measure import Advance, Job, Spread, interleave
from benchmarks.report import Section
from benchmarks.subjects import Play, allocator
from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.system import Scenario, load_scenario

PLAY = "env.play"


def episode(scenario: Scenario, num_envs: int, policy: Allocator | None) -> Job:
    """A whole episode and the reset that ends it, as training plays it; with the allocator's features if asked."""
    play = Play(scenario, num_envs)

    def job() -> None:
        for _ in range(scenario.slots_per_episode):
            following = play.step()
            if policy is not None:
                policy.state(following)
        play.env.reset()
        play.env.observe()

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
            "the observation."
        ],
    )
