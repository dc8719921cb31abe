"""The canvas: shapes are given in metres, projected, and drawn into the image and the label map at the same time.

X points to the right, Y up and Z ahead. The camera is above the origin, and the street runs along Z.
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

# Depths in metres. The street ends at FAR; the ground at NEAR is below the lower edge of the image.
FAR, NEAR = 140.0, 2.2
SUPERSAMPLING = 2  # width and height of the canvas, as a multiple of those of the scene

Colour = tuple[int, int, int]
Point = tuple[float, float]


class View:
    """A canvas for the image, a canvas for the label map, and the camera that projects onto both.

    Colours are RGB in 0..255. A label is a train id, or None for details, which are drawn into the image only.

    Args:
        rng: draws the camera's position and everything that is drawn later.
        style: the appearance of the domain.
        size: (width, height) of the scene in pixels.
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
        self.sun = float(rng.choice([-1, 1]))  # side of the street that the light comes from: -1 left, 1 right
        self.haze_colour = self.pick("horizon")
        self.shadow_colour = (40, 40, 44)  # on the ground; draw_ground replaces it by a shade of the road

    def pick(self, material: str) -> Colour:
        """A random colour of the material's palette, perturbed by the style's colour jitter."""
        palette = self.style.palettes[material].split()
        r, g, b = bytes.fromhex(palette[self.rng.integers(len(palette))])
        shift, red, green, blue = (self.rng.standard_normal(4) * self.style.colour_jitter).tolist()
        return clip(r + shift + 0.4 * red), clip(g + shift + 0.4 * green), clip(b + shift + 0.4 * blue)

    def project(self, x: float, y: float, z: float) -> Point:
        """Canvas coordinates in pixels of a point in metres."""
        scale = self.focal / max(z, NEAR)
        return self.vanishing_x + x * scale, self.horizon + (self.camera_height - y) * scale

    def polygon(self, points: Sequence[Point], colour: Colour | None, label: int | None, z: float = 0.0) -> None:
        """Fills a polygon of canvas points. Its distance, z metres, determines the haze."""
        if colour is not None:
            self._pen.polygon(points, fill=self._hazy(colour, z))
        if label is not None:
            self._label_pen.polygon(points, fill=label)

    def face(
        self, points: Sequence[tuple[float, float, float]], colour: Colour | None, label: int | None = None
    ) -> None:
        """Fills a polygon whose corners are (x, y, z) in metres."""
        z = sum([max(point[2], NEAR) for point in points]) / len(points)
        self.polygon([self.project(*point) for point in points], colour, label, z)

    def ground(
        self, left: float, right: float, near: float, far: float, colour: Colour, label: int | None = None
    ) -> None:
        """Fills a horizontal rectangle on the ground."""
        self.face([(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)], colour, label)

    def upright(
        self, x: float, near: float, far: float, low: float, high: float, colour: Colour, label: int | None = None
    ) -> None:
        """Fills a vertical rectangle that is parallel to the street."""
        self.face([(x, low, near), (x, low, far), (x, high, far), (x, high, near)], colour, label)

    def across(
        self, x0: float, x1: float, z: float, low: float, high: float, colour: Colour, label: int | None = None
    ) -> None:
        """Fills a vertical rectangle that faces the camera."""
        self.face([(x0, low, z), (x1, low, z), (x1, high, z), (x0, high, z)], colour, label)

    def ellipse(
        self, x: float, y: float, rx: float, ry: float, colour: Colour, label: int | None, z: float, rim: float = 0.0
    ) -> None:
        """Fills an ellipse around a canvas point. With ``rim``, the image shows only an outline of that many pixels."""
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
        """Draws a polyline of canvas points, ``width`` pixels wide."""
        self._pen.line(points, fill=self._hazy(colour, z), width=max(1, round(width)), joint="curve")
        if label is not None:  # the scene keeps every other pixel of the label map, so a line must not be thinner
            self._label_pen.line(points, fill=label, width=max(SUPERSAMPLING, round(width)), joint="curve")

    def shadow(self, x: float, z: float, radius: float, stretch: float = 1.0) -> None:
        """Draws the shadow of an object on the ground. The label map still shows the ground there."""
        scale = self.focal / z
        self.ellipse(
            *self.project(x, 0, z), radius * stretch * scale, 0.2 * radius * scale, self.shadow_colour, None, z
        )

    def _hazy(self, colour: Colour, z: float) -> Colour:
        share = math.exp(-self.style.haze * z)
        (r, g, b), (hr, hg, hb), rest = colour, self.haze_colour, 1 - share
        return clip(share * r + rest * hr), clip(share * g + rest * hg), clip(share * b + rest * hb)


class Sprite:
    """A flat object that faces the camera. Coordinates are metres from the point where it stands: u right, v up.

    ``squeeze`` scales u: values below 1 show the object at an angle, negative values mirror it. Shapes drawn with
    ``detail=True`` appear in the image only.
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
    """The value as an integer in 0..255."""
    return 0 if value < 0 else 255 if value > 255 else int(value)


def shade(colour: Colour, factor: float) -> Colour:
    """The colour multiplied by a factor: above 1 it is brighter, below 1 darker."""
    r, g, b = colour
    return clip(r * factor), clip(g * factor), clip(b * factor)


def steps(start: float, stop: float, step: float) -> list[float]:
    """``numpy.arange`` as Python floats, because arithmetic on numpy scalars would dominate the drawing time."""
    return np.arange(start, stop, step).tolist()
