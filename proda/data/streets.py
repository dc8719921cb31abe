"""Streets: small procedural driving scenes in two styles, written in the layouts of GTA5, SYNTHIA and Cityscapes.

The source style is a game (clean, saturated, flat-shaded, wide roads under a blue sky), the target style a camera (haze,
noise, texture, muted colour under an overcast sky, narrow streets with more people and bicycles). Both are drawn by the
same code from a `Style`, so everything that makes the domains differ is a named field of `GAME` and `CAMERA`.

Scenes are drawn in metres and projected: X to the right, Y up, Z ahead, the camera above the origin, the street along Z.
"""

import io
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from proda.data.labels import CLASSES
from proda.method import IGNORE

ROAD, SIDEWALK, BUILDING, WALL, FENCE, POLE, LIGHT, SIGN, VEGETATION, TERRAIN = range(10)
SKY, PERSON, RIDER, CAR, TRUCK, BUS, TRAIN, MOTORCYCLE, BICYCLE = range(10, 19)

VERSION = 1  # of the drawings: raise it with every change of a pixel, and folders of another version are refused

MARKER, PART_MARKER = "streets.json", "streets.part.json"
TRAIN_CITIES, VAL_CITIES = ("alderbach", "birkenau", "carlsfeld"), ("dornheim",)

Colour = tuple[int, int, int]
Range = tuple[float, float]
Point = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """Everything in which the two domains may differ. Ranges are drawn from uniformly, counts are Poisson means."""

    name: str
    # The camera and the street, in metres.
    camera_height: Range
    horizon: Range  # share of the image height above the vanishing point
    swerve: float  # largest shift of the vanishing point, as a share of the image width
    road_half_width: Range
    sidewalk_width: Range
    building_height: Range
    open_side: float  # probability that a stretch of the roadside is a garden instead of a house
    crossing: float  # probability of a side street
    # How many of each.
    counts: dict[str, float] = field(hash=False)
    # Colours of each material.
    palettes: dict[str, str] = field(hash=False)  # six hexadecimal digits a colour, red first
    colour_jitter: float  # deviation of an object's colour from its palette, in grey levels
    european: bool  # forms of signs, lights and road markings
    # Light.
    light: Range  # brightness of the scene
    shadow: float  # darkness of cast shadows and of the side of things away from the sun, 0..1
    clouds: float  # 0 clear .. 1 overcast
    haze: float  # extinction per metre
    # The image.
    texture: float  # deviation of the surface texture, as a share of the brightness
    saturation: Range
    contrast: Range
    warmth: Range  # white balance: red gains what blue loses
    vignette: float  # darkening of the corners, 0..1
    blur: float  # radius of the lens blur in pixels
    noise: float  # deviation of the sensor noise in grey levels
    bonnet: bool = False  # the own car's bonnet at the lower edge, labelled to be ignored


GAME = Style(
    name="game",
    camera_height=(1.4, 2.0),
    horizon=(0.40, 0.52),
    swerve=0.14,
    road_half_width=(4.5, 7.5),
    sidewalk_width=(2.0, 3.5),
    building_height=(7.0, 30.0),
    open_side=0.3,
    crossing=0.4,
    counts=dict(car=3.0, parked=2.5, bus=0.55, truck=0.4, person=3.0, rider=0.9, motorcycle=0.8, bicycle=0.9, light=1.8, sign=1.8, tree=3.0, lamp=1.5),
    palettes=dict(
        sky="468ce1 5fa0eb",
        horizon="b9d7f0 cddeec",
        road="58585e 4e4e54 626064",
        marking="ebebe1 ebc33c",
        sidewalk="b0a89c beb8ac a5a09e",
        kerb="cdc8be",
        building="c47854 d6b280 965a4c 788ca5 e1cdaa aaa096",
        window="466991 5f82a5 324664",
        wall="96918c a5785f",
        fence="785f46 50555a",
        leaf="3a8c30 509e34 2e7834",
        trunk="6e4e32",
        grass="68a842 7cac48",
        pole="5a5c5f 787a7c",
        light="deb028 cda028",
        paint="c82828 2850b4 ebebeb 1e1e22 e6b428 3c8c5a 969ba0",
        bus="ebaf23 e1961e 3c6ebe",
        motorcycle="be2823 282d96 19191c",
        bicycle="c82d2d 285abe f0be28",
        shirt="cd3c3c 3c5fbe ebe1d7 ebaa32 5a3c82 3c966e",
        trousers="323e69 46464c 826c50",
        skin="e1b496 aa785a 6e4b37",
    ),
    colour_jitter=8.0,
    european=False,
    light=(0.95, 1.08),
    shadow=0.35,
    clouds=0.25,
    haze=0.001,
    texture=0.02,
    saturation=(1.0, 1.2),
    contrast=(1.0, 1.1),
    warmth=(0.0, 0.04),
    vignette=0.0,
    blur=0.0,
    noise=1.0,
)

CAMERA = Style(
    name="camera",
    camera_height=(1.2, 1.5),
    horizon=(0.40, 0.47),
    swerve=0.08,
    road_half_width=(3.6, 5.5),
    sidewalk_width=(2.0, 4.5),
    building_height=(9.0, 20.0),
    open_side=0.35,
    crossing=0.5,
    counts=dict(car=2.0, parked=4.0, bus=0.45, truck=0.25, person=4.5, rider=1.2, motorcycle=0.6, bicycle=1.3, light=1.6, sign=2.2, tree=4.5, lamp=1.5),
    palettes=dict(
        sky="b0becc 96acc8 c4cad0",
        horizon="d6dadc cdd2d6",
        road="686664 5c5c5c 72706c",
        marking="cdcdc8",
        sidewalk="928e8a 9e9690 867e7a",
        kerb="a5a29e",
        building="baa086 a07864 c4baa8 847e78 ac9478 cec8be",
        window="46505a 5f6970 363a40",
        wall="807a72 8c6e60",
        fence="5a544a 464c4a",
        leaf="4a683a 5c703c 3c583a 70703e",
        trunk="54483c",
        grass="70824e 7c8054",
        pole="6e7070 565a5a",
        light="2c302e 363832",
        paint="2a2c30 969a9e ced0d0 60646a 364468 7e2c2a 46484c",
        bus="c4ba96 b23c34 cececa",
        motorcycle="2e2e32 6e2828 565a60",
        bicycle="36383c 606468 6e3632",
        shirt="3e4250 6e3c3a 96928c 566054 303034 b0966e",
        trousers="343a4c 302e30 685e50",
        skin="d0a890 96705a 684e40",
    ),
    colour_jitter=10.0,
    european=True,
    light=(0.82, 1.08),
    shadow=0.25,
    clouds=0.8,
    haze=0.006,
    texture=0.07,
    saturation=(0.75, 1.0),
    contrast=(0.85, 1.0),
    warmth=(-0.05, 0.05),
    vignette=0.2,
    blur=0.5,
    noise=5.0,
    bonnet=True,
)

# Share of a style's texture that each class shows; the sky has clouds of its own.
TEXTURE = np.array([0.8, 1.0, 1.0, 1.2, 1.0, 0.4, 0.3, 0.2, 2.4, 1.6, 0.2, 0.7, 0.7, 0.4, 0.4, 0.4, 0.4, 0.5, 0.5])
FAR, NEAR = 140.0, 2.2  # metres: where the street ends, and a depth that lies below the lower edge of the image
SUPERSAMPLING = 2


class _View:
    """A canvas for image and labels together, with the projection from metres onto it."""

    def __init__(self, rng: np.random.Generator, style: Style, size: tuple[int, int]) -> None:
        width, height = size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING
        self.rng, self.style, self.width, self.height = rng, style, width, height
        self.image = Image.new("RGB", (width, height))
        self.labels = Image.new("L", (width, height), IGNORE)
        self._pen, self._label_pen = ImageDraw.Draw(self.image), ImageDraw.Draw(self.labels)
        self.focal = width
        self.camera_height = rng.uniform(*style.camera_height)
        self.horizon = height * rng.uniform(*style.horizon)
        self.vanishing_x = width * (0.5 + rng.uniform(-1, 1) * style.swerve)
        self.sun = float(rng.choice([-1.0, 1.0]))  # the side of the street that the light comes from
        self.haze_colour = self.pick("horizon")

    def pick(self, material: str) -> Colour:
        colour = bytes.fromhex(self.rng.choice(self.style.palettes[material].split()))
        shift = self.rng.normal(0, self.style.colour_jitter, 4).tolist()
        return tuple(int(c + shift[0] + 0.4 * s) for c, s in zip(colour, shift[1:], strict=True))

    def project(self, x: float, y: float, z: float) -> Point:
        z = max(z, NEAR)
        scale = self.focal / z
        return self.vanishing_x + x * scale, self.horizon + (self.camera_height - y) * scale

    def seen_through_haze(self, colour: Colour, z: float) -> Colour:
        share = math.exp(-self.style.haze * z)
        (r, g, b), (hr, hg, hb) = colour, self.haze_colour
        rest = 1 - share
        return _clip(share * r + rest * hr), _clip(share * g + rest * hg), _clip(share * b + rest * hb)

    def polygon(self, points: Sequence[Point], colour: Colour | None, label: int | None, z: float = 0.0) -> None:
        """Fill a polygon given on the canvas, in the image and (unless None) in the labels."""
        if colour is not None:
            self._pen.polygon(points, fill=self.seen_through_haze(colour, z))
        if label is not None:
            self._label_pen.polygon(points, fill=label)

    def face(self, points: Sequence[tuple[float, float, float]], colour: Colour, label: int | None = None) -> None:
        """Fill a polygon given in metres."""
        z = sum(max(p[2], NEAR) for p in points) / len(points)
        self.polygon([self.project(*p) for p in points], colour, label, z)

    def ellipse(self, box: Sequence[float], colour: Colour | None, label: int | None, z: float, rim: float = 0) -> None:
        """Fill an ellipse; with a rim width, only its outline in the image and all of it in the labels."""
        if colour is not None:
            colour = self.seen_through_haze(colour, z)
            if rim:
                self._pen.ellipse(box, outline=colour, width=max(1, round(rim)))
            else:
                self._pen.ellipse(box, fill=colour)
        if label is not None:
            self._label_pen.ellipse(box, fill=label)

    def line(self, points: Sequence[Point], colour: Colour, width: float, label: int | None, z: float) -> None:
        width = max(1, round(width))
        self._pen.line(points, fill=self.seen_through_haze(colour, z), width=width, joint="curve")
        if label is not None:
            self._label_pen.line(points, fill=label, width=max(SUPERSAMPLING, width), joint="curve")

    def ground(self, left: float, right: float, near: float, far: float, colour: Colour, label: int | None = None) -> None:
        self.face([(left, 0, near), (right, 0, near), (right, 0, far), (left, 0, far)], colour, label)

    def gradient(self, top: Colour, bottom: Colour, height: int) -> None:
        ramp = np.linspace(top, bottom, max(height, 1)).clip(0, 255).astype(np.uint8)
        self.image.paste(Image.fromarray(np.repeat(ramp[:, None], self.width, 1)), (0, 0))


class _Sprite:
    """A flat thing that faces the camera: coordinates in metres from its foot, u to the right and v up."""

    def __init__(self, view: _View, x: float, z: float, label: int | None, *, squeeze: float = 1.0, y: float = 0.0):
        self.view, self.z, self.label = view, z, label
        self.scale = view.focal / z
        self.squeeze = squeeze * self.scale  # horizontal metres to canvas: below 1 it is seen from an angle
        self.x, self.y = view.project(x, y, z)

    def point(self, u: float, v: float) -> Point:
        return self.x + u * self.squeeze, self.y - v * self.scale

    def polygon(self, points: Sequence[Point], colour: Colour | None, *, label: bool = True) -> None:
        self.view.polygon([self.point(*p) for p in points], colour, self.label if label else None, self.z)

    def rectangle(self, u0: float, v0: float, u1: float, v1: float, colour: Colour, *, label: bool = True) -> None:
        self.polygon([(u0, v0), (u1, v0), (u1, v1), (u0, v1)], colour, label=label)

    def disc(
        self, u: float, v: float, radius: float, colour: Colour | None, *, rim: float = 0, tall: float = 1, label: bool = True
    ) -> None:
        x, y = self.point(u, v)
        rx, ry = radius * abs(self.squeeze), radius * tall * self.scale
        box = (x - rx, y - ry, x + rx, y + ry)
        self.view.ellipse(box, colour, self.label if label else None, self.z, rim * self.scale)

    def line(self, points: Sequence[Point], colour: Colour, width: float, *, label: bool = True) -> None:
        points = [self.point(*p) for p in points]
        self.view.line(points, colour, width * self.scale, self.label if label else None, self.z)

    def shadow(self, radius: float) -> None:
        """A soft-looking dark patch on the ground; it belongs to the ground, so the labels stay."""
        x, y, rx, ry = self.x, self.y, radius * abs(self.squeeze), 0.24 * radius * self.scale
        self.view.ellipse((x - rx, y - ry, x + rx, y + ry), (48, 48, 50), None, self.z)


def _clip(value: float) -> int:
    return 0 if value < 0 else 255 if value > 255 else int(value)


def _shade(colour: Colour, factor: float) -> Colour:
    r, g, b = colour
    return _clip(r * factor), _clip(g * factor), _clip(b * factor)


# The street itself.


def _draw_sky(view: _View) -> None:
    rng, style = view.rng, view.style
    view.gradient(view.pick("sky"), view.haze_colour, int(view.horizon) + 2)
    view.polygon([(0, 0), (view.width, 0), (view.width, view.horizon + 2), (0, view.horizon + 2)], None, SKY)
    for _ in range(rng.poisson(12 * style.clouds)):
        x, y = rng.uniform(0, view.width), rng.uniform(0, 0.8 * view.horizon)
        for _ in range(4):
            rx = rng.uniform(0.03, 0.10) * view.width
            ry = rx * rng.uniform(0.15, 0.35)
            grey = int(rng.uniform(200, 245))
            view.ellipse((x - rx, y - ry, x + rx, y + ry), (grey, grey, min(255, grey + 4)), None, 0)
            x, y = x + rng.normal(0, rx), y + rng.normal(0, ry / 2)


def _draw_ground(view: _View, left: float, right: float, walk: float, crossing: Range | None) -> None:
    """Terrain, sidewalks and the road between X = left and X = right, and a side street at a range of Z."""
    rng, style = view.rng, view.style
    road, pavement, kerb, marking = (view.pick(m) for m in ("road", "sidewalk", "kerb", "marking"))
    view.ground(-400, 400, NEAR, FAR * 3, view.pick("grass"), TERRAIN)
    for inner, outer in ((left, left - walk), (right, right + walk)):
        view.ground(outer, inner, NEAR, FAR, pavement, SIDEWALK)
        joint = _shade(pavement, 0.9)
        for z in np.arange(3, 30, 1.6):  # slabs
            view.ground(outer, inner, z, z + 0.10, joint)
    # In bands, so that haze and light change with depth instead of with the polygon.
    for near, far in ((60, FAR), (30, 60), (14, 30), (NEAR, 14)):
        view.ground(left, right, near, far, road, ROAD)
    for x in (left, right):
        view.ground(x - 0.15, x + 0.15, NEAR, FAR, kerb, SIDEWALK)
    if crossing:
        view.ground(-60, 60, *crossing, road, ROAD)
    for _ in range(rng.poisson(3)):  # repairs and stains
        x, z = rng.uniform(left, right), rng.uniform(5, 30)
        view.ground(x, x + rng.uniform(0.5, 2), z, z * rng.uniform(1.1, 1.5), _shade(road, rng.uniform(0.85, 1.1)))
    lanes = 2 if right - left < 11 else 4
    for lane in range(1, lanes):
        x = left + (right - left) * lane / lanes
        middle = lane * 2 == lanes
        if middle and not style.european:
            for shift in (-0.16, 0.16):
                view.ground(x + shift - 0.07, x + shift + 0.07, NEAR, FAR, (225, 180, 50))
        else:
            for z in np.arange(rng.uniform(2, 8), 60, 8.0):
                view.ground(x - 0.08, x + 0.08, z, z + 3.5, marking)
    if crossing and crossing[0] > 9:
        near = crossing[0] - 3
        for x in np.arange(left + 0.4, right - 0.4, 1.1):
            view.ground(x, x + 0.55, near, near + 2.2, marking)
        if not style.european:
            view.ground(left, (left + right) / 2, near - 1.2, near - 0.8, marking)


def _draw_house(view: _View, side: float, x: float, near: float, far: float) -> None:
    """A house whose front stands along the street at X = x, from Z = near to far."""
    rng, style = view.rng, view.style
    height = rng.uniform(*style.building_height)
    wall, window = view.pick("building"), view.pick("window")
    lit = 1.0 if side != view.sun else 1 - style.shadow
    depth = x + side * 14
    gable = _shade(wall, (1 - 0.6 * style.shadow) * 0.95)
    view.face([(x, 0, near), (depth, 0, near), (depth, height, near), (x, height, near)], gable, BUILDING)
    front = _shade(wall, lit)
    view.face([(x, 0, near), (x, 0, far), (x, height, far), (x, height, near)], front, BUILDING)
    plinth = _shade(front, 0.75)
    view.face([(x, 0, near), (x, 0, far), (x, 0.7, far), (x, 0.7, near)], plinth)
    view.face([(x, height - 0.5, near), (x, height - 0.5, far), (x, height, far), (x, height, near)], _shade(front, 1.12))
    if near > 70:
        return
    storey, bay = rng.uniform(2.8, 3.6), rng.uniform(2.2, 4.0)
    tall, wide = storey * rng.uniform(0.45, 0.65), bay * rng.uniform(0.35, 0.65)
    glass = _shade(window, lit)
    shop = rng.random() < 0.4
    for z in np.arange(max(near, NEAR) + 0.6, far - wide, bay):
        if not -20 < view.project(x, 2, z)[0] < view.width + 20 and not -20 < view.project(x, 2, z + wide)[0] < view.width + 20:
            continue
        if shop and far < 60:
            view.face([(x, 0.5, z), (x, 0.5, z + bay * 0.8), (x, 2.4, z + bay * 0.8), (x, 2.4, z)], _shade(glass, 0.8))
        for y in np.arange(storey + 0.7 if shop else 1.0, height - tall - 0.4, storey):
            if view.project(x, y, z + wide)[1] < -10:
                break
            view.face([(x, y, z), (x, y, z + wide), (x, y + tall, z + wide), (x, y + tall, z)], glass)
    if view.project(x + side * 3, 2, near)[0] * side > view.width * max(side, 0) or near < 4:
        return
    for u in np.arange(1.0, 12, bay):
        for y in np.arange(1.0, height - tall - 0.4, storey):
            a, b = x + side * u, x + side * (u + wide)
            view.face([(a, y, near), (b, y, near), (b, y + tall, near), (a, y + tall, near)], _shade(window, 0.85))


def _draw_boundary(view: _View, side: float, x: float, near: float, far: float) -> None:
    """What closes a garden towards the street: a wall, a fence, a hedge or nothing."""
    kind = view.rng.choice(["wall", "fence", "hedge", "open"], p=[0.2, 0.25, 0.3, 0.25])
    if kind == "wall":
        height, colour = view.rng.uniform(1.2, 2.5), view.pick("wall")
        view.face([(x, 0, near), (x, 0, far), (x, height, far), (x, height, near)], colour, WALL)
        view.face([(x, height, near), (x, height, far), (x, height + 0.15, far), (x, height + 0.15, near)], _shade(colour, 1.2))
    elif kind == "fence":
        colour = view.pick("fence")
        corners = [(x, 0, near), (x, 0, far), (x, 1.3, far), (x, 1.3, near)]
        view.polygon([view.project(*p) for p in corners], None, FENCE)
        for y in (0.25, 1.15):
            view.face([(x, y, near), (x, y, far), (x, y + 0.12, far), (x, y + 0.12, near)], colour)
        for z in np.arange(max(near, 3), min(far, 40), 0.5):
            view.face([(x, 0, z), (x, 0, z + 0.22), (x, 1.3, z + 0.22), (x, 1.3, z)], colour)
    elif kind == "hedge":
        height, colour = view.rng.uniform(0.8, 2.2), view.pick("leaf")
        view.face([(x, 0, near), (x + side * 3, 0, near), (x + side * 3, height, near), (x, height, near)], colour, VEGETATION)
        view.face([(x, 0, near), (x, 0, far), (x, height, far), (x, height, near)], _shade(colour, 0.9), VEGETATION)


def _draw_skyline(view: _View) -> None:
    """Far houses and trees around the vanishing point."""
    rng = view.rng
    x = -120.0
    while x < 120:
        width = rng.uniform(8, 25)
        if rng.random() < 0.45:
            height, colour = rng.uniform(6, 22), view.pick("building")
            sprite = _Sprite(view, x, FAR, BUILDING)
            sprite.rectangle(0, 0, width, height, colour)
            for v in np.arange(2, height - 2, 4):
                sprite.rectangle(1.5, v, width - 1.5, v + 1.5, _shade(colour, 0.8), label=False)
        elif rng.random() < 0.7:
            _draw_crown(_Sprite(view, x + width / 2, FAR, VEGETATION), width / 2, 4.0, view.pick("leaf"))
        x += width


# Things beside the road.


def _draw_crown(sprite: _Sprite, radius: float, middle: float, colour: Colour) -> None:
    rng, sun = sprite.view.rng, sprite.view.sun
    for ring, tone in ((0.75, 0.78), (0.6, 0.92), (0.35, 1.08)):
        for angle in rng.uniform(0, 2 * np.pi, 6):
            u, v = ring * 0.7 * radius * np.cos(angle), ring * 0.6 * radius * np.sin(angle)
            shift = (0.8 - ring) * radius * 0.5
            size = radius * rng.uniform(0.35, 0.55)
            sprite.disc(u + sun * shift, middle + v + shift, size, _shade(colour, tone * rng.uniform(0.93, 1.07)))


def _draw_tree(view: _View, x: float, z: float) -> None:
    rng = view.rng
    sprite = _Sprite(view, x, z, VEGETATION)
    height, radius, trunk = rng.uniform(4, 9), rng.uniform(1.4, 2.8), view.pick("trunk")
    sprite.shadow(radius * 0.8)
    sprite.rectangle(-0.16, 0, 0.16, height - radius, trunk)
    _draw_crown(sprite, radius, max(height - radius * 0.6, 2.2 + radius * 0.5), view.pick("leaf"))


def _draw_pole(sprite: _Sprite, height: float, colour: Colour) -> None:
    sprite.rectangle(-0.06, 0, 0.06, height, colour)
    sprite.rectangle(-0.1, 0, 0.1, 0.5, _shade(colour, 0.8))


def _draw_lamp(view: _View, x: float, z: float) -> None:
    sprite, colour, arm = _Sprite(view, x, z, POLE), view.pick("pole"), -np.sign(x) * 1.6
    height = view.rng.uniform(5.5, 8)
    _draw_pole(sprite, height, colour)
    sprite.line([(0, height), (arm, height + 0.3)], colour, 0.1)
    sprite.rectangle(arm - 0.35, height + 0.2, arm + 0.35, height + 0.4, _shade(colour, 1.3))


def _draw_light(view: _View, x: float, z: float) -> None:
    """A traffic light on a pole, sometimes on an arm above the road."""
    rng = view.rng
    colour, housing = view.pick("pole"), view.pick("light")
    pole = _Sprite(view, x, z, POLE)
    heads = [(0.0, rng.uniform(2.4, 3.2))]
    if rng.random() < (0.3 if view.style.european else 0.6):
        arm = -np.sign(x) * rng.uniform(2, 4)
        _draw_pole(pole, 5.6, colour)
        pole.line([(0, 5.3), (arm, 5.5)], colour, 0.12)
        heads.append((arm, 4.6))
    _draw_pole(pole, heads[0][1], colour)
    lit = rng.integers(3)
    for u, v in heads:
        head = _Sprite(view, x, z, LIGHT)
        head.rectangle(u - 0.24, v, u + 0.24, v + 1.3, housing)
        for lamp, bright in enumerate(((255, 40, 30), (255, 190, 40), (50, 235, 120))):
            tone = bright if lamp == lit else _shade(bright, 0.28)
            head.disc(u, v + 1.05 - 0.4 * lamp, 0.16, tone, label=False)


def _draw_sign(view: _View, x: float, z: float) -> None:
    rng = view.rng
    colour = view.pick("pole")
    height = rng.uniform(2.1, 2.8)
    _draw_pole(_Sprite(view, x, z, POLE), height + 0.3, colour)
    sign = _Sprite(view, x, z, SIGN)
    r, v = rng.uniform(0.42, 0.6), height + 0.35
    red, white, blue = (200, 36, 40), (236, 236, 236), (30, 80, 170)
    octagon = [(r * np.cos(a), v + r * np.sin(a)) for a in np.arange(8) * np.pi / 4 + np.pi / 8]
    diamond = [(0, v - r), (r, v), (0, v + r), (-r, v)]
    kinds = ["ring", "triangle", "disc", "priority", "plate"] if view.style.european else ["stop", "diamond", "plate", "board"]
    kind = rng.choice(kinds)
    if kind == "ring":
        sign.disc(0, v, r, red)
        sign.disc(0, v, r * 0.7, white, label=False)
        sign.rectangle(-r * 0.3, v - r * 0.25, r * 0.3, v + r * 0.25, (40, 40, 40), label=False)
    elif kind == "triangle":
        sign.polygon([(-r, v - 0.7 * r), (r, v - 0.7 * r), (0, v + r)], red)
        sign.polygon([(-r * 0.6, v - 0.5 * r), (r * 0.6, v - 0.5 * r), (0, v + 0.55 * r)], white, label=False)
    elif kind == "disc":
        sign.disc(0, v, r, blue)
        sign.polygon([(-r * 0.5, v), (0, v + r * 0.6), (r * 0.5, v), (0, v - r * 0.1)], white, label=False)
    elif kind == "priority":
        sign.polygon(diamond, white)
        sign.polygon([(0.7 * u, v + 0.7 * (w - v)) for u, w in diamond], (240, 190, 30), label=False)
    elif kind == "stop":
        sign.polygon(octagon, (205, 30, 36))
        sign.rectangle(-r * 0.6, v - r * 0.15, r * 0.6, v + r * 0.15, white, label=False)
    elif kind == "diamond":
        sign.polygon(diamond, (245, 190, 30))
        sign.rectangle(-r * 0.12, v - r * 0.45, r * 0.12, v + r * 0.45, (40, 40, 40), label=False)
    elif kind == "plate":
        sign.rectangle(-r * 0.75, v - r, r * 0.75, v + r, white if not view.style.european else blue)
        sign.rectangle(-r * 0.4, v - r * 0.6, r * 0.4, v + r * 0.5, (40, 40, 40) if not view.style.european else white, label=False)
    else:
        sign.rectangle(-r * 1.8, v - r * 0.6, r * 1.8, v + r * 0.7, (30, 130, 70))
        for w in (-0.2, 0.3):
            sign.rectangle(-r * 1.4, v + r * w - 0.05, r * 1.2, v + r * w + 0.07, white, label=False)


# People and what they ride.


def _draw_person(view: _View, x: float, z: float) -> None:
    rng = view.rng
    person = _Sprite(view, x, z, PERSON)
    shirt, trousers, skin = view.pick("shirt"), view.pick("trousers"), view.pick("skin")
    hair = _shade(skin, rng.uniform(0.25, 0.6))
    size = rng.uniform(0.92, 1.08)
    stride, swing = rng.uniform(0.05, 0.28), rng.uniform(0.02, 0.25)
    person.shadow(0.35)
    for foot, tone in ((-stride, 0.85), (stride, 1.0)):
        person.line([(0, 0.9 * size), (foot * 0.6, 0.48 * size), (foot, 0.05)], _shade(trousers, tone), 0.19)
        person.rectangle(foot - 0.08, 0, foot + 0.14, 0.08, (40, 36, 34))
    for hand, tone in ((-swing, 0.8), (swing, 0.9)):
        side = np.sign(hand)
        person.line([(side * 0.2, 1.38 * size), (side * 0.26 + hand * 0.3, 0.95 * size)], _shade(shirt, tone), 0.12)
    person.polygon([(-0.19, 0.85 * size), (0.19, 0.85 * size), (0.25, 1.42 * size), (-0.25, 1.42 * size)], shirt)
    person.rectangle(-0.06, 1.4 * size, 0.06, 1.5 * size, skin)
    person.disc(0, 1.6 * size, 0.135, hair, tall=1.2)
    person.disc(0.02, 1.57 * size, 0.105, skin, tall=1.15, label=False)
    if rng.random() < 0.3:
        person.rectangle(-0.34, 0.62 * size, -0.2, 0.95 * size, view.pick("shirt"))


def _draw_bicycle(view: _View, x: float, z: float, angle: float, *, motor: bool = False, ridden: bool = False) -> None:
    """A bicycle or a motorcycle from the side; `angle` squeezes it (1 seen from the side), its sign is the direction."""
    rng = view.rng
    bike = _Sprite(view, x, z, MOTORCYCLE if motor else BICYCLE, squeeze=angle)
    colour, dark = view.pick("motorcycle" if motor else "bicycle"), (28, 28, 30)
    bike.shadow(0.8)
    if motor:
        for u in (-0.68, 0.68):
            bike.disc(u, 0.32, 0.32, dark)
            bike.disc(u, 0.32, 0.16, (130, 132, 136), label=False)
        bike.polygon([(-0.7, 0.32), (-0.45, 0.75), (0.5, 0.85), (0.68, 0.35), (0.2, 0.22), (-0.3, 0.22)], _shade(colour, 0.5))
        bike.polygon([(-0.1, 0.72), (0.0, 0.98), (0.4, 1.0), (0.5, 0.75)], colour)
        bike.polygon([(-0.9, 0.78), (-0.8, 0.92), (0.0, 0.86), (0.0, 0.72), (-0.6, 0.7)], dark)
        bike.polygon([(-0.95, 0.62), (-0.55, 0.8), (-0.4, 0.55), (-0.75, 0.5)], colour)
        bike.polygon([(0.42, 0.7), (0.45, 1.12), (0.62, 0.98), (0.68, 0.7)], colour)
        bike.line([(0.68, 0.32), (0.42, 1.08), (0.28, 1.12)], (110, 112, 116), 0.07)
        bike.disc(0.62, 0.85, 0.1, (240, 236, 200), label=False)
    else:
        for u in (-0.52, 0.52):
            bike.disc(u, 0.34, 0.35, dark, rim=0.06)
            bike.disc(u, 0.34, 0.05, dark, label=False)
        bike.polygon([(-0.52, 0.34), (-0.2, 0.88), (0.36, 0.86), (0.45, 0.34)], None)
        bike.line([(-0.52, 0.34), (-0.06, 0.3), (0.38, 0.78), (-0.17, 0.78), (-0.52, 0.34)], colour, 0.065, label=False)
        bike.line([(-0.06, 0.3), (-0.21, 0.95)], colour, 0.06, label=False)
        bike.line([(0.52, 0.34), (0.36, 0.98), (0.5, 1.05)], colour, 0.06)
        bike.line([(-0.34, 0.96), (-0.1, 0.96)], dark, 0.08)
    if not ridden:
        return
    rider = _Sprite(view, x, z, RIDER, squeeze=angle)
    shirt, trousers, skin = view.pick("shirt"), view.pick("trousers"), view.pick("skin")
    hip, knee, foot = (-0.2, 0.98), (0.16, 0.72), (0.0, 0.26)
    rider.line([hip, (knee[0] - 0.1, knee[1] - 0.12), (foot[0] - 0.12, foot[1] + 0.16)], _shade(trousers, 0.8), 0.15)
    rider.line([hip, knee, foot], trousers, 0.17)
    lean = rng.uniform(0.1, 0.25)
    rider.polygon([(-0.34, 0.9), (-0.04, 0.9), (lean + 0.14, 1.5), (lean - 0.16, 1.5)], shirt)
    rider.line([(lean + 0.04, 1.42), (0.24, 1.18), (0.42, 1.1)], _shade(shirt, 0.85), 0.12)
    helmet = view.pick("shirt") if motor or rng.random() < 0.6 else _shade(skin, 0.4)
    rider.disc(lean + 0.08, 1.68, 0.15, helmet, tall=1.1)
    rider.disc(lean + 0.13, 1.64, 0.09, skin if not motor else (30, 32, 36), tall=1.1, label=False)


# Vehicles: a profile along the street, extruded to the vehicle's width.

# Outline and windows of the side as (share of the length from the rear, height in metres).
_CAR_SIDE = ((0.0, 0.3), (0.0, 0.88), (0.06, 0.95), (0.17, 1.45), (0.58, 1.47), (0.74, 0.98), (0.97, 0.85), (1.0, 0.3))
_CAR_WINDOWS = (((0.14, 0.98), (0.22, 1.36), (0.38, 1.38), (0.38, 0.98)), ((0.41, 0.98), (0.41, 1.38), (0.56, 1.38), (0.69, 0.98)))
_VAN_SIDE = ((0.0, 0.3), (0.0, 0.95), (0.03, 1.78), (0.65, 1.82), (0.82, 1.1), (0.98, 0.95), (1.0, 0.3))
_VAN_WINDOWS = (((0.05, 1.05), (0.07, 1.65), (0.36, 1.68), (0.36, 1.05)), ((0.39, 1.05), (0.39, 1.68), (0.62, 1.68), (0.76, 1.05)))
_BUS_SIDE = ((0.0, 0.35), (0.0, 3.0), (0.02, 3.15), (0.98, 3.15), (1.0, 3.0), (1.0, 0.35))
_BUS_WINDOWS = tuple(((a, 1.35), (a, 2.5), (a + 0.12, 2.5), (a + 0.12, 1.35)) for a in (0.03, 0.17, 0.31, 0.45, 0.59, 0.73, 0.86))
_TRUCK_SIDE = ((0.0, 0.5), (0.0, 3.2), (0.72, 3.2), (0.72, 2.5), (0.92, 2.5), (1.0, 1.4), (1.0, 0.4))
_TRUCK_WINDOWS = (((0.8, 1.5), (0.8, 2.3), (0.91, 2.3), (0.96, 1.5)),)


@dataclass(frozen=True)
class _Body:
    label: int
    length: float
    width: float
    side: tuple[Point, ...]
    windows: tuple[tuple[Point, ...], ...]
    wheels: tuple[float, float]
    wheel: float
    roof: float  # height
    sill: float  # height where the rear window begins


_CAR = _Body(CAR, 4.3, 1.8, _CAR_SIDE, _CAR_WINDOWS, (0.19, 0.80), 0.33, 1.46, 0.96)
_VAN = _Body(CAR, 4.6, 1.9, _VAN_SIDE, _VAN_WINDOWS, (0.19, 0.81), 0.35, 1.80, 1.05)
_BUS = _Body(BUS, 11.0, 2.5, _BUS_SIDE, _BUS_WINDOWS, (0.2, 0.82), 0.5, 3.15, 1.35)
_TRUCK = _Body(TRUCK, 8.0, 2.4, _TRUCK_SIDE, _TRUCK_WINDOWS, (0.2, 0.85), 0.5, 3.2, 3.2)


def _draw_vehicle(view: _View, body: _Body, x: float, z: float, colour: Colour, *, oncoming: bool) -> None:
    """A vehicle along the street, its near end at Z = z: one side and the end that faces the camera."""
    glass, dark = _shade(view.pick("window"), 0.7), (26, 26, 28)
    half = body.width / 2
    flank = x + half if x < 0 else x - half  # the side that turns to the camera

    def along(share: float) -> float:
        return z + body.length * (1 - share if oncoming else share)

    view.face([(x - half - 0.1, 0, z - 0.2), (x + half + 0.1, 0, z - 0.2), (x + half, 0, along(not oncoming)), (x - half, 0, along(not oncoming))], (44, 44, 46))
    tone = 0.92 if np.sign(x) != view.sun else 0.92 - 0.5 * view.style.shadow
    view.face([(flank, h, along(s)) for s, h in body.side], _shade(colour, tone), body.label)
    for window in body.windows:
        view.face([(flank, h, along(s)) for s, h in window], glass)
    for share in body.wheels:
        middle, r = along(share), body.wheel
        (x0, y0), (x1, y1) = view.project(flank, 2 * r, middle - r), view.project(flank, 0, middle + r)
        top, bottom = view.project(flank, 2 * r, middle)[1], view.project(flank, 0, middle)[1]
        view.ellipse((min(x0, x1), top, max(x0, x1), bottom), dark, body.label, middle)
        inset_x, inset_y = abs(x1 - x0) * 0.27, (bottom - top) * 0.27
        view.ellipse((min(x0, x1) + inset_x, top + inset_y, max(x0, x1) - inset_x, bottom - inset_y), (140, 142, 146), None, middle)
    end = _Sprite(view, x, z, body.label)
    light = (250, 246, 215) if oncoming else (205, 30, 30)
    bottom = body.side[0][1]
    for u in (-half + 0.12, half - 0.34):
        end.rectangle(u, 0, u + 0.22, bottom + 0.15, dark)
    taper = 0.16 if body.label == CAR else 0.0
    end.polygon([(-half, bottom), (half, bottom), (half, min(0.95, body.sill)), (-half, min(0.95, body.sill))], colour)
    end.polygon([(-half, min(0.95, body.sill) - 0.02), (half, min(0.95, body.sill) - 0.02), (half - taper, body.roof), (-half + taper, body.roof)], colour)
    end.rectangle(-half, bottom, half, bottom + 0.2, _shade(colour, 0.55), label=False)
    if body.label == TRUCK and not oncoming:
        end.rectangle(-0.03, 0.9, 0.03, 3.1, _shade(colour, 0.7), label=False)
    else:
        sill = body.sill if body.label != TRUCK else 1.5
        end.polygon([(-half + 0.14, sill), (half - 0.14, sill), (half - taper - 0.14, body.roof - 0.14 - 0.15 * (body.label != CAR)), (-half + taper + 0.14, body.roof - 0.14 - 0.15 * (body.label != CAR))], glass, label=False)
    height = 0.72 if body.label == CAR else 0.8
    for u in (-half + 0.08, half - 0.42):
        end.rectangle(u, height - 0.1, u + 0.34, height + 0.1, light, label=False)
    end.rectangle(-0.26, 0.5, 0.26, 0.62, (232, 232, 226), label=False)


def _draw_crossing_vehicle(view: _View, body: _Body, x: float, z: float, colour: Colour, direction: float) -> None:
    """A vehicle on the side street, seen from its side."""
    sprite = _Sprite(view, x, z, body.label, squeeze=direction)
    glass = _shade(view.pick("window"), 0.7)
    u = [(s - 0.5) * body.length for s, _ in body.side]
    _Sprite(view, x, z, None).shadow(body.length * 0.52)
    sprite.polygon([(a, h) for a, (_, h) in zip(u, body.side)], colour)
    sprite.rectangle(u[0], body.side[0][1], u[-1], body.side[0][1] + 0.15, _shade(colour, 0.6), label=False)
    for window in body.windows:
        sprite.polygon([((s - 0.5) * body.length, h) for s, h in window], glass, label=False)
    for share in body.wheels:
        a = (share - 0.5) * body.length
        sprite.disc(a, body.wheel, body.wheel, (26, 26, 28))
        sprite.disc(a, body.wheel, body.wheel * 0.5, (140, 142, 146), label=False)


# The scene.


def _things(view: _View, left: float, right: float, walk: float, crossing: Range | None) -> list[tuple[float, Callable]]:
    """Everything that stands on the ground as (depth, draw): a random arrangement for this style."""
    rng, counts, pick = view.rng, view.style.counts, view.pick
    things: list[tuple[float, Callable]] = []

    def add(depth: float, draw: Callable, *args, **kwargs) -> None:
        things.append((depth, lambda: draw(view, *args, **kwargs)))

    def depth(near: float, far: float) -> float:  # even in apparent size
        return float(np.exp(rng.uniform(np.log(near), np.log(far))))

    def beside(share: Range = (0.15, 0.9)) -> tuple[float, float]:
        side = rng.choice([-1.0, 1.0])
        offset = rng.uniform(*share) * walk
        return (left - offset if side < 0 else right + offset), side

    for side, edge in ((-1.0, left - walk), (1.0, right + walk)):
        z = rng.uniform(-14, 2)
        while z < FAR:
            far = min(z + rng.uniform(7, 18), FAR)
            if crossing and z < crossing[1] + walk and far > crossing[0] - walk:
                if z < crossing[0] - walk - 3:
                    far = crossing[0] - walk
                else:
                    z = crossing[1] + walk
                    continue
            if far > NEAR + 1:
                near = max(z, NEAR)
                if rng.random() < view.style.open_side:
                    add(near + 0.1, _draw_boundary, side, edge, near, far)
                    for _ in range(rng.poisson(1.5)):
                        deep = rng.uniform(near, far)
                        add(max(deep, 5), _draw_tree, edge + side * rng.uniform(1.5, 8), max(deep, 5))
                else:
                    add(near + 0.2, _draw_house, side, edge, near, far)
            z = far + (rng.uniform(0, 3) if rng.random() < 0.2 else 0)

    middle = (left + right) / 2
    lane = (right - left) / 4
    taken: list[tuple[float, float]] = []

    def free(x: float, z: float, length: float) -> bool:
        """Whether no vehicle of this lane is there already; if so, it is from now on."""
        if any(abs(x - other_x) < 1.6 and abs(z - other_z) < length for other_x, other_z in taken):
            return False
        taken.append((x, z))
        return True

    for kind, body in (("bus", _BUS), ("truck", _TRUCK), ("car", None)):
        for _ in range(rng.poisson(counts[kind])):
            shape = body or (_VAN if rng.random() < 0.25 else _CAR)
            oncoming = bool(rng.random() < 0.5)
            x = middle + (-1 if oncoming else 1) * lane * rng.uniform(0.8, 1.2)
            colour = pick("bus" if body is _BUS else "paint")
            if crossing and rng.random() < 0.3:
                direction = rng.choice([-1.0, 1.0])
                add(crossing[0] + 2, _draw_crossing_vehicle, shape, rng.uniform(-14, 14), crossing[0] + 2, colour, direction)
                continue
            z = depth(7 if body is None else 10, 50)
            if free(x, z, shape.length + 2):
                add(z, _draw_vehicle, shape, x, z, colour, oncoming=oncoming)
    for _ in range(rng.poisson(counts["parked"])):
        side = rng.choice([-1.0, 1.0])
        x, z = (left + 1.0 if side < 0 else right - 1.0), depth(4.5, 45)
        shape = _VAN if rng.random() < 0.25 else _CAR
        if (crossing is None or not crossing[0] - 5 < z < crossing[1] + 1) and free(x, z, 5.2):
            add(z, _draw_vehicle, shape, x, z, pick("paint"), oncoming=bool(side < 0))
    for _ in range(rng.poisson(counts["tree"])):
        x, _ = beside((0.2, 0.5))
        z = depth(7, 60)
        add(z, _draw_tree, x, z)
    for kind, draw, near, far in (("light", _draw_light, 8, 28), ("sign", _draw_sign, 7, 28), ("lamp", _draw_lamp, 8, 60)):
        for _ in range(rng.poisson(counts[kind])):
            x, _ = beside((0.08, 0.25))
            z = depth(near, far)
            add(z, draw, x, z)
    for _ in range(rng.poisson(counts["person"])):
        x = beside((0.1, 0.95))[0] if rng.random() < 0.75 else rng.uniform(left, right)
        z = depth(6, 32)
        add(z, _draw_person, x, z)
        if rng.random() < 0.3:
            add(z + 0.1, _draw_person, x + rng.choice([-0.6, 0.6]), z + 0.1)

    def angle() -> float:
        return float(rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 1.0))

    for _ in range(rng.poisson(counts["rider"])):
        x, z = rng.uniform(left + 0.5, right - 0.5), depth(6, 26)
        add(z, _draw_bicycle, x, z, angle(), ridden=True, motor=bool(rng.random() < 0.35))
    for kind in ("motorcycle", "bicycle"):
        for _ in range(rng.poisson(counts[kind])):
            x, z = beside((-0.15, 0.7))[0], depth(5.5, 22)
            add(z, _draw_bicycle, x, z, angle(), motor=kind == "motorcycle")
    return things


def _camera_effects(rng: np.random.Generator, style: Style, image: Image.Image, labels: np.ndarray) -> Image.Image:
    """Texture, lens, sensor and development of the picture, at its final size."""
    height, width = labels.shape
    if style.blur:
        image = image.filter(ImageFilter.GaussianBlur(style.blur))
    pixels = np.asarray(image, np.float32)
    if style.texture:
        fine = rng.standard_normal((height, width), np.float32)
        coarse = rng.standard_normal((height // 4 + 1, width // 4 + 1), np.float32)
        coarse = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR))
        amount = np.append(TEXTURE, np.zeros(256 - len(TEXTURE))).astype(np.float32)[labels] * style.texture
        pixels = pixels * (1 + amount * (0.7 * fine + coarse))[..., None]
    grey = pixels.mean(-1, keepdims=True)
    pixels = grey + (pixels - grey) * rng.uniform(*style.saturation)
    warmth = rng.uniform(*style.warmth)
    gain = rng.uniform(*style.light) * np.array([1 + warmth, 1, 1 - warmth], np.float32)
    contrast = rng.uniform(*style.contrast)
    pixels = (pixels * gain - 118) * contrast + 118
    if style.vignette:
        y, x = np.linspace(-1, 1, height, dtype=np.float32)[:, None], np.linspace(-1, 1, width, dtype=np.float32)
        pixels = pixels * (1 - style.vignette * (x**2 + y**2) / 2)[..., None]
    pixels = pixels + style.noise * rng.standard_normal((height, width, 3), np.float32)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_scene(
    rng: np.random.Generator, style: Style, size: tuple[int, int] = (256, 128)
) -> tuple[Image.Image, np.ndarray]:
    """Draw one scene: an RGB image of (width, height) `size`, and its uint8 [H, W] labels.

    Labels are the 19 train ids of Cityscapes, or `IGNORE`. The scene depends on nothing but the generator's state.
    """
    view = _View(rng, style, size)
    half, walk = rng.uniform(*style.road_half_width), rng.uniform(*style.sidewalk_width)
    middle = -half * rng.uniform(0.2, 0.5)  # the camera drives in the right lane
    left, right = middle - half, middle + half
    crossing = None
    if rng.random() < style.crossing:
        near = rng.uniform(10, 30)
        crossing = (near, near + rng.uniform(7, 11))
    _draw_sky(view)
    _draw_ground(view, left, right, walk, crossing)
    _draw_skyline(view)
    for _, draw in sorted(_things(view, left, right, walk, crossing), key=lambda thing: -thing[0]):
        draw()
    if style.bonnet:
        w, h = view.width, view.height
        top = h * rng.uniform(0.93, 0.96)
        colour = view.pick("paint")
        view.ellipse((w * 0.12, top, w * 0.88, h * 1.2), colour, IGNORE, 0)
    labels = np.asarray(view.labels)[::SUPERSAMPLING, ::SUPERSAMPLING].copy()
    return _camera_effects(rng, style, view.image.reduce(SUPERSAMPLING), labels), labels


# The files.


def _png16(pixels: np.ndarray) -> bytes:
    """A PNG file of uint16 [H, W, 3] or [H, W, 4]: 16-bit RGB(A), which Pillow cannot write."""
    height, width, channels = pixels.shape

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 16, {3: 2, 4: 6}[channels], 0, 0, 0)
    rows = pixels.astype(">u2").reshape(height, -1).view(np.uint8)
    lines = np.insert(rows, 0, 0, axis=1)  # every line starts with its filter: none
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines, 3)) + chunk(b"IEND", b"")


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _encode_labels(dataset: str, labels: np.ndarray) -> bytes:
    """Labels [H, W] of train ids as the file of a dataset: its own ids, in its own kind of PNG; IGNORE is its id 0."""
    ids = np.zeros(256, np.uint8)
    ids[: len(CLASSES)] = [c.synthia if dataset == "synthia" else c.cityscapes for c in CLASSES]
    raw = ids[labels]
    if dataset == "synthia":  # class id, instance id, nothing, opaque: Streets numbers no instances
        pixels = np.zeros((*raw.shape, 4), np.uint16)
        pixels[..., 0], pixels[..., 3] = raw, 0xFFFF
        return _png16(pixels)
    image = Image.fromarray(raw)
    if dataset == "gta5":
        colours = np.zeros((256, 3), np.uint8)
        colours[[c.cityscapes for c in CLASSES]] = [c.color for c in CLASSES]
        image.putpalette(colours.tobytes())
    return _png(image)


def _file_names(dataset: str, num_train: int, num_val: int) -> list[tuple[str, str, str]]:
    """(split, image, labels) of every scene of a dataset, paths relative to the dataset's folder."""
    if dataset == "gta5":
        names = [f"{i:05d}.png" for i in range(1, num_train + 1)]
        return [("train", f"images/{name}", f"labels/{name}") for name in names]
    if dataset == "synthia":
        names = [f"{i:07d}.png" for i in range(num_train)]
        return [("train", f"RAND_CITYSCAPES/RGB/{n}", f"RAND_CITYSCAPES/GT/LABELS/{n}") for n in names]
    files = []
    for split, number, cities in (("train", num_train, TRAIN_CITIES), ("val", num_val, VAL_CITIES)):
        for i in range(number):
            city = cities[i * len(cities) // number]
            stem = f"{split}/{city}/{city}_{i:06d}_000019"
            files.append((split, f"leftImg8bit/{stem}_leftImg8bit.png", f"gtFine/{stem}_gtFine_labelIds.png"))
    return files


def _write_atomically(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.write_bytes(content)
    draft.replace(path)


def _pending(folder: Path, settings: dict) -> bool:
    """Whether scenes are still to be written to a folder; ValueError if it holds anything but these Streets.

    ``streets.json`` with the settings is written when the folder is complete, ``streets.part.json`` before its first
    scene, so that an interrupted run is told from a folder of real data and goes on where it stopped.
    """
    for marker, pending in ((folder / MARKER, False), (folder / PART_MARKER, True)):
        if marker.exists():
            found = json.loads(marker.read_text())
            differing = [key for key in settings if found.get(key) != settings[key]]
            if differing:
                pairs = ", ".join(f"{key} {found.get(key)!r} instead of {settings[key]!r}" for key in differing if key != "style")
                raise ValueError(f"{marker}: Streets of other settings ({pairs or 'style'}); delete {folder} or take another data folder")
            return pending
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty and has no {MARKER}: Streets would mix with other data; take another data folder")
    return True


def write_streets(
    root: Path,
    *,
    seed: int = 0,
    source: str = "gta5",
    num_train: int = 300,
    num_val: int = 100,
    size: tuple[int, int] = (256, 128),
    progress: Callable[[list], Iterable] = iter,
) -> None:
    """Write Streets under a data root, as the downloads of the real sets unpack: a source set and `cityscapes`.

    root/gta5/images|labels/00001.png (8-bit palette), or root/synthia/RAND_CITYSCAPES/RGB|GT/LABELS/0000000.png (labels
    of 16-bit RGBA, class first), in the `GAME` style, `num_train` scenes; root/cityscapes/leftImg8bit|gtFine/{train,val}/
    CITY/..., in the `CAMERA` style, `num_train` + `num_val` scenes of `size` (width, height).

    The same arguments always give the same files. A second call with them is free, and a call after an interrupted one
    draws what is missing. `progress` wraps the list of scenes to be written (tqdm does).
    Raises ValueError for an unknown source, and for folders that hold other data or Streets of other settings; then
    nothing is written.
    """
    if source not in ("gta5", "synthia"):
        raise ValueError(f"source must be gta5 or synthia, got {source!r}")
    root = Path(root)
    jobs = []
    for dataset, style in ((source, GAME), ("cityscapes", CAMERA)):
        settings = dict(
            version=VERSION, seed=seed, size=list(size), num_train=num_train, num_val=num_val if style is CAMERA else 0
        )
        if _pending(root / dataset, settings):
            jobs.append((dataset, style, settings))
    scenes = []
    for dataset, style, settings in jobs:
        _write_atomically(root / dataset / PART_MARKER, json.dumps(settings).encode())
        for i, (split, *paths) in enumerate(_file_names(dataset, num_train, num_val)):
            entropy = [seed, ("train", "val").index(split), style is CAMERA, i]
            scenes.append((dataset, style, entropy, [root / dataset / path for path in paths]))
    for dataset, style, entropy, (image_path, labels_path) in progress(scenes):
        if image_path.exists():  # the second file of the two: an interrupted run has both or will draw both again
            continue
        image, labels = draw_scene(np.random.default_rng(entropy), style, size)
        _write_atomically(labels_path, _encode_labels(dataset, labels))
        _write_atomically(image_path, _png(image))
    for dataset, _, settings in jobs:
        _write_atomically(root / dataset / MARKER, json.dumps(settings).encode())
        (root / dataset / PART_MARKER).unlink(missing_ok=True)
