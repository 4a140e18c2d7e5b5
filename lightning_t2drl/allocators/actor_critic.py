"""Actors and critics over shares: what all learned allocators have in common."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from lightning_t2drl.accel.compiling import Compiled
from lightning_t2drl.allocators.base import Allocator
from lightning_t2drl.allocators.diagnosis import actor_and_critics
from lightning_t2drl.allocators.graphs import AllocatorGraph, CriticGraph, observed
from lightning_t2drl.allocators.objectives import OBJECTIVES, q_weighted, true_utility
from lightning_t2drl.checks import Misfit, one_of, within
from lightning_t2drl.errors import UserError
from lightning_t2drl.networks.actors.base import Actor
from lightning_t2drl.networks.features import State, UserFeatures, delay_cost, efficient_share, floor_share
from lightning_t2drl.networks.heads import Head
from lightning_t2drl.policy import LEARNING_RATE_SCHEDULES, Exported, Graph, Metrics, Optimise
from lightning_t2drl.registry import build, class_of
from lightning_t2drl.system.amender import amend_allocation
from lightning_t2drl.system.cells import members_first
from lightning_t2drl.system.scenario import Scenario
from lightning_t2drl.system.serving import cell_mean, situation

SETS = "lightning_t2drl.networks.sets"


@dataclass
class ActorCriticConfig:
    """Keys of `configs/allocator/*.yaml` that all learned allocators read."""

    _target_: str = ""
    actor: Any = field(default_factory=lambda: {"_target_": f"{SETS}.SetTrunk"})
    critic: Any = field(default_factory=lambda: {"_target_": f"{SETS}.SetCritic"})
    head: Any = field(default_factory=lambda: {"_target_": "lightning_t2drl.networks.heads.CompetitiveHead"})
    critics: int = 1
    objective: str = "policy_gradient"
    candidates: int = 8
    actor_learning_rate: float = 1e-3
    critic_learning_rate: float = 1e-3
    learning_rate_schedule: str = "cosine"
    discount: float = 0.0
    target_rate: float = 0.005
    target_noise: float = 0.0
    target_noise_clip: float = 0.5
    actor_every: int = 1
    actor_warmup: int = 0
    exploration_noise: float = 0.3
    exploration_noise_end: float = 0.1

    def __post_init__(self) -> None:
        one_of("", self, learning_rate_schedule=LEARNING_RATE_SCHEDULES, objective=OBJECTIVES)
        within("", self, critics=(1, 10), discount=(0, 1), target_rate=(0, 1), candidates=(2, 10_000))
        within("", self, target_noise=(0, 10), target_noise_clip=(0, 10), actor_every=(1, 1e6), actor_warmup=(0, 1e9))
        within("", self, exploration_noise=(0, 10), exploration_noise_end=(0, 10))
        within("", self, actor_learning_rate=(0, 1), critic_learning_rate=(0, 1))
        if self.target_noise_clip != ActorCriticConfig.target_noise_clip and not self.target_noise:
            raise Misfit("target_noise_clip: counts for nothing without target_noise")


class ActorCriticAllocator(Allocator):
    """Actor, critics and their targets; subclasses build the actor.

    Critics see the executed shares, so raw actions that mean the same allocation have the same value, and the policy
    gradient passes through the actor's head and the amender. There are target networks only if the discount is not 0.
    A discount of 0 is exact: the allocation of one slot does not change the next.

    TD3's changes are keys: `critics` (the lower counts), `target_noise` on the target's action, and `actor_every`, by
    which actor and targets follow the critics more slowly. The actor waits for the first `actor_warmup` updates of the
    critics: small critics that know nothing yet can push it where no gradient leads back.
    """

    Config: ClassVar[type] = ActorCriticConfig
    learns = True
    config: ActorCriticConfig

    def __init__(self, scenario: Scenario, config: ActorCriticConfig) -> None:
        super().__init__(scenario, config)
        self.features = self._shared_features()(scenario)
        self.head: Head = build(config.head, key="allocator.head")
        for key in ("square_root_law", "keep_deadlines"):
            if getattr(self.head, key, False) and not hasattr(self.features, "log_link"):
                raise UserError(
                    f"allocator.head.{key}: needs networks that see link times, allocator/actor=sets; "
                    "for others there is allocator/head=competitive"
                )
        self.actor = self.build_actor()
        self.critics = self._build_critics()
        self.per_user = bool(self.critics[0].per_user)
        self.bootstraps = config.discount > 0
        self.compiled = False
        self.rounds = 0  # of updates
        if config.objective == "q_weighted" and not hasattr(self.actor, "denoising_loss"):
            raise UserError(
                f"allocator.objective: q_weighted trains actors that denoise; {type(self.actor).__name__} does not; "
                "use allocator=d3pg, flow or consistency"
            )
        if self.bootstraps:
            self.target_actor = self.build_actor().requires_grad_(False)
            self.target_critics = self._build_critics().requires_grad_(False)
            self.target_actor.load_state_dict(self.actor.state_dict())
            self.target_critics.load_state_dict(self.critics.state_dict())
            self._polyak = get_ema_multi_avg_fn(1 - config.target_rate)

    def _shared_features(self) -> Any:
        """The layout that actor and critic both read."""
        actor, critic = (
            class_of(section, f"allocator.{key}")
            for key, section in (("actor", self.config.actor), ("critic", self.config.critic))
        )
        reads = [getattr(network, "Features", UserFeatures) for network in (actor, critic)]
        if reads[0] is not reads[1]:
            raise UserError(
                f"allocator.actor, allocator.critic: {actor.__name__} reads {reads[0].__name__}, {critic.__name__} "
                f"{reads[1].__name__}; they must read the same, such as allocator/actor=sets allocator/critic=sets"
            )
        return reads[0]

    def build_actor(self) -> Actor:
        """The actor, see `networks.actors`."""
        raise NotImplementedError

    def make_trunk(self, steps: int) -> nn.Module:
        """The configured network for a chain of so many steps (0: no chain)."""
        return build(self.config.actor, self.scenario, steps, key="allocator.actor")

    def _build_critics(self) -> nn.ModuleList:
        return nn.ModuleList(
            build(self.config.critic, self.scenario, key="allocator.critic", needs=("per_user",))
            for _ in range(self.config.critics)
        )

    def optimizers_by_name(self) -> dict[str, Optimizer]:
        return {
            "critic": self.adam(self.critics.parameters(), self.config.critic_learning_rate),
            "actor": self.adam(self.actor.parameters(), self.config.actor_learning_rate),
        }

    @property
    def exploration_noise(self) -> float:
        """Standard deviation of the exploration, falling linearly over the run."""
        start, end = self.config.exploration_noise, self.config.exploration_noise_end
        return start + (end - start) * min(self.progress, 1.0)

    # -- acting

    def state(self, observation: TensorDict) -> TensorDict:
        fields = self.fields(observation)
        if self.config.objective == "analytic":
            fields = situation(observation) | fields
        return TensorDict(fields, batch_size=observation.batch_size)

    def fields(self, observation: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What networks and head read of an observation [*]."""
        fields = self.features(self.scenario, observation)
        if getattr(self.head, "drop_wasted", False):
            fields["floor_share"] = floor_share(self.scenario, observation)
            fields["efficient_share"] = efficient_share(self.scenario, observation)
        if getattr(self.head, "keep_deadlines", False):
            fields["delay_cost"] = delay_cost(self.scenario, observation)
        return fields

    def draw_noise(self, state: State, more: int = 0) -> Tensor:
        """Standard normal noise for one decision per state [*] and, with `more`, beyond: [draws + more, *, U, 2]."""
        shape = (self.actor.draws + more, *state["hit"].shape, 2)
        return torch.randn(shape, generator=self.generator, device=self.generator.device)

    def decision_noise(self, state: State, explore: bool) -> Tensor:
        """The noise of decisions."""
        return self.draw_noise(state)

    def to_raw(self, state: State, output: Tensor, explore: bool = True) -> Tensor:
        """The raw allocation [*, U, 2] that an actor's output [*, U, 2] means, in training or in earnest."""
        head = self.head if explore else getattr(self.head, "decide", self.head)
        return head(self.actor.squash(output), state)

    def to_shares(self, state: State, output: Tensor, explore: bool = True) -> Tensor:
        """Feasible shares [*, U, 2] from an actor's output [*, U, 2]."""
        return amend_allocation(self.to_raw(state, output, explore), state["hit"], state["attached"])

    def shares(self, actor: nn.Module, state: State, noise: Tensor, explore: bool = True) -> Tensor:
        """Feasible shares [*, U, 2] of an actor."""
        return self.to_shares(state, actor(state, noise).float(), explore)

    @staticmethod
    def values(critics: nn.ModuleList, state: State, shares: Tensor) -> Tensor:
        """Each critic's values, [critics, *, 1 or U], in float32."""
        return torch.stack([critic(state, shares).float() for critic in critics])

    def value(self, critics: nn.ModuleList, state: State, shares: Tensor) -> Tensor:
        """Lower envelope of the critics' values, [*, 1] or per user [*, U]."""
        return self.values(critics, state, shares).amin(0)

    @torch.no_grad()
    def act(self, state: TensorDict, explore: bool = False) -> Tensor:
        fields = state.to_dict()
        order = self._members(fields)
        count = fields["attached"].shape[-1]
        fields = _pick(fields, order)
        output = self.actor(fields, self.decision_noise(fields, explore)).float()
        if explore:
            spread = torch.randn(output.shape, generator=self.generator, device=output.device)
            output = output + spread * self.exploration_noise
        raw = self.to_raw(fields, output, explore)
        if order is None:
            return raw
        places = order.unsqueeze(-1).expand_as(raw)
        return raw.new_full((*raw.shape[:-2], count, 2), -1.0).scatter(-2, places, raw)

    def _members(self, state: State) -> Tensor | None:
        """Where the users of each cell stand in its table of all users, see `members_first`; None: take the table.

        On a GPU the table is cheaper than waiting for how many there are.
        """
        whole = self.scenario.one_crowd or not self.features.any_users or self.config.objective == "analytic"
        return None if whole or state["attached"].device.type != "cpu" else members_first(state["attached"])

    # -- learning

    def transition(self, state: TensorDict, following: TensorDict, next_state: TensorDict) -> TensorDict:
        served = following["served"]
        reward = served["utility"]
        if not self.per_user:
            reward = cell_mean(reward, state["attached"]).unsqueeze(-1)
        fields = {"state": state, "shares": served["shares"], "reward": reward}
        if self.bootstraps:
            fields["next_state"] = next_state
        return TensorDict(fields, batch_size=state.batch_size)

    def update(self, batch: TensorDict, optimise: Optimise) -> Metrics:
        state, target, shares = batch["state"].to_dict(), batch["reward"], batch["shares"]
        if self.bootstraps:
            following = batch["next_state"].to_dict()
            target = self.target(target, following, self.draw_noise(following, more=int(self.config.target_noise > 0)))
        order = None if self.compiled else self._members(state)  # compiled code is for one size of the table
        state = _pick(state, order)
        if order is not None:
            shares = torch.take_along_dim(shares, order.unsqueeze(-1), -2)
            target = target.gather(-1, order) if self.per_user else target
        critic_loss = self.critic_loss(state, shares, target)
        optimise("critic", critic_loss)
        metrics = {"critic_loss": critic_loss.detach()}
        self.rounds += 1
        if self.rounds % self.config.actor_every == 0:
            if self.rounds > self.config.actor_warmup:
                metrics |= self.update_actor(state, optimise)
            self.update_targets()
        return metrics

    def update_actor(self, state: State, optimise: Optimise) -> Metrics:
        """One gradient step of the actor."""
        actor_loss = self.actor_loss(state, self.objective_noise(state))
        optimise("actor", actor_loss)
        return {"actor_loss": actor_loss.detach()}

    @torch.no_grad()
    def target(self, reward: Tensor, next_state: State, noise: Tensor) -> Tensor:
        """Y = r + gamma Q'(s', mu'(s')), [b, 1 or U]; `target_noise` smooths mu' by clipped noise, as in TD3."""
        draws, clip = self.actor.draws, self.config.target_noise_clip
        if len(noise) > draws:
            action = self.actor.squash(self.target_actor(next_state, noise[:draws]).float())
            action = action + (noise[draws] * self.config.target_noise).clamp(-clip, clip)
            raw = self.head(action.clamp(-1.0, 1.0), next_state)
            shares = amend_allocation(raw, next_state["hit"], next_state["attached"])
        else:
            shares = self.shares(self.target_actor, next_state, noise)
        return reward + self.config.discount * self.future(
            next_state, self.value(self.target_critics, next_state, shares)
        )

    def future(self, next_state: State, value: Tensor) -> Tensor:
        """The part of next values [b, 1 or U] that counts: who has left the cell brings it nothing more."""
        return value if self.scenario.one_crowd or not self.per_user else value * next_state["attached"]

    def critic_loss(self, state: State, shares: Tensor, target: Tensor) -> Tensor:
        """Mean squared TD error, summed over the critics."""
        errors = self.values(self.critics, state, shares) - target
        return self.mean(errors.square(), state) * len(self.critics)

    def mean(self, value: Tensor, state: State) -> Tensor:
        """Mean over states [*, b, 1], or over the users attached in them [*, b, U].

        As in what is reported, worlds count alike, so a cell that is a world of its own does, however few users it has.
        Several cells of a world count by their users.
        """
        attached = state["attached"]
        if self.scenario.one_crowd or value.shape[-1] != attached.shape[-1]:
            return value.mean()
        weight = attached.expand_as(value).to(value.dtype)
        if self.scenario.cells == 1:
            weight = weight / weight.sum(-1, keepdim=True).clamp_min(1)
        return (value * weight).sum() / weight.sum().clamp_min(1)

    def actor_loss(self, state: State, noise: Tensor) -> Tensor:
        """What the actor minimises, see `objectives`, from noise of `objective_noise`."""
        if self.config.objective == "q_weighted":
            return q_weighted(self, state, noise)
        output = self.actor(state, noise).float()
        loss = -self.worth(state, self.to_shares(state, output))
        penalty = self.actor.penalty(output)
        return loss if penalty is None else loss + penalty

    def worth(self, state: State, shares: Tensor) -> Tensor:
        """The mean value of shares as the objective has it: by the critics, or the true utility."""
        if self.config.objective == "analytic":
            return self.mean(true_utility(self.scenario, state, shares), state)
        return self.mean(self.value(self.critics, state, shares), state)

    def objective_noise(self, state: State) -> Tensor:
        """The noise of one `actor_loss`."""
        if self.config.objective != "q_weighted":
            return self.draw_noise(state)
        candidates = {"hit": state["hit"].expand(self.config.candidates, *state["hit"].shape)}
        noise = self.draw_noise(candidates, more=1 + self.actor.levels)
        noise[self.actor.draws] *= self.exploration_noise
        return noise

    def followers(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The parameters of each target and those they follow; nothing without targets."""
        if self.bootstraps:
            yield from zip(self.target_actor.parameters(), self.actor.parameters(), strict=True)
            yield from zip(self.target_critics.parameters(), self.critics.parameters(), strict=True)

    def update_targets(self) -> None:
        """Polyak update of the targets, all tensors in one call."""
        if self.bootstraps:
            followers, followed = (list(tensors) for tensors in zip(*self.followers(), strict=True))
            self._polyak(followers, followed, 0)

    def compile_update(self) -> None:
        self.compiled = True
        for name in ("critic_loss", "actor_loss") + (("target",) if self.bootstraps else ()):
            setattr(self, name, Compiled(getattr(self, name)))

    def extra_state(self) -> dict[str, Any]:
        return super().extra_state() | {"rounds": self.rounds}

    def load_extra_state(self, state: dict[str, Any]) -> None:
        super().load_extra_state(state)
        self.rounds = state.get("rounds", 0)

    def diagnosis(self, cells: TensorDict, generator: torch.Generator) -> dict[str, float]:
        return actor_and_critics(self, cells, generator)

    # -- exporting

    @property
    def exported_draws(self) -> int:
        """How many tensors of noise an exported decision takes."""
        return self.actor.draws

    def decision(self, state: State, noise: Tensor) -> Tensor:
        """Shares [*, U, 2] of an exported decision."""
        return self.shares(self.actor, state, noise, explore=False)

    def export(self) -> Exported:
        any_users = self.features.any_users
        users = 4 if any_users else self.scenario.users
        inputs, axes = observed(self.scenario, users)
        axes |= {"noise": {1: "batch", 2: "users"}, "shares": {0: "batch", 1: "users"}}
        if not any_users:
            axes = {name: {at: axis for at, axis in by.items() if axis == "batch"} for name, by in axes.items()}
        batch = len(inputs["request"])
        facts = {"users": None if any_users else users, "diffusion_steps": self.exported_draws, "decision_samples": 1}
        chain = {"noise": torch.zeros(self.exported_draws, batch, users, 2)} if self.exported_draws else {}
        decide = AllocatorGraph(self, self.decision, bool(chain))
        graphs = {"allocator": Graph(decide, inputs | chain, axes, "shares")}
        if chain:  # the best of several samples is found by the critics
            shares = {"shares": torch.full((batch, users, 2), 1 / users)}
            judge = CriticGraph(self, partial(self.value, self.critics))
            graphs["critic"] = Graph(judge, inputs | shares, axes, "value")
        return Exported(graphs, facts)


def _pick(state: State, order: Tensor | None) -> State:
    """The rows of some users [*, W] of every field of a state [*, U, ...]; all where `order` is None."""
    if order is None:
        return state
    return {
        key: torch.take_along_dim(value, order.view(*order.shape, *[1] * (value.ndim - order.ndim)), order.ndim - 1)
        for key, value in state.items()
    }
