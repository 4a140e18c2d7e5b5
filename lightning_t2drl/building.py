"""Builds a world and its two policies from a config."""

from __future__ import annotations

from typing import Any, TypeVar

from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.cachers.base import Cacher
from lightning_t2drl.errors import UserError
from lightning_t2drl.policy import Policy
from lightning_t2drl.registry import build
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.scenario_config import ScenarioConfig, build_scenario

P = TypeVar("P", bound=Policy)


def build_policies(env: ScenarioConfig, cacher: Any, allocator: Any) -> tuple[Scenario, Cacher, Allocator]:
    """The scenario and both policies of a composed config, on the CPU, parameters from PyTorch's global generator.

    Args:
        env: the world.
        cacher, allocator: the class of each as `_target_`, and its keys.

    Raises:
        UserError: a value is not possible; the line names its key.
    """
    scenario = build_scenario(env)
    return scenario, _policy("cacher", cacher, Cacher, scenario), _policy("allocator", allocator, Allocator, scenario)


def _policy(section: str, content: Any, base: type[P], scenario: Scenario) -> P:
    policy = build(content, scenario, key=section)
    if not isinstance(policy, base):
        raise UserError(f"{section}._target_: {content['_target_']} is not a {base.__name__}")
    if isinstance(policy, Allocator) and type(policy).decide is Allocator.decide and type(policy).act is Allocator.act:
        raise UserError(
            f"{section}._target_: {content['_target_']} has neither `decide` nor `act`; it needs one of them"
        )
    return policy
