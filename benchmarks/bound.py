"""(h) The bound: exact allocation of a slot by the number of users, and the oracle's caches."""

from __future__ import annotations

import time
from collections.abc import Callable

from tensordict import TensorDict

from benchmarks.budget import Budget
from benchmarks.measure import Advance, Spread, interleave
from benchmarks.report import Section
from benchmarks.subjects import cacher
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.system import load_scenario
from lightning_t2drl.system.bounds import oracle_caches, slot_bound
from lightning_t2drl.system.serving import situation

WORLDS = 64
ORACLE = 80  # users at most, for whom the oracle's caches are found


def run(budget: Budget, advance: Advance) -> Section:
    solve = {count: _slots(count) for count in budget.users}
    timings = interleave(solve, budget.seconds, budget.rounds, advance)
    rows = []
    for count in budget.users:
        found = solve[count]()
        gap = (found["bound"] - found["achieved"]).mean().item()
        per_slot = Spread.of(timings[count] * 1e3 / WORLDS)
        rows.append({"what": "exact allocation, per slot", "users U": count, "ms": per_slot, "mean gap": gap})
    for count in (count for count in budget.users if count <= ORACLE):
        start = time.process_time()
        found = oracle_caches(load_scenario("paper", users=count), budget.oracle_slots, seed=0)
        seconds = time.process_time() - start
        gap = (found.bound - found.achieved).mean().item()
        rows.append({"what": "oracle's caches, in all", "users U": count, "ms": seconds * 1e3, "mean gap": gap})
    return Section(
        "Bound",
        f"env=paper but for U. Exact allocation: `slot_bound` of {WORLDS} slots at once, each with a random cache that "
        f"fits. Oracle: all feasible caches, {budget.oracle_slots} slots in the last round; CPU time of one call.",
        rows,
        ["'mean gap' is the bound on a slot's mean utility less what the allocation achieves, whose scale is 1."],
    )


def _slots(users: int) -> Callable[[], TensorDict]:
    scenario = load_scenario("paper", users=users)
    random = cacher("random", scenario)
    random.seed(0)
    cells = EdgeAIGCEnv(scenario, WORLDS, seed=0).observe()
    cells["cache"] = random.decide(cells)
    return lambda: slot_bound(scenario, **situation(cells))
