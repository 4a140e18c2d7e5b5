"""Decisions of an exported policy, for an operator: needs NumPy and onnxruntime, not PyTorch.

Nothing else of this package is imported, so this file also works alone, copied beside what `export.py` wrote.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FORMAT = 2  # of the directory that `export.py` writes
READABLE = (1, 2)
NEEDED = ("scenario", "users", "decision_samples", "popularity", "cacher")
POLICY, ALLOCATOR, CRITIC, CACHER = "policy.json", "allocator.onnx", "critic.onnx", "cacher.onnx"
OUTCOME = "outcome.onnx"  # what comes of shares; only `explain` needs it

MOST_BITS = 1e15  # of a payload: its square still fits in float32
MOST_WATTS = 1e3  # of interference


class Allocation(NamedTuple):
    """One slot's decision, one number per user."""

    bandwidth: NDArray[np.float32]  # share of the cell's bandwidth; sums to at most 1
    steps: NDArray[np.float32]  # denoising steps at the edge, 0 for a miss; times their cost at most the step budget


class Cell:
    """What a controller knows of its cell, and how it checks what it is told.

    Args:
        policy: what `policy.json` holds.
    """

    def __init__(self, policy: dict[str, Any]) -> None:
        self.policy = policy
        scenario = policy["scenario"]
        self.models: int = scenario["models"]
        self.users: int | None = policy["users"]  # None: any number
        # How many steps of each model the whole budget buys, [M]; before there were catalogues each cost 1.
        cost = np.broadcast_to(scenario.get("step_cost", 1.0), self.models)
        self.budget_steps: NDArray[np.float32] = (scenario["step_budget"] / cost).astype(np.float32)
        # Gain of a user whose uplink signal is as strong as the noise over the whole bandwidth.
        bandwidth = scenario["bandwidth"] / scenario.get("reuse", 1)
        self.gain_at_0_db: float = scenario["noise_density"] * bandwidth / scenario["user_power"]
        self.several_cells: bool = scenario["cells"] > 1
        self.edge_link: bool = self.several_cells and scenario["edge_link_rate"] is not None

    def feeds(
        self,
        request: ArrayLike,
        input_bits: ArrayLike,
        output_bits: ArrayLike,
        cache: ArrayLike,
        *,
        gain: ArrayLike | None = None,
        snr_db: ArrayLike | None = None,
        attached: ArrayLike | None = None,
        uplink_interference: float | None = None,
        downlink_interference: ArrayLike | None = None,
        handover: ArrayLike | None = None,
        nearby: ArrayLike | None = None,
    ) -> dict[str, NDArray[Any]]:
        """What is known of a slot as arrays by name of a graph's input.

        Args:
            request: requested model of each user, counted from 0, [U].
            input_bits, output_bits: payloads, bit [U].
            cache: which models the cell holds, bool [M].
            gain: linear power gain of each user's link, [U]; or instead
            snr_db: its uplink signal-to-noise ratio over the whole bandwidth, dB [U].
            attached: which users are attached to this cell, bool [U]; all when left out. The others get nothing.
            uplink_interference, downlink_interference: power that other cells add to the noise at the station, W, and
                at each user, W [U]; none when left out. These and the next are for policies of several cells only.
            handover: which users were taken over in this slot, bool [U]; none when left out.
            nearby: which models another cell holds, bool [M]; none when left out. For policies that know of edge links.

        Raises:
            ValueError: naming the argument, the user and what would be right.
        """
        models = _indices("request", request, self.models)
        users = len(models)
        if self.users not in (None, users):
            raise ValueError(
                f"request: {users} users, but this policy serves exactly {self.users}; policies with set networks "
                "serve any number"
            )
        feeds: dict[str, NDArray[Any]] = {
            "request": models,
            "input_bits": _numbers("input_bits", input_bits, users, 0.0, MOST_BITS),
            "output_bits": _numbers("output_bits", output_bits, users, 0.0, MOST_BITS),
            "gain": self._gain(gain, snr_db, users),
            "cache": _flags("cache", cache, self.models, "models"),
            "attached": np.ones(users, bool) if attached is None else _flags("attached", attached, users, "users"),
        }
        several = {"uplink_interference": uplink_interference, "downlink_interference": downlink_interference}
        feeds |= self._of_several(several | {"handover": handover, "nearby": nearby}, users)
        self._check_storage(feeds["cache"])
        return feeds

    def cache(
        self,
        popularity: ArrayLike,
        held: ArrayLike | None = None,
        users: float | None = None,
        nearby: ArrayLike | None = None,
    ) -> NDArray[np.bool_]:
        """Which models to hold for the coming frame."""
        raise NotImplementedError

    def decide(self, feeds: dict[str, NDArray[Any]], generator: np.random.Generator) -> NDArray[np.float32]:
        """Shares of bandwidth and of the step budget [n, U, 2] for a batch of checked slots, one sample each."""
        raise NotImplementedError

    def outcome(self, feeds: dict[str, NDArray[Any]], shares: NDArray[np.float32]) -> NDArray[np.float32]:
        """What comes of shares, [n, U] by column of `deploy.explain.OUTCOME`."""
        raise NotImplementedError

    def _of_several(self, given: dict[str, Any], users: int) -> dict[str, NDArray[Any]]:
        """What a policy of several cells is told beside the rest; what was not given is nothing."""
        self._refuse_unknown(given)
        if not self.several_cells:
            return {}
        at_station = 0.0 if given["uplink_interference"] is None else given["uplink_interference"]
        at_users = np.zeros(users) if given["downlink_interference"] is None else given["downlink_interference"]
        out: dict[str, NDArray[Any]] = {
            "uplink_interference": _numbers("uplink_interference", [at_station], 1, 0.0, MOST_WATTS, "stations")[0],
            "downlink_interference": _numbers("downlink_interference", at_users, users, 0.0, MOST_WATTS),
        }
        for name, length, of in (("handover", users, "users"), ("nearby", self.models, "models")):
            if self._knows(name):
                flags = np.zeros(length, bool) if given[name] is None else given[name]
                out[name] = _flags(name, flags, length, of)
        return out

    def _knows(self, name: str) -> bool:
        """Whether there is such a thing where this policy was made."""
        return self.edge_link if name == "nearby" else self.several_cells

    def _refuse_unknown(self, given: Mapping[str, Any]) -> None:
        for name, value in given.items():
            if value is not None and not self._knows(name):
                raise ValueError(f"{name}: this policy was made where there is none (env.cells, env.edge_link_mbps)")

    def _check_storage(self, cache: NDArray[np.bool_]) -> None:
        scenario = self.policy["scenario"]
        used, capacity = float(np.asarray(scenario["model_storage"])[cache].sum()), scenario["storage_capacity"]
        if used > capacity * (1 + 1e-9):
            raise ValueError(f"cache: takes {used / 8e9:.4g} GB, but the cell's storage holds {capacity / 8e9:.4g} GB")

    def _gain(self, gain: ArrayLike | None, snr_db: ArrayLike | None, users: int) -> NDArray[np.float32]:
        """Linear gains [U] from whichever of the two there is."""
        if gain is not None and snr_db is None:
            return _numbers("gain", gain, users, 0.0, 1.0)
        if snr_db is not None and gain is None:
            ratio = 10 ** (_numbers("snr_db", snr_db, users, -300.0, 300.0) / 10)
            return (self.gain_at_0_db * ratio).astype(np.float32, copy=False)
        raise ValueError("gain, snr_db: give one of the two")

    def _popularity(self, value: ArrayLike) -> NDArray[np.float32]:
        """What the cacher's network sees of the demand, [P]; ValueError where the value cannot be."""
        if self.policy["popularity"] == "state":
            table = self.policy["scenario"]["request_probability"]
            # With rankings of their own the states of all cells are counted through.
            states = len(table) * len(table[0]) if isinstance(table[0][0], list) else len(table)
            number: Any = [value]
            return np.eye(states, dtype=np.float32)[_indices("popularity", number, states)[0]]
        counts = _numbers("popularity", value, self.models, 0.0, 1e12, "models")
        total = counts.sum()
        return counts / total if total else np.full(self.models, 1 / self.models, np.float32)


class Controller(Cell):
    """Decides for one cell with what `t2drl export checkpoint=... output_dir=DIRECTORY` wrote.

    Args:
        path: that directory.
        seed: of this controller's random generator; the same calls in the same order give the same decisions.

    Raises:
        ValueError: there is no exported policy, or one of another format.
        ImportError: onnxruntime is not installed.
    """

    def __init__(self, path: str | Path, seed: int = 0) -> None:
        super().__init__(_read(Path(path)))
        self.path = Path(path)
        # I, length of the diffusion chain; format 1 used another name
        self.diffusion_steps: int = self.policy.get("diffusion_steps", self.policy.get("denoising_steps", 0))
        self.generator = np.random.default_rng(seed)
        self._allocator = _session(Path(path, ALLOCATOR))
        self._critic = _session(Path(path, CRITIC)) if self.diffusion_steps else None
        self._outcome: Any = None  # loaded when it is first needed
        self._cacher = _session(Path(path, CACHER)) if "observes_cache" in self.policy["cacher"] else None

    def cache(
        self,
        popularity: ArrayLike,
        held: ArrayLike | None = None,
        users: float | None = None,
        nearby: ArrayLike | None = None,
    ) -> NDArray[np.bool_]:
        """Which models to hold for the coming frame.

        Args:
            popularity: what the policy was trained to see, as `popularity` of `policy.json` says. `state`: the number
                of the popularity state (cell x states + state where cells have rankings of their own);
                `probabilities`: the probability of each model, [M]; `frequencies`: how often each model was
                requested in the last frame, [M].
            held: which models are held now, bool [M]; only asked for where the policy looks at it.
            users: how many users the cell has, on average over the last frame; likewise.
            nearby: which models another cell holds, bool [M]; likewise, none when left out.

        Returns:
            bool [M], within the storage capacity.

        Raises:
            ValueError: naming the argument that cannot be, or why this policy has no cacher.
        """
        self._refuse_unknown({"nearby": nearby})
        kind = self.policy["cacher"]
        if "left_out" in kind:
            raise ValueError(f"this policy decides no cache: {kind['left_out']}")
        if self._cacher is None:
            return np.array(kind["constant"])
        feeds: dict[str, NDArray[Any]] = {"popularity": self._popularity(popularity)[None]}
        if kind["observes_cache"]:
            if held is None:
                raise ValueError("held: missing; this policy looks at the models that are held now")
            feeds["held"] = _flags("held", held, self.models, "models")[None]
        if kind.get("observes_load"):
            if users is None:
                raise ValueError("users: missing; this policy looks at how many users the cell has")
            count = _numbers("users", [users], 1, 0.0, 1e6, "numbers")
            feeds["load"] = (count * np.array(self.policy["load_per_user"], np.float32)).astype(np.float32)[None]
        if kind.get("observes_nearby"):
            others = np.zeros(self.models, bool) if nearby is None else nearby
            feeds["nearby"] = _flags("nearby", others, self.models, "models")[None]
        return self._cacher.run(None, feeds)[0][0]

    def allocate(
        self,
        request: ArrayLike,
        input_bits: ArrayLike,
        output_bits: ArrayLike,
        cache: ArrayLike,
        *,
        gain: ArrayLike | None = None,
        snr_db: ArrayLike | None = None,
        attached: ArrayLike | None = None,
        uplink_interference: float | None = None,
        downlink_interference: ArrayLike | None = None,
        handover: ArrayLike | None = None,
        nearby: ArrayLike | None = None,
        samples: int | None = None,
        seed: int | None = None,
    ) -> Allocation:
        """How to split the cell's bandwidth and denoising steps in this slot.

        Args:
            request, input_bits, output_bits, cache, gain, snr_db, attached, uplink_interference, downlink_interference,
            handover, nearby: what is known of the slot, see `feeds`.
            samples: chains to draw, of which the critic picks the best; None: as many as
                `allocator.decision_samples` said when the policy was exported.
            seed: with a seed the decision depends on the arguments alone; None: noise comes from the controller's
                generator.

        Raises:
            ValueError: naming the argument, the user and what would be right.
            RuntimeError: the policy answers with NaN: its parameters are damaged.
        """
        feeds = self.feeds(
            request,
            input_bits,
            output_bits,
            cache,
            gain=gain,
            snr_db=snr_db,
            attached=attached,
            uplink_interference=uplink_interference,
            downlink_interference=downlink_interference,
            handover=handover,
            nearby=nearby,
        )
        return self.allocate_checked(feeds, samples, seed)

    def allocate_checked(
        self, feeds: dict[str, NDArray[Any]], samples: int | None = None, seed: int | None = None
    ) -> Allocation:
        """`allocate` with what `feeds` returned."""
        shares = self._shares(feeds, len(feeds["request"]), samples, seed)
        if not math.isfinite(shares.sum()):
            raise RuntimeError("the policy answers with NaN: its parameters are damaged; export it anew")
        return Allocation(shares[:, 0], shares[:, 1] * self.budget_steps[feeds["request"]])

    def explain(self, situation: str | Path | Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
        """What to cache in a situation, who gets what, and what the next-best cache would cost.

        Args:
            situation: a JSON file or its content, see `deploy.explain.KEYS`.
            seed: of the slots on which caches are compared, and of the diffusion chains.

        Raises:
            ValueError: naming the key that cannot be.
        """
        from lightning_t2drl.deploy.explain import explain, read_situation

        return explain(self, read_situation(situation), seed)

    def decide(self, feeds: dict[str, NDArray[Any]], generator: np.random.Generator) -> NDArray[np.float32]:
        """Shares [n, U, 2] for a batch of checked slots, one chain each."""
        if self.diffusion_steps:
            shape = (self.diffusion_steps, *feeds["request"].shape, 2)
            feeds = feeds | {"noise": generator.standard_normal(shape, np.float32)}
        return self._allocator.run(None, feeds)[0]

    def outcome(self, feeds: dict[str, NDArray[Any]], shares: NDArray[np.float32]) -> NDArray[np.float32]:
        """What comes of shares, [n, U] by column of `deploy.explain.OUTCOME`."""
        if self._outcome is None:
            self._outcome = _session(self.path / OUTCOME)
        return self._outcome.run(None, feeds | {"shares": shares})[0]

    def _shares(
        self, feeds: dict[str, NDArray[Any]], users: int, samples: int | None, seed: int | None
    ) -> NDArray[np.float32]:
        """Shares of bandwidth and of the step budget [U, 2]: of one chain, or of the best of several."""
        samples = self.policy["decision_samples"] if samples is None else samples
        if not isinstance(samples, (int, np.integer)) or samples < 1:
            raise ValueError(f"samples: {samples!r} is not a whole number of at least 1")
        samples = samples if self.diffusion_steps else 1  # without a chain all are the same
        feeds = {name: value[None].repeat(samples, 0) for name, value in feeds.items()}
        if self.diffusion_steps:
            generator = self.generator if seed is None else np.random.default_rng(seed)
            shape = (self.diffusion_steps, samples, users, 2)
            feeds["noise"] = generator.standard_normal(shape, np.float32)
        shares = self._allocator.run(None, feeds)[0]
        if samples == 1 or self._critic is None:
            return shares[0]
        del feeds["noise"]
        return shares[self._critic.run(None, feeds | {"shares": shares})[0].argmax()]


def _read(directory: Path) -> dict[str, Any]:
    try:
        policy = json.loads((directory / POLICY).read_text())
    except (OSError, ValueError):
        raise ValueError(f"{directory}: no exported policy ({POLICY} cannot be read); t2drl export makes one") from None
    if not isinstance(policy, dict) or policy.get("format") not in READABLE:
        found = policy.get("format") if isinstance(policy, dict) else type(policy).__name__
        raise ValueError(f"{directory}: policy of format {found}; this loader reads {', '.join(map(str, READABLE))}")
    for key in NEEDED + (("sha256",) if policy["format"] > 1 else ()):
        if key not in policy:
            raise ValueError(f"{directory / POLICY}: damaged, it holds no {key!r}; export the policy anew")
    for name, expected in policy.get("sha256", {}).items():  # format 1 has none
        if _exists(directory / name) and digest(directory / name) != expected:
            raise ValueError(f"{directory / name}: damaged or changed since it was exported; export the policy anew")
    return policy


def _exists(path: Path) -> bool:
    if not path.is_file():
        raise ValueError(f"{path}: missing; export the policy anew")
    return True


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _session(path: Path) -> Any:
    """One thread: the graphs are so small that sharing the work would take longer than doing it."""
    try:
        import onnxruntime as ort
    except ImportError:
        raise ImportError("onnxruntime is missing: pip install 'lightning-t2drl[deploy]'") from None
    _exists(path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    try:
        return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own types share no base class
        raise ValueError(f"{path}: cannot be loaded ({str(error).splitlines()[0]})") from None


def _numbers(
    name: str, value: ArrayLike, length: int, low: float, high: float, of: str = "users"
) -> NDArray[np.float32]:
    """Float32 [length] within [low, high]; NaN is not."""
    with np.errstate(over="ignore"):  # beyond float32 is beyond `high`
        array = _array(name, value, np.float32, length, of)
    if not (array.min() >= low and array.max() <= high):
        bad = int(np.argmin((array >= low) & (array <= high)))
        raise ValueError(f"{name}: {np.ravel(value)[bad]} of {of[:-1]} {bad} is not a number from {low:g} to {high:g}")
    return array


def _indices(name: str, value: ArrayLike, count: int) -> NDArray[np.int64]:
    """Int64 [*] from 0 to count - 1; at least one."""
    array = np.asarray(value)
    if array.ndim != 1 or not array.size or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name}: need whole numbers, not {value!r}")
    if array.min() < 0 or array.max() >= count:
        bad = array[(array < 0) | (array >= count)][0]
        raise ValueError(f"{name}: {bad} is not among 0 to {count - 1}")
    return array.astype(np.int64, copy=False)


def _flags(name: str, value: ArrayLike, length: int, of: str) -> NDArray[np.bool_]:
    """Bool [length]; 0 and 1 will do."""
    array = np.asarray(value)
    if array.dtype != bool and not np.isin(array, (0, 1)).all():
        raise ValueError(f"{name}: need true or false for each of the {of}")
    return _array(name, array, bool, length, of)


def _array(name: str, value: ArrayLike, dtype: Any, length: int, of: str) -> NDArray[Any]:
    try:
        array = np.asarray(value, dtype)
    except (TypeError, ValueError):
        raise ValueError(f"{name}: not an array of numbers") from None
    if array.shape != (length,):
        raise ValueError(f"{name}: shape {array.shape}, but there are {length} {of}")
    return array
