"""Seeds and generators, each for one purpose."""

from __future__ import annotations

import hashlib

import torch


def derive_seed(seed: int, *labels: object) -> int:
    """A seed for one purpose: the same for the same labels, unrelated for others; in [0, 2^63)."""
    text = "/".join(str(part) for part in (seed, *labels))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def make_generator(device: torch.device | str, seed: int, *labels: object) -> torch.Generator:
    """A generator of its own for one purpose, see `derive_seed`."""
    return torch.Generator(device=device).manual_seed(derive_seed(seed, *labels))
