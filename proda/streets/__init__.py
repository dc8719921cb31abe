"""Streets: small procedural driving scenes in two styles, for trying the whole method without a download.

The source style, ``GAME``, looks like a video game: clean, saturated and flat, with wide roads under a blue sky. The
target style, ``CAMERA``, looks like a photograph: haze, noise, texture, muted colours and narrow streets with more
parked cars and trees. The drawing code is the same for both styles. Every difference between the two domains is a named
field of :class:`Style`.
"""

from proda.streets.files import write_streets
from proda.streets.scene import draw_scene
from proda.streets.style import CAMERA, GAME, Style

__all__ = ["CAMERA", "GAME", "Style", "draw_scene", "write_streets"]
