"""Calibration through the real entry point: a model trained for seconds, and a callable in a file of its own."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

from lightning_t2drl.calibrate import timing
from lightning_t2drl.calibrate.digits import frechet, moments
from lightning_t2drl.calibrate.inpaint import total_variation
from lightning_t2drl.calibrate.text import LENGTH, MASK, Text, encode, trigrams, whole_words
from lightning_t2drl.calibrate.video import films
from lightning_t2drl.errors import UserError
from lightning_t2drl.run.commands import run

MINE = """
import random

def curve(steps, batch, seed):
    rng = random.Random(seed)
    for _ in range(steps * batch * 10000):
        pass
    return [min(steps, 8) / 8 + rng.gauss(0, 0.02) for _ in range(batch)]

def falls(steps, batch, seed):
    return [1 / steps] * batch if curve(steps, batch, seed) else []
"""


@pytest.fixture(autouse=True)
def uneven_seconds_will_do(monkeypatch):
    monkeypatch.setattr(timing, "LEAST_R2", -float("inf"))  # a busy machine's are not even


def test_a_chain_cut_short_has_the_published_shape(tmp_path, monkeypatch):
    """Two seconds of training, end to end: flat, then linear to the end of the chain."""
    monkeypatch.setattr(timing, "REPEATS", 1)
    words = ["service=inpaint", "chain=cut", "metric=tv", "size=small", "iterations=40", "samples=32"]
    words += ["steps=[40,80,120,160,200]", "batches=[1]", "full_seconds=36", "progress_bar=false"]
    found = run("calibrate", [*words, f"output_dir={tmp_path}"])
    profile = yaml.safe_load((tmp_path / "inpaint_cut_small.yaml").read_text())
    assert profile["provenance"].keys() >= {"data", "versions", "seed", "device", "load", "sampler", "iterations", "r2"}
    assert found.fit.r2 > 0.9 and profile["better"] == "lower"
    (floor, worst), *_, (full, best) = profile["knots"]
    assert 60 < floor < full <= 200 and best < worst
    assert profile["base_seconds"] + full * profile["seconds_per_step"] == pytest.approx(36, rel=1e-3)
    quality, seconds = (pd.read_csv(tmp_path / f"{name}.csv") for name in ("quality", "seconds"))
    assert set(quality["metric"]) == {"tv", "frechet", "agreement"} and set(seconds["batch"]) == {1}
    assert (tmp_path / "curve.png").stat().st_size > 10_000


def test_an_own_callable_and_its_refusal(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(MINE)
    words = ["samples=8", "steps=[1,2,4,6,8,12,16]", "metric=score", "batches=[1,2]", "progress_bar=false"]
    found = run("calibrate", [*words, "service=mine.py:curve", "output_dir=out"])
    assert found.profile["metric"] == "score" and (tmp_path / "out/curve.yaml").is_file()
    assert found.fit.knots[-1] == pytest.approx((8, 1), abs=0.3)
    with pytest.raises(UserError, match=r"no profile of falls by score: the metric is not monotone.*; measured: no"):
        run("calibrate", [*words, "service=mine.py:falls", "output_dir=no"])
    assert {path.name for path in (tmp_path / "no").iterdir()} == {"quality.csv", "seconds.csv", "curve.png"}


def test_text_is_the_seeds_and_every_place_is_revealed_once():
    def sample():
        text = Text("small", 2, seed=3)
        text.prepare(lambda *_: None)
        return text, text.generate(5, 4, seed=1)

    (text, first), (_, second) = sample(), sample()
    assert torch.equal(first, second) and first.shape == (4, LENGTH) and (first < MASK).all()
    calls = []
    text.net.register_forward_pre_hook(lambda _, given: calls.append((given[0] == MASK).sum(1)))
    text.generate(5, 4, seed=1)
    assert torch.stack(calls)[:, 0].tolist() == [LENGTH - LENGTH * i // 5 for i in range(5)]
    assert whole_words("ut of the windo") == ["of", "the"]


def test_metrics_and_films_by_hand():
    image = torch.tensor([[[[0.0, 1.0], [3.0, 2.0]]]])
    assert total_variation(image).tolist() == [1 + 1 + 3 + 1]
    one = np.random.default_rng(0).standard_normal((4000, 2))
    assert frechet(moments(one), moments(one)) == pytest.approx(0, abs=1e-6)
    assert frechet(moments(one), moments(3 * one + [1, 2])) == pytest.approx(5 + 2 * 4, rel=0.1)
    chances = trigrams(encode("abcabcabcabd"))
    torch.testing.assert_close(chances.sum(-1), torch.ones(MASK, MASK))
    assert chances[1, 2, 3] > 0.7 > chances[1, 2, 4] > chances[1, 2, 5]
    film = films(torch.ones(1, 1, 8, 8), 20, 12, torch.Generator().manual_seed(0))
    assert ((film + 1).sum((2, 3)) == 2 * 64).all()  # the digit never leaves
    assert (film[:, 0] != film[:, 1]).any() and (film[:, 0] == film[:, 8]).all((1, 2)).any()
