"""The canvas: shapes in metres, projected and drawn in the image and in the labels at once.

X points to the right, Y up and Z ahead; the camera stands above the origin and the street runs along Z.
"""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from proda.data.labels import class_names
from proda.method import IGNORE
from proda.streets.style import Style

(
    ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN,
    SKY, PERSON, RIDER, CAR, TRUCK, BUS, _, MOTORCYCLE, BICYCLE,
) = range(len(class_names(19)))  # fmt: skip

FAR, NEAR = 140.0, 2.2  # metres: where the street ends, and a depth that lies below the lower edge of the image
SUPERSAMPLING = 2  # the canvas is so many times larger than the scene

Colour = tuple[int, int, int]
Point = tuple[float, float]


class View:
    """A canvas for the image and one for the labels, and the camera through which both are seen.

    Colours are RGB in 0..255; a label is a train id, or None to draw in the image alone, as details are.
    """

    def __init__(self, rng: np.random.Generator, style: Style, size: tuple[int, int]) -> None:
        self.rng, self.style = rng, style
        self.width, self.height = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
        self.image = Image.new("RGB", (self.width, self.height))
        self.labels = Image.new("L", (self.width, self.height), IGNORE)
        self._pen, self._label_pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.labels)
        self.focal = float(self.width)
        self.camera_height = rng.uniform(*style.camera_height)
        self.horizon = self.height * rng.uniform(*style.horizon)
        self.vanishing_x = self.width * (0.5 + rng.uniform(-1, 1) * style.swerve)
        self.sun = float(rng.choice([-1, 1]))  # the side of the street that the light comes from
        self.haze_colour = self.pick("horizon")
        self.shadow_colour = (40, 40, 44)  # of the ground; the street sets it

    def pick(self, material: str) -> Colour:
        """A colour of the material's palette, off by the style's jitter."""
        palette = self.style.palettes[material].split()
        r, g, b = bytes.fromhex(palette[self.rng.integers(len(palette))])
        shift, red, green, blue = (self.rng.standard_normal(4) * self.style.colour_jitter).tolist()
        return clip(r + shift + 0.4 * red), clip(g + shift + 0.4 * green), clip(b + shift + 0.4 * blue)

    def project(self, x: float, y: float, z: float) -> Point:
        scale = self.focal / max(z, NEAR)
        return self.vanishing_x + x * scale, self.horizon + (self.camera_height - y) * scale

    def polygon(self, points: Sequence[Point], colour: Colour | None, label: int | None, z: float = 0.0) -> None:
        """Fills a polygon of canvas points that is z metres away."""
        if colour is not None:
            self._pen.polygon(points, fill=self._hazy(colour, z))
        if label is not None:
            self._label_pen.polygon(points, fill=label)

    def face(
        self, points: Sequence[tuple[float, float, float]], colour: Colour | None, label: int | None = None
    ) -> None:
        """Fills a polygon of points in metres."""
        z = sum([max(point[2], NEAR) for point in points]) / len(points)
        self.polygon([self.project(*point) for point in points], colour, label, z)

    def ground(
        self, left: float, right: float, near: float, far: float, colour: Colour, label: int | None = None
    ) -> None:
        """Fills a rectangle that lies on the ground."""
        self.face([(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)], colour, label)

    def upright(
        self, x: float, near: float, far: float, low: float, high: float, colour: Colour, label: int | None = None
    ) -> None:
        """Fills a rectangle that stands along the street."""
        self.face([(x, low, near), (x, low, far), (x, high, far), (x, high, near)], colour, label)

    def across(
        self, x0: float, x1: float, z: float, low: float, high: float, colour: Colour, label: int | None = None
    ) -> None:
        """Fills a rectangle that stands across the street."""
        self.face([(x0, low, z), (x1, low, z), (x1, high, z), (x0, high, z)], colour, label)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, label: int | None, z: float, rim: float = 0.0
    ) -> None:
        """Fills an ellipse around a canvas point; with a rim, its outline in the image and all of it in the labels."""
        if x + rx < 0 or x - rx > self.width or y + ry < 0 or y - ry > self.height:
            return
        box = (x - rx, y - ry, x + rx, y + ry)
        if rim:
            self._pen.ellipse(box, outline=self._hazy(colour, z), width=max(1, round(rim)))
        else:
            self._pen.ellipse(box, fill=self._hazy(colour, z))
        if label is not None:
            self._label_pen.ellipse(box, fill=label)

    def line(self, points: Sequence[Point], colour: Colour, width: float, label: int | None, z: float) -> None:
        self._pen.line(points, fill=self._hazy(colour, z), width=max(1, round(width)), joint="curve")
        if label is not None:  # never so thin that the labels of the scene, every other pixel, could miss it
            self._label_pen.line(points, fill=label, width=max(SUPERSAMPLING, round(width)), joint="curve")

    def shadow(self, x: float, z: float, radius: float, stretch: float = 1.0) -> None:
        """A shadow on the ground under a thing; it belongs to the ground, so the labels stay."""
        scale = self.focal / z
        self.ellipse(
            *self.project(x, 0, z), radius * stretch * scale, 0.2 * radius * scale, self.shadow_colour, None, z
        )

    def _hazy(self, colour: Colour, z: float) -> Colour:
        share = math.exp(-self.style.haze * z)
        (r, g, b), (hr, hg, hb), rest = colour, self.haze_colour, 1 - share
        return clip(share * r + rest * hr), clip(share * g + rest * hg), clip(share * b + rest * hb)


class Sprite:
    """A flat thing that faces the camera, drawn in metres from its foot: u to the right, v up.

    ``squeeze`` scales u: below 1 for a thing seen at an angle, negative for its mirror image.
    """

    def __init__(self, view: View, x: float, z: float, label: int | None, *, squeeze: float = 1.0) -> None:
        self.view, self.z, self.label = view, z, label
        self.scale = view.focal / z
        self.squeeze = squeeze * self.scale
        self.x, self.y = view.project(x, 0, z)

    def polygon(self, points: Sequence[Point], colour: Colour | None, *, detail: bool = False) -> None:
        x, y, squeeze, scale = self.x, self.y, self.squeeze, self.scale
        corners = [(x + u * squeeze, y - v * scale) for u, v in points]
        self.view.polygon(corners, colour, None if detail else self.label, self.z)

    def rectangle(self, u0: float, v0: float, u1: float, v1: float, colour: Colour, *, detail: bool = False) -> None:
        self.polygon([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], colour, detail=detail)

    def disc(
        self,
        u: float,
        v: float,
        radius: float,
        colour: Colour,
        *,
        rim: float = 0.0,
        tall: float = 1.0,
        detail: bool = False,
    ) -> None:
        x, y = self.x + u * self.squeeze, self.y - v * self.scale
        rx, ry = radius * abs(self.squeeze), radius * tall * self.scale
        self.view.ellipse(x, y, rx, ry, colour, None if detail else self.label, self.z, rim * self.scale)

    def line(self, points: Sequence[Point], colour: Colour, width: float, *, detail: bool = False) -> None:
        points = [(self.x + u * self.squeeze, self.y - v * self.scale) for u, v in points]
        self.view.line(points, colour, width * self.scale, None if detail else self.label, self.z)


def clip(value: float) -> int:
    return 0 if value < 0 else 255 if value > 255 else int(value)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour, brighter (factor above 1) or darker."""
    r, g, b = colour
    return clip(r * factor), clip(g * factor), clip(b * factor)


def steps(start: float, stop: float, step: float) -> list[float]:
    """As numpy's arange, in Python floats: arithmetic on numpy scalars would take most of the drawing's time."""
    return np.arange(start, stop, step).tolist()
