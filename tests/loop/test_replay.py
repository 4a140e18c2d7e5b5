"""The replay buffer keeps what it was given, and its checkpoint continues it exactly."""

import torch
from tensordict import TensorDict

from lightning_t2drl.loop.replay import Replay


def rows(start, count):
    numbers = torch.arange(start, start + count, dtype=torch.float32)
    state = {"features": numbers[:, None] + torch.tensor([0.0, 0.25, 0.5]), "hit": numbers[:, None] % 2 > 0}
    return TensorDict({"state": state, "reward": -numbers[:, None]}, batch_size=[count])


def test_oldest_rows_give_way_and_fields_stay_together():
    replay = Replay(10, 0, "cpu")
    for start in range(0, 24, 6):
        replay.extend(rows(start, 6).reshape(3, 2))
    batch = replay.sample(500)
    assert set(batch["reward"].flatten().tolist()) == {-float(n) for n in range(14, 24)}
    torch.testing.assert_close(batch["state", "features"][:, 0], -batch["reward"][:, 0])
    assert torch.equal(batch["state", "hit"], batch["reward"] % 2 > 0)


def test_state_round_trips_exactly_and_is_no_larger_than_the_content(tmp_path):
    for filled in (0, 4, 25):
        replay = Replay(10, 0, "cpu")
        for start in range(0, filled, 4):
            replay.extend(rows(start, min(4, filled - start)))
        path = tmp_path / f"{filled}.pt"
        torch.save(replay.state_dict(), path)
        other = Replay(10, 99, "cpu")
        other.load_state_dict(torch.load(path, weights_only=True))
        for buffer in (replay, other):
            buffer.extend(rows(100, 3))
        assert len(replay) == len(other) == min(filled + 3, 10)
        for _ in range(3):
            a, b = replay.sample(7), other.sample(7)
            assert (a == b).all()
    wide = Replay(100_000, 0, "cpu")
    wide.extend(TensorDict({"state": torch.zeros(5, 1000)}, batch_size=[5]))
    torch.save(wide.state_dict(), tmp_path / "wide.pt")
    assert (tmp_path / "wide.pt").stat().st_size < 60_000


def test_sampling_uses_its_own_generator_only():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    replay = Replay(10, 0, "cpu")
    replay.extend(rows(0, 8))
    replay.sample(4)
    assert torch.equal(torch.get_rng_state(), before)
