# SPDX-License-Identifier: Apache-2.0
"""Random streams of a recipe, one for each part, and quantiles of simple distributions."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True)
class Streams:
    """Independent streams of random numbers, one for each name.

    The numbers of one stream do not depend on what is drawn from others, and every call starts at
    the beginning of its stream.

    Examples
    --------
    >>> streams = Streams(7)
    >>> bool(streams.uniform("bias") == streams.uniforms("bias", 3)[0])
    True
    """

    entropy: int

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Streams:
        """Streams of one recipe, with entropy from ``rng``."""
        return cls(int(rng.integers(2**63)))

    def generator(self, name: str) -> np.random.Generator:
        """Generator at the beginning of a stream."""
        return np.random.default_rng([self.entropy, zlib.crc32(name.encode())])

    def uniforms(self, name: str, n: int) -> list[float]:
        """First ``n`` numbers of a stream, uniform between 0 and 1."""
        return self.generator(name).random(n).tolist()

    def uniform(self, name: str) -> float:
        """First number of a stream, uniform between 0 and 1."""
        return self.uniforms(name, 1)[0]

    def normals(self, name: str, n: int) -> np.ndarray:
        """First ``n`` standard normal numbers of a stream."""
        return self.generator(f"normal {name}").standard_normal(n)

    def seed(self, name: str) -> int:
        """Seed of a random field, below 2**31."""
        return int(self.generator(f"seed {name}").integers(2**31))


def within(bounds: Range, u: float) -> float:
    """Quantile of the uniform distribution between two bounds at probability ``u``."""
    return bounds[0] + (bounds[1] - bounds[0]) * u


def normal_cdf(z: float) -> float:
    """Cumulative distribution of the standard normal.

    >>> normal_cdf(0.0)
    0.5
    """
    return 0.5 * math.erfc(-z / math.sqrt(2))
