# SPDX-License-Identifier: Apache-2.0
"""``NetSpec``: architecture and options of a network. Nothing heavy is imported here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class NetSpec:
    """Architecture name and options; JSON there and back.

    Parameters
    ----------
    architecture : str
        Key of `ARCHITECTURES`.
    n_labels : int
        Labels with background.
    block_size : int
        Edge, in voxels, of the blocks that become channels (space-to-depth); 1 means none do.
        Files call it ``stem``.
    features : int
        Features per block that the body gives.
    options : dict
        Passed to the architecture.
    """

    architecture: str
    n_labels: int
    block_size: int = 2
    features: int = 32
    options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As files have it.

        >>> NetSpec("unet", 5).to_dict()
        {'architecture': 'unet', 'n_labels': 5, 'stem': 2, 'features': 32, 'options': {}}
        """
        return {"stem" if key == "block_size" else key: v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> NetSpec:
        """What `to_dict` gave.

        Raises
        ------
        TypeError
            If it is none, or a key is missing or not known.
        """
        if not isinstance(content, Mapping):
            raise TypeError(f"a network is an object of several keys, not {content!r}")
        return cls(**{"block_size" if key == "stem" else key: v for key, v in content.items()})

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> NetSpec:
        """The specification that `to_json` wrote."""
        return cls.from_dict(json.loads(text))
