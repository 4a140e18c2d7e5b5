"""Inpainting: the lower half of handwritten digits, filled in by RePaint over a small diffusion model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_t2drl.calibrate.digits import BETAS, CHAIN, Likeness, digits, need_extra, train_noise, unet
from lightning_t2drl.calibrate.service import Metric, Service, Tick, Values, weights
from lightning_t2drl.errors import UserError
from lightning_t2drl.seeding import derive_seed, make_generator

CHANNELS = {"small": (16, 32), "large": (32, 64)}
ITERATIONS = {"small": 800, "large": 600}
BATCH = 32


class Inpaint(Service):
    """Steps are spread over the whole chain (`respaced`), or a chain of 200 steps is ended early (`cut`)."""

    modality = "image"
    metrics: Mapping[str, Metric] = {
        "frechet": Metric("distance", "lower"),
        "agreement": Metric("share read right", "higher"),
        "tv": Metric("total variation", "lower"),
    }
    whole = CHAIN
    samples = 256
    assumed: Mapping[str, Any] = {}

    def __init__(self, size: str, chain: str, iterations: int | None, seed: int) -> None:
        need_extra()
        from diffusers.schedulers.scheduling_repaint import RePaintScheduler

        self.chain, self.seed = chain, seed
        self.iterations = iterations or ITERATIONS[size]
        self.steps = (20, 60, 90, 100, 110, 120, 130, 140, 150, 160, 170, 180, 190, 200)
        if chain == "respaced":
            self.steps = (2, 4, 5, 8, 10, 20, 25, 40, 50)  # they divide the chain; one step alone gives clipped noise
        self.images, self.labels, self.real, self.real_labels = digits(seed)
        self.net = unet(8, 1, CHANNELS[size], seed)
        self.scheduler = RePaintScheduler(**BETAS, eta=1.0)
        self.mask = torch.ones(1, 1, 8, 8)
        self.mask[..., 4:, :] = 0  # 1 where the image is known

    def check_steps(self, steps: Sequence[int]) -> None:
        super().check_steps(steps)
        if self.chain == "respaced" and (odd := [count for count in steps if CHAIN % count]):
            raise UserError(
                f"steps: {odd[0]} does not divide the chain of {CHAIN}; chain=cut takes any number up to it"
            )

    def prepare(self, tick: Tick) -> None:
        from sklearn.neural_network import MLPClassifier

        def batch(generator: torch.Generator) -> tuple[Tensor, Tensor]:
            chosen = torch.randint(len(self.images), (BATCH,), generator=generator)
            return self.images[chosen], torch.empty(BATCH, 0, 8, 8)

        train_noise(self.net, batch, self.iterations, self.seed, tick)
        state = derive_seed(self.seed, "classifier") % 2**32
        self.classifier = MLPClassifier((64,), random_state=state, max_iter=200, early_stopping=True)
        self.classifier.fit(self.images.flatten(1).numpy(), self.labels.numpy())
        self.likeness = Likeness(self.real)

    def generate(self, steps: int, batch: int, seed: int) -> Tensor:
        *_, (_, images) = self._chain(batch, seed, [steps])
        return images

    @torch.no_grad()
    def _chain(self, batch: int, seed: int, ends: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
        """Images [batch, 1, 8, 8] as they are after each of these numbers of steps; respaced chains have one end."""
        count = CHAIN if self.chain == "cut" else ends[0]
        self.scheduler.set_timesteps(count, jump_length=1, jump_n_sample=1)
        generator = make_generator("cpu", seed)
        original = self.real[torch.arange(batch) % len(self.real)]
        x = torch.randn(original.shape, generator=generator)
        for done, level in enumerate(range(CHAIN - 1, -1, -(CHAIN // count)), 1):  # from the noisiest level on
            x = self.scheduler.step(self.net(x, level).sample, level, x, original, self.mask, generator).prev_sample
            if done in ends:
                yield done, x
            if done == max(ends):
                return

    def curve(self, steps: Sequence[int], samples: int, seed: int) -> Iterator[tuple[int, Values]]:
        if self.chain == "cut":
            for count, images in self._chain(samples, seed, steps):
                yield count, self._values(images)
        else:
            for count in steps:
                yield count, self._values(self.generate(count, samples, derive_seed(seed, count)))

    def _values(self, images: Tensor) -> Values:
        """Frechet distances of groups; agreement and total variation of each image."""
        flat = images.flatten(1).numpy()
        labels = self.real_labels[torch.arange(len(images)) % len(self.real)].numpy()
        return {
            "frechet": self.likeness.distances(images),
            "agreement": (self.classifier.predict(flat) == labels).astype(float).tolist(),
            "tv": total_variation(images).tolist(),
        }

    def facts(self) -> dict[str, Any]:
        how = "of 200 steps, ended early" if self.chain == "cut" else "respaced over 200 noise levels"
        return {
            "data": f"scikit-learn digits, lower half filled in; {len(self.images)} to train, {len(self.real)} unseen",
            "model": f"diffusers UNet2DModel, {weights(self.net)} weights",
            "sampler": f"RePaintScheduler, eta 1, no jumps, {how}",
            "iterations": self.iterations,
        }


def total_variation(images: Tensor) -> Tensor:
    """Sum of the absolute differences of neighbouring pixels, [n, 1, h, w] -> [n]."""
    return images.diff(dim=-1).abs().sum((1, 2, 3)) + images.diff(dim=-2).abs().sum((1, 2, 3))
