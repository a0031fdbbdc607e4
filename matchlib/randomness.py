"""Addressed randomness: every draw is a function of where it is used, never of what was drawn before.

So results do not depend on the number of workers, ranks or on how often a run was interrupted.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch


def address_seed(seed: int, *address: int | str) -> int:
    """A 63-bit seed for one purpose, e.g. `address_seed(seed, epoch, index, "crop")`.

    Distinct addresses give independent seeds (BLAKE2b of the address); 1 and "1" are distinct.
    """
    text = "/".join(f"{type(part).__name__}:{part}" for part in (seed, *address))
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(seed: int, *address: int | str) -> np.random.Generator:
    """A NumPy generator for one address (see `address_seed`)."""
    return np.random.Generator(np.random.PCG64(address_seed(seed, *address)))


def torch_generator_for(seed: int, *address: int | str) -> torch.Generator:
    """A CPU torch generator for one address (see `address_seed`)."""
    import torch

    return torch.Generator().manual_seed(address_seed(seed, *address))
