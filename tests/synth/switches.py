# SPDX-License-Identifier: Apache-2.0
"""Whether an effect shows in a recipe."""

from __future__ import annotations

from brainseg_bids.synth.recipe import Recipe


def is_off(effect: str, recipe: Recipe) -> bool:
    """Whether ``recipe`` has nothing of an effect of `space.EFFECTS`."""
    if effect == "deformation":
        moved = recipe.deformation
        return (
            moved.rotation_deg == (0.0, 0.0, 0.0)
            and moved.scaling == (1.0, 1.0, 1.0)
            and moved.shearing == (0.0, 0.0, 0.0)
            and moved.velocity_sd_mm == 0
        )
    if effect == "texture":
        single = all(len(tissue.mean) == 1 for tissue in recipe.tissues.values())
        return single and recipe.texture.grain_frac == 0
    return getattr(recipe, effect) == getattr(Recipe({}), effect)
