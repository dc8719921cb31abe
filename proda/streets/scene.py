"""A scene: places the objects, draws them from far to near, and simulates the camera."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from proda.method import IGNORE
from proda.streets.canvas import FAR, NEAR, SUPERSAMPLING, View
from proda.streets.people import draw_cycle, draw_person
from proda.streets.roadside import draw_lamp, draw_light, draw_sign, draw_tree
from proda.streets.street import draw_boundary, draw_ground, draw_house, draw_sky, draw_skyline
from proda.streets.style import Range, Style
from proda.streets.vehicles import (
    BUS_BODY,
    CAR_BODY,
    TRUCK_BODY,
    VAN_BODY,
    draw_crossing_vehicle,
    draw_vehicle,
)

# Strength of the surface texture for each of the 19 classes, as a multiple of the style's; 0 for other labels.
TEXTURE = np.zeros(256, np.float32)
TEXTURE[:19] = 0.8, 1.0, 1.0, 1.2, 1.0, 0.4, 0.3, 0.2, 2.4, 1.6, 0.2, 0.7, 0.7, 0.4, 0.4, 0.4, 0.4, 0.5, 0.5
MIDDLE_GREY = 118.0  # the grey level that a change of contrast does not alter


def draw_scene(
    rng: np.random.Generator, style: Style, size: tuple[int, int] = (256, 128)
) -> tuple[Image.Image, np.ndarray]:
    """Draws one scene. The result depends on the arguments and the state of the generator only.

    Args:
        rng: source of all randomness.
        style: the appearance of the domain.
        size: (width, height) in pixels.

    Returns:
        an RGB image of ``size``, and its label map: uint8 [H, W] of the 19 train ids or IGNORE.
    """
    view = View(rng, style, size)
    _Street(view).draw()
    if style.bonnet:
        top = view.height * rng.uniform(0.93, 0.96)
        view.ellipse(
            view.width / 2, view.height * 1.1, view.width * 0.4, view.height * 1.1 - top, view.pick("paint"), IGNORE, 0
        )
    labels = np.asarray(view.labels)[::SUPERSAMPLING, ::SUPERSAMPLING].copy()
    return photograph(rng, style, view.image.reduce(SUPERSAMPLING), labels), labels


class _Street:
    """Chooses the objects and their places. Objects are collected in a list and then drawn from far to near."""

    def __init__(self, view: View) -> None:
        self.view, self.rng, style = view, view.rng, view.style
        half = self.rng.uniform(*style.road_half_width)
        middle = -half * self.rng.uniform(0.2, 0.5)  # right-hand traffic: the camera is to the right of the middle
        self.left, self.right, self.walk = middle - half, middle + half, self.rng.uniform(*style.sidewalk_width)
        self.crossing: Range | None = None  # near and far edge (Z) of the side street
        if self.rng.random() < style.crossing:
            near = self.rng.uniform(10, 30)
            self.crossing = (near, near + self.rng.uniform(7, 11))
        self.things: list[tuple[float, Callable[[], None]]] = []
        self.vehicles: list[tuple[float, float]] = []  # X and Z of the vehicles along the street

    def draw(self) -> None:
        draw_sky(self.view)
        draw_ground(self.view, self.left, self.right, self.walk, self.crossing)
        draw_skyline(self.view)
        self._line_with_houses()
        self._park_and_drive()
        self._furnish_and_people()
        for _, draw in sorted(self.things, key=lambda thing: -thing[0]):
            draw()

    def _add(self, depth: float, draw: Callable[..., None], *args: Any, **options: Any) -> None:
        self.things.append((depth, lambda: draw(self.view, *args, **options)))

    def _times(self, thing: str) -> range:
        return range(self.rng.poisson(self.view.style.counts[thing]))

    def _depth(self, near: float, far: float) -> float:
        """A random depth whose logarithm is uniform, so that large and small objects are equally frequent."""
        return math.exp(self.rng.uniform(math.log(near), math.log(far)))

    def _on_sidewalk(self, low: float, high: float) -> float:
        """A random X on one of the sidewalks; ``low`` and ``high`` are distances from the kerb in sidewalk widths."""
        offset = self.rng.uniform(low, high) * self.walk
        return self.left - offset if self.rng.random() < 0.5 else self.right + offset

    def _line_with_houses(self) -> None:
        """Adds houses and gardens along both sides, with a gap for the side street."""
        rng = self.rng
        for side, edge in ((-1.0, self.left - self.walk), (1.0, self.right + self.walk)):
            z = rng.uniform(-14, 2)
            while z < FAR:
                near, far = max(z, NEAR), min(z + rng.uniform(7, 18), FAR)
                z = far + (rng.uniform(0, 3) if rng.random() < 0.2 else 0.0)
                if self.crossing and near < self.crossing[1] + self.walk and far > self.crossing[0] - self.walk:
                    # If there is no room in front of the side street, continue behind it.
                    if near > self.crossing[0] - self.walk - 3:
                        z = max(z, self.crossing[1] + self.walk)
                        continue
                    far, z = self.crossing[0] - self.walk, self.crossing[1] + self.walk
                if far < near + 1:
                    continue
                if rng.random() > self.view.style.open_side:
                    self._add(near + 0.2, draw_house, side, edge, near, far)
                    continue
                self._add(near + 0.1, draw_boundary, side, edge, near, far)
                for _ in range(rng.poisson(1.5)):
                    depth = max(rng.uniform(near, far), 6.0)
                    self._add(depth, draw_tree, edge + side * rng.uniform(1.5, 8), depth)

    def _room(self, x: float, z: float, length: float) -> bool:
        """Reserves a place in a lane for a vehicle; False if another vehicle is too close."""
        if any(abs(x - other_x) < 2.0 and abs(z - other_z) < length for other_x, other_z in self.vehicles):
            return False
        self.vehicles.append((x, z))
        return True

    def _park_and_drive(self) -> None:
        rng, pick = self.rng, self.view.pick
        middle, lane = (self.left + self.right) / 2, (self.right - self.left) / 4
        for thing, bodies in (("bus", [BUS_BODY]), ("truck", [TRUCK_BODY]), ("car", [CAR_BODY, CAR_BODY, VAN_BODY])):
            for _ in self._times(thing):
                body = bodies[rng.integers(len(bodies))]
                colour = pick("bus" if thing == "bus" else "paint")
                if self.crossing and rng.random() < 0.3:
                    x, z = rng.uniform(-14, 14), self.crossing[0] + 2
                    self._add(z, draw_crossing_vehicle, body, x, z, colour, mirrored=bool(rng.random() < 0.5))
                    continue
                oncoming = bool(rng.random() < 0.5)
                x = middle + (-1 if oncoming else 1) * lane * rng.uniform(0.8, 1.2)
                z = self._depth(8 if thing == "car" else 11, 50)
                if self._room(x, z, body.length + 2):
                    self._add(z, draw_vehicle, body, x, z, colour, oncoming=oncoming)
        for _ in self._times("parked"):
            on_left, z = bool(rng.random() < 0.5), self._depth(5, 45)
            x = self.left + 1.0 if on_left else self.right - 1.0
            if self.crossing and self.crossing[0] - 5 < z < self.crossing[1] + 1:
                continue
            if self._room(x, z, 5.2):
                body = VAN_BODY if rng.random() < 0.25 else CAR_BODY
                self._add(z, draw_vehicle, body, x, z, pick("paint"), oncoming=on_left)

    def _furnish_and_people(self) -> None:
        rng = self.rng
        for thing, draw, near, far, low, high in (
            ("tree", draw_tree, 9, 60, 0.2, 0.5),
            ("lamp", draw_lamp, 8, 60, 0.08, 0.25),
            ("light", draw_light, 8, 18, 0.08, 0.25),
            ("sign", draw_sign, 7, 18, 0.08, 0.25),
        ):
            for _ in self._times(thing):
                z = self._depth(near, far)
                self._add(z, draw, self._on_sidewalk(low, high), z)
        for _ in self._times("person"):
            crosses = rng.random() < 0.25
            x = rng.uniform(self.left, self.right) if crosses else self._on_sidewalk(0.1, 0.95)
            z = self._depth(5, 17)
            self._add(z, draw_person, x, z)
            if rng.random() < 0.3:  # a second person
                self._add(z + 0.1, draw_person, x + rng.choice([-0.6, 0.6]), z + 0.1)
        for _ in self._times("rider"):
            x, z = rng.uniform(self.left + 0.5, self.right - 0.5), self._depth(4.5, 12)
            self._add(z, draw_cycle, x, z, motor=bool(rng.random() < 0.35), rider=True)
        for thing in ("motorcycle", "bicycle"):
            for _ in self._times(thing):
                z = self._depth(4.2, 11)
                self._add(z, draw_cycle, self._on_sidewalk(-0.15, 0.7), z, motor=thing == "motorcycle", rider=False)


def photograph(
    rng: np.random.Generator, style: Style, image: Image.Image, labels: np.ndarray, texture: np.ndarray = TEXTURE
) -> Image.Image:
    """Adds surface texture, lens effects, colour processing and sensor noise at the final size.

    ``texture``, float32 [256], is its strength for each label, as a multiple of the style's.
    """
    height, width = labels.shape
    if style.blur:
        image = image.filter(ImageFilter.GaussianBlur(style.blur))
    pixels = np.asarray(image).astype(np.float32)
    fine = rng.standard_normal((height, width), np.float32)
    small = Image.fromarray(rng.standard_normal((height // 4 + 1, width // 4 + 1), np.float32))
    coarse = np.asarray(small.resize((width, height), Image.Resampling.BILINEAR))
    brightness = 1 + style.texture * texture[labels] * (style.grain * fine + coarse)
    if style.vignette:
        y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
        brightness *= 1 - style.vignette * (x**2 + y**2) / 2
    warmth = rng.uniform(*style.warmth)
    gain = rng.uniform(*style.light) * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    saturation, contrast = rng.uniform(*style.saturation), rng.uniform(*style.contrast)
    pixels *= brightness[..., None]
    grey = pixels @ np.full((3, 1), (1 - saturation) / 3, np.float32)
    pixels = (pixels * saturation + grey) * (gain * contrast)
    pixels += style.noise * rng.standard_normal(pixels.shape, np.float32) + MIDDLE_GREY * (1 - contrast)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
