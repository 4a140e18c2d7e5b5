"""Video: the next frames of a moving digit, one after another, by a small diffusion model that sees the last two."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_t2drl.calibrate.digits import BETAS, CHAIN, Likeness, digits, need_extra, train_noise, unet
from lightning_t2drl.calibrate.service import Metric, Service, Tick, Values, weights
from lightning_t2drl.seeding import derive_seed, make_generator

SIDE, SEEN = 12, 2  # pixels of a frame; frames that are shown
SIZES = {"small": ((16, 32), 2), "large": ((16, 32, 64), 4)}  # channels of the network, frames that follow
ITERATIONS = {"small": 1200, "large": 1200}


class Video(Service):
    """Steps are those of one frame."""

    modality = "video"
    metrics: Mapping[str, Metric] = {"psnr": Metric("dB", "higher"), "frechet": Metric("distance", "lower")}
    steps = (2, 3, 4, 5, 6, 8, 10, 15, 20)  # one alone would start at the level without noise
    whole = CHAIN
    samples = 256
    assumed: Mapping[str, Any] = {"input_mb": [2.0, 6.0], "output_mb": [10.0, 20.0], "deadline": 90.0}

    def __init__(self, size: str, iterations: int | None, seed: int) -> None:
        need_extra()
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler

        channels, self.frames = SIZES[size]
        self.seed, self.iterations = seed, iterations or ITERATIONS[size]
        self.images, _, self.real, _ = digits(seed)
        self.net = unet(SIDE, 1 + SEEN, channels, seed)
        self.scheduler = DDIMScheduler(**BETAS, timestep_spacing="linspace")

    def prepare(self, tick: Tick) -> None:
        def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            film = films(self.images, 32, SEEN + 1, generator)
            return film[:, SEEN:], film[:, :SEEN]

        train_noise(self.net, batch, self.iterations, self.seed, tick)

    def generate(self, steps: int, batch: int, seed: int) -> tuple[Tensor, Tensor]:
        """The frames that follow and those that were made, [batch, frames, SIDE, SIDE] each."""
        generator = make_generator("cpu", seed)
        film = films(self.real, batch, SEEN + self.frames, generator)
        return film[:, SEEN:], self._continued(film[:, :SEEN], steps, generator)

    @torch.no_grad()
    def _continued(self, seen: Tensor, steps: int, generator: torch.Generator) -> Tensor:
        self.scheduler.set_timesteps(steps)
        made = []
        for _ in range(self.frames):
            x = torch.randn(seen[:, :1].shape, generator=generator)
            for level in self.scheduler.timesteps.tolist():
                noise = self.net(torch.cat([x, seen], 1), level).sample
                x = self.scheduler.step(noise, level, x, generator=generator).prev_sample
            made.append(x)
            seen = torch.cat([seen[:, 1:], x], 1)
        return torch.cat(made, 1)

    def curve(self, steps: Sequence[int], samples: int, seed: int) -> Iterator[tuple[int, Values]]:
        likeness = Likeness(films(self.real, 2000, SEEN + self.frames, make_generator("cpu", seed))[:, SEEN:])
        for count in steps:
            real, made = self.generate(count, samples, derive_seed(seed, count))
            error = (made - real).square().mean((1, 2, 3))
            psnr = 10 * torch.log10(4 / error)  # pixels are in [-1, 1]
            yield count, {"frechet": likeness.distances(made), "psnr": psnr.tolist()}

    def facts(self) -> dict[str, Any]:
        known, unseen = len(self.images), len(self.real)
        return {
            "data": f"scikit-learn digits that move in {SIDE}x{SIDE}; {known} to train, {unseen} unseen",
            "model": f"diffusers UNet2DModel, {weights(self.net)} weights; {SEEN} frames seen, {self.frames} made",
            "sampler": "DDIMScheduler, linspace, eta 0, one frame after another",
            "iterations": self.iterations,
        }


def films(images: Tensor, count: int, frames: int, generator: torch.Generator) -> Tensor:
    """Digits that move in a straight line and bounce off the edges, [count, frames, SIDE, SIDE] in [-1, 1]."""
    room = SIDE - images.shape[-1]
    chosen = torch.randint(len(images), (count,), generator=generator)
    start = torch.randint(room + 1, (count, 2), generator=generator)
    speed = torch.randint(-1, 2, (count, 2), generator=generator)
    film = torch.full((count, frames, SIDE, SIDE), -1.0)
    for frame in range(frames):
        place = (start + frame * speed) % (2 * room)
        place = torch.minimum(place, 2 * room - place)
        for i, (y, x) in enumerate(place.tolist()):
            film[i, frame, y : y + 8, x : x + 8] = images[chosen[i], 0]
    return film
