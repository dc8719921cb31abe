"""Streets: small driving scenes in two styles, drawn by procedure, for trying the whole method without a download.

The source style is a game (clean, saturated, flat, wide roads under a blue sky), the target style a camera (haze,
noise, texture, muted colours, narrow streets with more people and bicycles). One set of drawings serves both: whatever
makes the domains differ is a named field of ``GAME`` and ``CAMERA``.
"""

from proda.streets.files import write_streets
from proda.streets.scene import draw_scene
from proda.streets.style import CAMERA, GAME, Style

__all__ = ["CAMERA", "GAME", "Style", "draw_scene", "write_streets"]
