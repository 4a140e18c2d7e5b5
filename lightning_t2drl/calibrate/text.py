"""Text: masked diffusion over characters, on the topics that Python's own help prints."""

from __future__ import annotations

import platform
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightning_t2drl.calibrate.service import Metric, Service, Tick, Values, seeded, train, weights
from lightning_t2drl.errors import UserError
from lightning_t2drl.seeding import derive_seed, make_generator

LETTERS = " abcdefghijklmnopqrstuvwxyz.,'"
MASK = len(LETTERS)
LENGTH = 48  # characters of a text, so also the most steps there can be
SIZES = {"small": (64, 2), "large": (96, 4)}  # width, blocks
ITERATIONS = {"small": 2500, "large": 2000}
BATCH = 32
LEAST_VARIETY = 0.5  # different words, as a share of those in as much real text


class Text(Service):
    """Each step reveals an equal part of the characters, at random places, all drawn from the network at once."""

    modality = "text"
    metrics: Mapping[str, Metric] = {
        "words": Metric("share of real words", "higher"),
        "bits": Metric("bit per character", "lower"),
    }
    steps = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48)
    whole = LENGTH
    samples = 256
    assumed: Mapping[str, Any] = {"input_mb": [0.01, 0.1], "output_mb": [0.01, 0.1], "deadline": 15.0}

    def __init__(self, size: str, iterations: int | None, seed: int) -> None:
        self.seed, self.iterations = seed, iterations or ITERATIONS[size]
        self.known, self.unseen = corpus(seed)
        self.vocabulary = frozenset(words(self.known))
        self.codes = encode(self.known)
        self.chances = trigrams(self.codes)
        self.net = seeded(lambda: Characters(*SIZES[size]), derive_seed(seed, "weights"))
        self.variety: dict[int, float] = {}  # different words at each number of steps, as a share of real text's

    def prepare(self, tick: Tick) -> None:
        generator = make_generator("cpu", self.seed, "training")
        offsets = torch.arange(LENGTH)

        def loss() -> Tensor:
            starts = torch.randint(len(self.codes) - LENGTH, (BATCH, 1), generator=generator)
            text = self.codes[starts + offsets]
            share = torch.rand(BATCH, 1, generator=generator)
            hidden = torch.rand(text.shape, generator=generator) < share.clamp(min=1 / LENGTH)
            scores = self.net(text.masked_fill(hidden, MASK))
            return nn.functional.cross_entropy(scores[hidden], text[hidden])

        train(self.net, loss, self.iterations, 3e-3, tick)

    @torch.no_grad()
    def generate(self, steps: int, batch: int, seed: int) -> Tensor:
        """Codes [batch, LENGTH]; steps beyond the length change nothing and cost nothing."""
        generator = make_generator("cpu", seed)
        order = torch.rand(batch, LENGTH, generator=generator).argsort(1)  # when each place is revealed
        text = torch.full((batch, LENGTH), MASK)
        steps = min(steps, LENGTH)
        for step in range(steps):
            now = (order >= LENGTH * step // steps) & (order < LENGTH * (step + 1) // steps)
            chances = self.net(text)[now].softmax(-1)
            text[now] = torch.multinomial(chances, 1, generator=generator).squeeze(-1)
        return text

    def curve(self, steps: Sequence[int], samples: int, seed: int) -> Iterator[tuple[int, Values]]:
        real = variety([self.unseen[i * LENGTH : (i + 1) * LENGTH] for i in range(samples)])
        for count in steps:
            codes = self.generate(count, samples, derive_seed(seed, count))
            texts = ["".join(LETTERS[code] for code in row) for row in codes]
            self.variety[count] = variety(texts) / real
            chances = self.chances[codes[:, :-2], codes[:, 1:-1], codes[:, 2:]]
            yield count, {"words": [self.share(text) for text in texts], "bits": (-chances.log2()).mean(1).tolist()}
        if self.variety[count] < LEAST_VARIETY:
            raise UserError(
                f"service: text collapses: with {count} steps it has {self.variety[count]:.0%} of the different words "
                f"of as much real text, less than {LEAST_VARIETY:.0%}; train longer (iterations)"
            )

    def share(self, text: str) -> float:
        """Of the words of a text, those that the training text has."""
        found = whole_words(text)
        return sum(word in self.vocabulary for word in found) / max(len(found), 1)

    def facts(self) -> dict[str, Any]:
        unseen = [self.unseen[i : i + LENGTH] for i in range(0, len(self.unseen) - LENGTH, LENGTH)]
        return {
            "data": f"pydoc topics of Python {platform.python_version()}, {len(self.known)} characters, no line twice",
            "model": f"convolutions over {LENGTH} characters, {weights(self.net)} weights",
            "sampler": "masked diffusion, random places, temperature 1",
            "iterations": self.iterations,
            "real_text": round(sum(map(self.share, unseen)) / len(unseen), 4),
            "variety": {count: round(share, 3) for count, share in self.variety.items()},
        }


class Characters(nn.Module):
    """Scores of every character at every place, from those around it that are shown: [n, L] -> [n, L, letters].

    Convolutions with residual connections: they learn what spells a word in far fewer iterations than attention does.
    """

    def __init__(self, width: int, blocks: int) -> None:
        super().__init__()
        self.letters = nn.Embedding(MASK + 1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.GroupNorm(1, width),
                nn.Conv1d(width, width, 5, padding=2 * reach, dilation=reach),
                nn.GELU(),
                nn.Conv1d(width, width, 5, padding=2),
            )
            for reach in (1, 2, 4, 1)[:blocks]
        )
        self.scores = nn.Sequential(nn.GroupNorm(1, width), nn.Conv1d(width, MASK, 1))

    def forward(self, text: Tensor) -> Tensor:
        x = self.letters(text).mT
        for block in self.blocks:
            x = x + block(x)
        return self.scores(x).mT


def corpus(seed: int) -> tuple[str, str]:
    """Lines of Python's help topics, none twice, in lower-case letters: nine tenths to train, the rest unseen."""
    from pydoc_data.topics import topics

    lines = (line for _, text in sorted(topics.items()) for line in text.split("\n\n"))
    plain = dict.fromkeys(re.sub(f"[^{LETTERS}]+", " ", " ".join(line.lower().split())) for line in lines)
    kept = [re.sub(" +", " ", line).strip() for line in plain]
    kept = [line for line in dict.fromkeys(kept) if len(line) > 40]
    order = torch.randperm(len(kept), generator=make_generator("cpu", seed, "split")).tolist()
    shuffled = [kept[i] for i in order]
    return " ".join(shuffled[len(kept) // 10 :]), " ".join(shuffled[: len(kept) // 10])


def words(text: str) -> list[str]:
    return re.findall("[a-z]+", text)


def whole_words(text: str) -> list[str]:
    """Words of a window; what its ends may have cut is left out."""
    return words(" ".join(text.split(" ")[1:-1]))


def trigrams(codes: Tensor) -> Tensor:
    """Chance of each character after each two others, [letters, letters, letters]: mixed with pairs and single ones."""
    counts = torch.zeros(MASK, MASK, MASK)
    counts.index_put_((codes[:-2], codes[1:-1], codes[2:]), torch.ones(()), accumulate=True)
    pairs = counts.sum(0)
    single = (pairs.sum(0) + 1) / (pairs.sum() + MASK)
    pair = (pairs + single) / (pairs.sum(-1, keepdim=True) + 1)
    return (counts + pair) / (counts.sum(-1, keepdim=True) + 1)


def variety(texts: Sequence[str]) -> int:
    """How many different words there are, real or not: few where a network says the same again and again."""
    return len({word for text in texts for word in whole_words(text)})


def encode(text: str) -> Tensor:
    return torch.tensor([LETTERS.index(letter) for letter in text])
