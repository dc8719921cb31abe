"""Streets: small procedural driving scenes in three styles, for trying the whole method without a download.

The source styles look synthetic: ``GAME``, in the place of GTA5, like a video game, clean, saturated and flat, with
wide roads under a blue sky; ``SIMULATOR``, in the place of SYNTHIA, harder in its light and seen from changing heights,
with more people. The target style, ``CAMERA``, looks like a photograph: haze, noise, texture, narrow streets with more
parked cars and trees. Its surfaces have colours half-way towards those that other classes have in the game: concrete
roads near the game's pavements, dark paving near its roads, autumn leaves near its bricks. The colour of a surface
therefore misleads a network that has seen only the game, as it does between games and photographs.

The drawing code is the same for all styles. Every difference between two domains is a named field of :class:`Style`.

For adaptation to photographs there are ``write_scenes`` and ``proda.streets.town``: streets drawn in more detail, whose
appearance is drawn anew for every scene.
"""

from proda.streets.files import write_streets
from proda.streets.randomized import random_style
from proda.streets.scene import draw_scene
from proda.streets.scenes import write_scenes
from proda.streets.style import CAMERA, GAME, SIMULATOR, Style

__all__ = ["CAMERA", "GAME", "SIMULATOR", "Style", "draw_scene", "random_style", "write_scenes", "write_streets"]
