"""What inpainting and video share: scikit-learn's handwritten digits, and a small diffusion model (diffusers)."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_t2drl.calibrate.service import Tick, seeded, train
from lightning_t2drl.errors import UserError
from lightning_t2drl.seeding import derive_seed, make_generator

CHAIN = 200  # noise levels: the usual 1,000, beta from 1e-4 to 0.02, five at a time
FIRST, LAST = 5e-4, 0.1
BETAS: dict[str, Any] = {"num_train_timesteps": CHAIN, "beta_start": FIRST, "beta_end": LAST}  # linear between
GROUP = 32  # images of one Frechet distance
COMPONENTS = 10  # principal components of the pixels that it is measured in
TEST = 500  # digits that no network is trained on
EXTRA = "pip install 'lightning-t2drl[calibrate]'"


def need_extra() -> None:
    """Refuse in one line where the extra is missing."""
    missing = [name for name in ("diffusers", "sklearn") if find_spec(name) is None]
    if missing:
        raise UserError(f"service: needs {' and '.join(missing)}: {EXTRA}")


def digits(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images in [-1, 1], [n, 1, 8, 8], and their labels [n]: for training, then for tests."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=make_generator("cpu", seed, "split"))
    images = torch.from_numpy(data.images).float()[order, None] / 8 - 1
    labels = torch.from_numpy(data.target)[order]
    return images[TEST:], labels[TEST:], images[:TEST], labels[:TEST]


def unet(side: int, inputs: int, channels: tuple[int, ...], seed: int) -> nn.Module:
    """A convolutional U-Net with self-attention at its bottom that predicts the noise of one image."""
    from diffusers.models.unets.unet_2d import UNet2DModel

    def make() -> nn.Module:
        return UNet2DModel(
            sample_size=side,
            in_channels=inputs,
            out_channels=1,
            block_out_channels=channels,
            down_block_types=("DownBlock2D",) * len(channels),
            up_block_types=("UpBlock2D",) * len(channels),
            layers_per_block=1,
            norm_num_groups=8,
            attention_head_dim=8,
        )

    return seeded(make, derive_seed(seed, "weights"))


def train_noise(net: nn.Module, batch: Any, iterations: int, seed: int, tick: Tick) -> None:
    """Train a network to predict the noise of images at all levels.

    Args:
        net: of `unet`.
        batch: gives images [n, 1, s, s] and what the network sees beside them [n, c, s, s], from a generator.
        iterations: of training.
        seed: of images, levels and noise.
        tick: told of progress.
    """
    kept = torch.cumprod(1 - torch.linspace(FIRST, LAST, CHAIN), 0)
    generator = make_generator("cpu", seed, "training")

    def loss() -> Tensor:
        images, seen = batch(generator)
        level = torch.randint(CHAIN, (len(images),), generator=generator)
        noise = torch.randn(images.shape, generator=generator)
        share = kept[level, None, None, None]
        noisy = share.sqrt() * images + (1 - share).sqrt() * noise
        return (net(torch.cat([noisy, seen], 1), level).sample - noise).square().mean()

    train(net, loss, iterations, 2e-3, tick)


class Likeness:
    """How far images are from real ones: Frechet distances in the principal components of the real ones' pixels."""

    def __init__(self, real: Tensor) -> None:
        from sklearn.decomposition import PCA

        flat = real.flatten(1).numpy()
        self.components = PCA(COMPONENTS, svd_solver="full").fit(flat)
        self.reference = moments(self.components.transform(flat))

    def distances(self, images: Tensor) -> list[float]:
        """One of each group of images [n, ...]."""
        features = self.components.transform(images.flatten(1).numpy())
        parts = np.array_split(features, max(len(features) // GROUP, 1))
        return [frechet(moments(part), self.reference) for part in parts]


def moments(features: Any) -> tuple[Any, Any]:
    """Mean and covariance of features [n, d]."""
    return features.mean(0), np.cov(features, rowvar=False)


def frechet(one: tuple[Any, Any], other: tuple[Any, Any]) -> float:
    """Frechet distance of two normal distributions given by mean and covariance."""
    product = np.linalg.eigvals(one[1] @ other[1]).real.clip(min=0)
    distance = np.square(one[0] - other[0]).sum() + np.trace(one[1]) + np.trace(other[1]) - 2 * np.sqrt(product).sum()
    return float(distance)
