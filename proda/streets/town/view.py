"""The canvas of a town: a street that may bend, raised ground, stamps of foliage, and shadows."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from proda.streets.canvas import NEAR, Colour, Point, View, shade
from proda.streets.style import Style

Edges = tuple[float, float]
DEPTHS = (NEAR, 3.5, 5.0, 7.0, 10.0, 14.0, 19.0, 26.0, 36.0, 50.0, 70.0, 100.0, 140.0)  # a bend is drawn in these steps


class TownView(View):
    """A canvas whose street bends: at Z = z it has shifted by ``bend`` times z squared."""

    def __init__(self, rng: np.random.Generator, style: Style, size: tuple[int, int]) -> None:
        super().__init__(rng, style, size)
        lowest = NEAR * (self.height - self.horizon) / self.camera_height  # else the ground would end in the picture
        self.focal = max(self.width * rng.uniform(0.85, 1.25), lowest)
        self.bend = 0.0
        self.sunny = bool(rng.random() < 0.5)

    def project(self, x: float, y: float, z: float) -> Point:
        z = max(z, NEAR)
        scale = self.focal / z
        return self.vanishing_x + (x + self.bend * z * z) * scale, self.horizon + (self.camera_height - y) * scale

    def polygon(self, points: Sequence[Point], colour: Colour | None, label: int | None, z: float = 0.0) -> None:
        if max(x for x, _ in points) >= 0 and min(x for x, _ in points) <= self.width:  # much is outside the picture
            super().polygon(points, colour, label, z)

    def slab(
        self, left: float, right: float, edges: Edges, height: float, colour: Colour, label: int | None = None
    ) -> None:
        """Fills a horizontal rectangle between two depths, ``height`` metres above the road."""
        near, far = edges
        corners = [(left, height, near), (right, height, near), (right, height, far), (left, height, far)]
        self.face(corners, colour, label)

    def strip(
        self, left: float, right: float, colour: Colour, label: int | None = None, *, height: float = 0.0,
        edges: Edges = (NEAR, DEPTHS[-1]),
    ) -> None:  # fmt: skip
        """Fills a band of ground along the street."""
        for near, far in self.cuts(edges):
            self.slab(left, right, (near, far), height, colour, label)

    def cuts(self, edges: Edges) -> list[Edges]:
        """A range of depths, cut into pieces that are short enough for a bend."""
        near, far = edges
        depths = [near, *(z for z in DEPTHS if near < z < far), far]
        return list(pairwise(depths))[::-1]

    def stamp(self, mask: Image.Image, tone: Image.Image, colour: Colour, box: tuple[float, ...], z: float) -> None:
        """Paints through a mask that is stretched over a box of the canvas; ``tone`` is dark to light of the colour."""
        placed = self._placed(mask, box)
        if placed is None:
            return
        part, source, corner = placed
        size = (part[2] - part[0], part[3] - part[1])
        low, high = (self._hazy(shade(colour, factor), z) for factor in (0.45, 1.55))
        paint = Image.new("RGB", size, low)
        paint.paste(high, (0, 0, *size), tone.resize(size, Image.Resampling.BILINEAR, source))
        self.image.paste(paint, corner, mask.resize(size, Image.Resampling.BILINEAR, source))

    def stamp_label(self, mask: Image.Image, label: int, box: tuple[float, ...]) -> None:
        placed = self._placed(mask, box)
        if placed is not None:
            part, source, corner = placed
            size = (part[2] - part[0], part[3] - part[1])
            shape = mask.resize(size, Image.Resampling.NEAREST, source)
            self.labels.paste(label, (*corner, corner[0] + size[0], corner[1] + size[1]), shape)

    def _placed(
        self, mask: Image.Image, box: tuple[float, ...]
    ) -> tuple[tuple[int, int, int, int], tuple[float, float, float, float], tuple[int, int]] | None:
        """The part of a box that is on the canvas, the part of the mask that falls there, and its upper left corner."""
        x0, y0, x1, y1 = box
        part = (
            max(0, round(x0)),
            max(0, round(y0)),
            min(self.width, max(round(x1), round(x0) + 1)),
            min(self.height, max(round(y1), round(y0) + 1)),
        )
        if part[0] >= part[2] or part[1] >= part[3]:
            return None
        across, down = mask.width / max(x1 - x0, 1), mask.height / max(y1 - y0, 1)
        source = (
            min(max(0.0, (part[0] - x0) * across), mask.width - 0.5),
            min(max(0.0, (part[1] - y0) * down), mask.height - 0.5),
            min(float(mask.width), max((part[2] - x0) * across, 0.5)),
            min(float(mask.height), max((part[3] - y0) * down, 0.5)),
        )
        return part, (source[0], source[1], max(source[2], source[0] + 0.4), max(source[3], source[1] + 0.4)), part[:2]

    def cast(self, shapes: list[list[tuple[float, float]]], discs: list[tuple[float, float, float]]) -> None:
        """Darkens what has been drawn on the ground.

        Args:
            shapes: polygons of (x, z) in metres.
            discs: (x, z, radius) in metres.
        """
        light = Image.new("L", (self.width, self.height), 255)
        pen, dark = ImageDraw.Draw(light), round(255 * (1 - self.style.shadow * 0.9))
        for shape in shapes:
            pen.polygon([self.project(x, 0, z) for x, z in shape], fill=dark)
        for x, z, radius in discs:
            (u, v), scale = self.project(x, 0, z), self.focal / z
            high = radius * scale * self.camera_height / z
            pen.ellipse((u - radius * scale, v - high, u + radius * scale, v + high), fill=dark)
        light = light.filter(ImageFilter.BoxBlur(2))
        self.image.paste(ImageChops.multiply(self.image, Image.merge("RGB", [light] * 3)))
