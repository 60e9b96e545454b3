# SPDX-License-Identifier: Apache-2.0
"""``NetSpec``: architecture and options of a network. No heavy library is imported here."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class NetSpec:
    """Architecture and options of a network, with conversion to and from JSON.

    Parameters
    ----------
    architecture : str
        Key of `ARCHITECTURES`.
    n_labels : int
        Number of labels, including background.
    block_size : int
        Edge in voxels of the blocks that become channels (space-to-depth); 1: no blocks. In files
        it is called ``stem``.
    features : int
        Number of features that the body computes for each block.
    options : dict
        Passed to the architecture.
    """

    architecture: str
    n_labels: int
    block_size: int = 2
    features: int = 32
    options: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Specification as a dictionary, with the keys of files.

        >>> NetSpec("unet", 5).to_dict()
        {'architecture': 'unet', 'n_labels': 5, 'stem': 2, 'features': 32, 'options': {}}
        """
        return {"stem" if key == "block_size" else key: v for key, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> NetSpec:
        """Specification from the dictionary of `to_dict`.

        Raises
        ------
        TypeError
            If it is not a dictionary, or a key is missing or unknown.
        """
        if not isinstance(content, Mapping):
            raise TypeError(f"a network is an object of several keys, not {content!r}")
        return cls(**{"block_size" if key == "stem" else key: v for key, v in content.items()})

    def to_json(self) -> str:
        """All fields as JSON."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> NetSpec:
        """Specification from the JSON text of `to_json`."""
        return cls.from_dict(json.loads(text))
