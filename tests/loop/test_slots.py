"""What a user's own policy returns is checked before it is played."""

import pytest
import torch

from lightning_t2drl.allocators.equal import EqualAllocator, EqualConfig
from lightning_t2drl.cachers.random import RandomCacher, RandomConfig
from lightning_t2drl.envs import EdgeAIGCEnv
from lightning_t2drl.errors import UserError
from lightning_t2drl.loop.slots import frame
from lightning_t2drl.system import load_scenario

NEEDED = r"; needed is a tensor \[2, 1, 10, 2\] of float32$"


@pytest.mark.parametrize(("part", "changed", "line"), [
    ("act", lambda raw: raw[..., :1], r"^allocator: EqualAllocator\.act returned \[2, 1, 10, 1\] of float32" + NEEDED),
    ("act", lambda raw: raw[0], r"^allocator: EqualAllocator\.act returned \[1, 10, 2\] of float32" + NEEDED),
    ("act", lambda raw: raw.long(), r"returned \[2, 1, 10, 2\] of int64" + NEEDED),
    ("act", lambda raw: raw.double(), r"returned \[2, 1, 10, 2\] of float64" + NEEDED),
    ("act", lambda raw: None, "returned NoneType" + NEEDED),
    ("decide", lambda cache: cache[:1], r"^cacher: RandomCacher\.decide returned \[1, 1, 10\] of bool; needed is .* bool$"),
    ("decide", lambda cache: cache.float(), r"returned \[2, 1, 10\] of float32; needed is a tensor \[2, 1, 10\] of bool$"),
])  # fmt: skip
def test_another_shape_or_kind_is_refused_in_one_line(part, changed, line, monkeypatch):
    scenario = load_scenario("paper")
    cacher, allocator = RandomCacher(scenario, RandomConfig()), EqualAllocator(scenario, EqualConfig())
    owner = allocator if part == "act" else cacher
    own = getattr(owner, part)
    monkeypatch.setattr(owner, part, lambda *given: changed(own(*given)))
    with pytest.raises(UserError, match=line), torch.no_grad():
        next(frame(EdgeAIGCEnv(scenario, 2), cacher, allocator))
