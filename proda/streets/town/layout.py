"""The layout of a town's street: lots along both sides, parked and driving cars, and what stands on the pavements."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from proda.streets.canvas import BUILDING, FAR, NEAR, SIDEWALK, SKY, SUPERSAMPLING, VEGETATION, WALL, Sprite
from proda.streets.people import draw_cycle, draw_person
from proda.streets.scene import TEXTURE, photograph
from proda.streets.street import draw_skyline
from proda.streets.style import Style
from proda.streets.town.furniture import (
    draw_barrier,
    draw_bin,
    draw_bollard,
    draw_island,
    draw_light,
    draw_pole,
    draw_sign,
    draw_wires,
)
from proda.streets.town.ground import KERB, Plan, draw_ground, draw_sky
from proda.streets.town.houses import (
    House,
    draw_fence,
    draw_fence_across,
    draw_house,
    draw_house_front,
    draw_lawn,
    draw_low_wall,
    plan_house,
    random_fence,
)
from proda.streets.town.plants import draw_foliage, draw_hedge, draw_tree
from proda.streets.town.traffic import CARS, draw_car, draw_cyclist
from proda.streets.town.view import TownView
from proda.streets.vehicles import BUS_BODY, CAR_BODY, TRUCK_BODY, VAN_BODY, draw_crossing_vehicle, draw_vehicle

TOWN_TEXTURE = TEXTURE.copy()
TOWN_TEXTURE[[VEGETATION, SKY, BUILDING, WALL]] = 0.6, 0.05, 2.0, 2.0  # leaves and clouds have their own
LEFT_HAND = 0.5  # share of the scenes with traffic on the left; they are drawn with traffic on the right, and mirrored
LOTS = ("terrace", "shops", "block", "garden", "park")


def draw_town(
    rng: np.random.Generator, style: Style, size: tuple[int, int] = (320, 240)
) -> tuple[Image.Image, np.ndarray]:
    """Draws one scene. The result depends on the arguments and the state of the generator only.

    Args:
        rng: source of all randomness.
        style: the appearance.
        size: (width, height) in pixels.

    Returns:
        an RGB image of ``size``, and its label map: uint8 [H, W] of the 19 train ids or IGNORE.
    """
    view = TownView(rng, style, size)
    _Town(view).draw()
    labels = np.asarray(view.labels)[::SUPERSAMPLING, ::SUPERSAMPLING].copy()
    image = photograph(rng, style, _light(rng, view.image.reduce(SUPERSAMPLING)), labels, TOWN_TEXTURE)
    if rng.random() < LEFT_HAND:
        return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), labels[:, ::-1].copy()
    return image, labels


def _light(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """Uneven light over the scene, and the glow of what is bright, as in a lens that faces the sky."""
    small = Image.fromarray(rng.normal(1.0, rng.uniform(0.0, 0.2), (4, 5)).astype(np.float32))
    field = np.asarray(small.resize(image.size, Image.Resampling.BICUBIC))
    pixels = np.asarray(image).astype(np.float32) * field[..., None]
    if rng.random() < 0.5:
        quarter = image.reduce(4)
        bright = quarter.point([max(0, value - 160) for value in range(256)] * 3).filter(ImageFilter.BoxBlur(4))
        glow = np.asarray(bright.resize(image.size, Image.Resampling.BILINEAR)).astype(np.float32)
        pixels += rng.uniform(0.2, 1.2) * glow
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


@dataclass
class _Lot:
    side: float  # -1 left of the street, 1 right
    near: float
    far: float
    kind: str
    house: House | None
    setback: float  # metres between the pavement and the house


class _Town:
    def __init__(self, view: TownView) -> None:
        self.view, self.rng, self.style = view, view.rng, view.style
        rng, style = view.rng, view.style
        half = rng.uniform(*style.road_half_width)
        middle = -half * rng.uniform(0.15, 0.5)  # traffic on the right: the camera is to the right of the middle
        walks = (rng.uniform(*style.sidewalk_width), rng.uniform(*style.sidewalk_width))
        crossing = None
        if rng.random() < style.crossing:
            near = rng.uniform(2.5, 30)
            crossing = (near, near + rng.uniform(6, 14))
        self.end = FAR
        if rng.random() < 0.12:  # the street ends at another that runs across
            self.end = rng.uniform(22, 60)
            crossing = (self.end - rng.uniform(6, 11), self.end)
        self.plan = Plan(middle - half, middle + half, walks, crossing)
        self.bare = rng.random()  # share of the trees without leaves
        self.things: list[tuple[float, Callable[[], None]]] = []
        self.places: list[tuple[float, float]] = []  # X and Z of the vehicles

    def draw(self) -> None:
        view, rng = self.view, self.rng
        draw_sky(view)
        lots = [*self._lots(-1.0), *self._lots(1.0)]
        self._close_the_end()
        straight = self.end < FAR or rng.random() < 0.5
        view.bend = 0.0 if straight else rng.normal(0, 0.0015)
        draw_ground(view, self.plan)
        if self.end < FAR:
            self._draw_across()
        if view.sunny:
            self._cast_shadows(lots)
        for lot in sorted(lots, key=lambda lot: -lot.near):
            self._draw_lot(lot)
        self._park()
        self._drive()
        self._furnish()
        self._people()
        for _, draw in sorted(self.things, key=lambda thing: -thing[0]):
            draw()

    def _edge(self, side: float) -> float:
        """X where the pavement ends."""
        return self.plan.left - self.plan.walks[0] if side < 0 else self.plan.right + self.plan.walks[1]

    def _lots(self, side: float) -> list[_Lot]:
        rng, view, lots = self.rng, self.view, []
        weights = rng.dirichlet([1.2, 1.2, 0.7, 0.6, 0.5])
        z, kind, house, setback = rng.uniform(-8, 2), "", None, 0.0
        walk = self.plan.walks[0] if side < 0 else self.plan.walks[1]
        while z < self.end:
            if not kind or rng.random() < 0.35:  # else the row goes on
                kind = LOTS[rng.choice(5, p=weights)]
                house = plan_house(view, shop=kind == "shops", modern=kind == "block")
                setback = {"terrace": rng.choice([0.0, 2.5]), "garden": rng.uniform(4, 12)}.get(kind, 0.0)
            elif house and rng.random() < 0.5:
                house = plan_house(view, shop=kind == "shops", modern=kind == "block")
            length = rng.uniform(10, 25) if kind in ("block", "park") else rng.uniform(5, 11)
            near, far = max(z, NEAR), min(z + length, self.end)
            z = far + (rng.uniform(0.5, 3) if rng.random() < 0.15 else 0.0)
            if self.plan.crossing:
                start, end = self.plan.crossing[0] - walk, self.plan.crossing[1] + walk
                if near < end and far > start:
                    if near > start - 3:
                        z = max(z, end)
                        continue
                    far, z = start, end
            if far > near + 1:
                lots.append(_Lot(side, near, far, kind, None if kind == "park" else house, setback))
        return lots

    def _close_the_end(self) -> None:
        """What is seen at the end of the street."""
        view, rng = self.view, self.rng
        draw_skyline(view)
        if rng.random() < 0.6:
            z = rng.uniform(90, 139)
            for x in np.arange(-60, 60, rng.uniform(5, 12)).tolist():
                tree = Sprite(view, x + rng.normal(0, 3), z, VEGETATION)
                high = rng.uniform(3, 8)
                draw_foliage(view, tree, high * 0.7, high, high, view.pick("leaf"), bare=bool(rng.random() < self.bare))

    def _draw_across(self) -> None:
        """The far side of a street that runs across: a pavement, and houses, gardens or trees behind it."""
        view, rng = self.view, self.rng
        z = self.end + rng.uniform(1.5, 5)
        view.slab(-80, 80, (self.end, z), KERB, view.pick("sidewalk"), SIDEWALK)
        view.across(-80, 80, self.end, 0, KERB, view.pick("kerb"))
        x, green = -60.0, rng.uniform(0, 0.6)
        while x < 60:
            wide = rng.uniform(5, 14)
            if rng.random() > green:
                house = plan_house(view, shop=bool(rng.random() < 0.3), modern=bool(rng.random() < 0.3))
                draw_house_front(view, house, x, x + wide, z)
            else:
                draw_tree(view, x + wide / 2, z, bare=bool(rng.random() < self.bare), height=rng.uniform(4, 12))
                view.across(x, x + wide, z, 0, rng.uniform(0.8, 2.5), view.pick("leaf"), VEGETATION)
            x += wide
        if rng.random() < 0.4:
            left = rng.uniform(-20, 5)
            draw_fence_across(view, left, left + rng.uniform(4, 25), z - 0.3, rng.uniform(0.9, 1.6), view.pick("fence"))

    def _cast_shadows(self, lots: list[_Lot]) -> None:
        """Houses on the side of the sun shade the street; trees do it in patches."""
        rng, side = self.rng, self.view.sun
        long, skew = rng.uniform(0.3, 1.6), rng.normal(0, 0.5)
        shapes, edge = [], self._edge(side)
        for lot in lots:
            if lot.side != side or lot.house is None:
                continue
            x, reach = edge + side * lot.setback, lot.house.height * long
            tip = x - side * reach
            near, far = (max(NEAR, z + skew * reach) for z in (lot.near, lot.far))
            shapes.append([(x, lot.near), (x, lot.far), (tip, far), (tip, near)])
        discs = []
        for _ in range(rng.poisson(3)):
            x, z, wide = rng.uniform(self._edge(-1), self._edge(1)), self._depth(5, 40), rng.uniform(0.8, 2.5)
            places = rng.normal(0, (wide, 1.5 * wide), (14, 2)).tolist()
            discs += [(x + dx, max(3.0, z + dz), rng.uniform(0.1, 0.4) * wide) for dx, dz in places]
        self.view.cast(shapes, discs)

    def _draw_lot(self, lot: _Lot) -> None:
        view, rng, side = self.view, self.rng, lot.side
        x, near, far = self._edge(side), lot.near, lot.far
        if not -100 < view.project(x, 0, far)[0] < view.width + 100:
            return
        if lot.setback or lot.house is None:
            draw_lawn(view, side, x, near, far, view.pick("grass" if rng.random() < 0.7 else "sidewalk"))
        if lot.house is not None:
            draw_house(view, lot.house, side, x + side * lot.setback, near, far)
            if not lot.setback and rng.random() > 0.08:
                return
        if lot.house is None and rng.random() < 0.25:  # a car park
            for z in sorted(rng.uniform(max(near, 8), far, rng.poisson(2.0)).tolist() if far > 8 else [], reverse=True):
                body = CAR_BODY if rng.random() < 0.7 else VAN_BODY
                mirrored = bool(rng.random() < 0.5)
                draw_crossing_vehicle(
                    view, body, x + side * rng.uniform(3, 12), z, view.pick("paint"), mirrored=mirrored
                )
        if lot.house is None or lot.setback > 3:
            number = rng.poisson(2.0 if lot.house is None else 0.7)
            for z in sorted(rng.uniform(near, far, number).tolist(), reverse=True):
                depth = max(z, 5.0)
                away = rng.uniform(0.5, 12 if lot.house is None else max(1.0, lot.setback - 1))
                if rng.random() < 0.35:  # a bush
                    sprite = Sprite(view, x + side * away, depth, VEGETATION)
                    high = rng.uniform(0.5, 1.5)
                    draw_foliage(view, sprite, high * 0.7, high * 1.5, high, view.pick("leaf"))
                else:
                    draw_tree(
                        view, x + side * away, depth, bare=bool(rng.random() < self.bare), height=rng.uniform(4, 13)
                    )
        kind = rng.choice(["wall", "fence", "hedge", "nothing"], p=[0.2, 0.45, 0.2, 0.15])
        if kind == "wall":
            draw_low_wall(view, x, near, far)
        elif kind == "hedge":
            draw_hedge(view, side, x, near, far)
        elif kind == "fence":
            style, height = random_fence(rng)
            draw_fence(view, x, near, far, style, height, view.pick("fence"))

    def _add(self, depth: float, draw: Callable[..., None], *args: Any, **options: Any) -> None:
        if depth < self.end:
            self.things.append((depth, lambda: draw(self.view, *args, **options)))

    def _times(self, thing: str) -> range:
        return range(self.rng.poisson(self.style.counts[thing]))

    def _depth(self, near: float, far: float) -> float:
        """A random depth whose logarithm is uniform, so that large and small objects are equally frequent."""
        return math.exp(self.rng.uniform(math.log(near), math.log(far)))

    def _on_pavement(self, low: float, high: float) -> float:
        """A random X on one of the pavements; ``low`` and ``high`` are shares of its width, from the kerb."""
        share = self.rng.uniform(low, high)
        if self.rng.random() < 0.5:
            return self.plan.left - share * self.plan.walks[0]
        return self.plan.right + share * self.plan.walks[1]

    def _free(self, x: float, z: float, length: float) -> bool:
        """Reserves a place for a vehicle; False if another vehicle is too close."""
        if any(abs(x - other_x) < 2.0 and abs(z - other_z) < length for other_x, other_z in self.places):
            return False
        self.places.append((x, z))
        return True

    def _in_crossing(self, z: float, length: float = 0.0) -> bool:
        return bool(self.plan.crossing and self.plan.crossing[0] - length < z < self.plan.crossing[1] + 1)

    def _park(self) -> None:
        """Rows of parked cars along the kerbs, and some single ones."""
        rng, view = self.rng, self.view
        for side, kerb in ((-1.0, self.plan.left), (1.0, self.plan.right)):
            row = rng.random()
            density = 0.85 if row < 0.25 else 0.3 if row < 0.5 else 0.0
            x, z = kerb - side * rng.uniform(0.9, 1.2), rng.uniform(2.6, 9)
            if abs(x) < 1.9:  # the camera's own lane
                continue
            while z < 70:
                car = CARS[rng.integers(len(CARS))]
                if rng.random() < density and not self._in_crossing(z, 6) and self._free(x, z, 4.5):
                    facing = side < 0 if rng.random() < 0.85 else side > 0
                    self._add(z, draw_car, car, x + rng.normal(0, 0.08), z, view.pick("paint"), oncoming=facing)
                z += car.length + rng.uniform(0.5, 1.8)

    def _drive(self) -> None:
        rng, view, plan = self.rng, self.view, self.plan
        middle, lane = (plan.left + plan.right) / 2, (plan.right - plan.left) / 4
        for thing in ("bus", "truck", "car"):
            for _ in self._times(thing):
                oncoming = bool(rng.random() < 0.5)
                x = middle + (-1 if oncoming else 1) * lane * rng.uniform(0.7, 1.2)
                z = self._depth(6.5 if thing == "car" else 8, 60)
                if plan.crossing and rng.random() < 0.2:
                    body = {"bus": BUS_BODY, "truck": TRUCK_BODY}.get(
                        thing, CAR_BODY if rng.random() < 0.7 else VAN_BODY
                    )
                    x, z = rng.uniform(self._edge(-1), self._edge(1)), plan.crossing[0] + 2
                    self._add(
                        z, draw_crossing_vehicle, body, x, z, view.pick("paint"), mirrored=bool(rng.random() < 0.5)
                    )
                elif self._free(x, z, 13 if thing == "bus" else 9 if thing == "truck" else 6):
                    if thing == "car":
                        car = CARS[rng.integers(len(CARS))]
                        self._add(z, draw_car, car, x, z, view.pick("paint"), oncoming=oncoming)
                    else:
                        body = BUS_BODY if thing == "bus" else TRUCK_BODY
                        colour = view.pick("bus" if thing == "bus" else "paint")
                        self._add(z, draw_vehicle, body, x, z, colour, oncoming=oncoming)

    def _furnish(self) -> None:
        rng, view, plan = self.rng, self.view, self.plan
        for thing, draw, near, far, low, high in (
            ("lamp", draw_pole, 5, 70, 0.06, 0.3),
            ("light", draw_light, 6, 40, 0.06, 0.3),
            ("sign", draw_sign, 5, 35, 0.06, 0.9),
        ):
            for _ in self._times(thing):
                z = self._depth(near, far)
                if not self._in_crossing(z):
                    self._add(z, draw, self._on_pavement(low, high), z)
        for _ in self._times("tree"):
            x, z, height = self._on_pavement(0.2, 0.95), self._depth(5, 60), rng.uniform(4, 12)
            if not self._in_crossing(z):
                self._add(z, draw_tree, x, z, bare=bool(rng.random() < self.bare), height=height)
        for side, kerb in ((-1.0, plan.left), (1.0, plan.right)):
            if rng.random() < 0.25:  # railings at the kerb, in pieces so that they are drawn in the right order
                colour, z, end = view.pick("fence"), rng.uniform(2.5, 15), rng.uniform(15, 45)
                while z < end:
                    if not self._in_crossing(z, 2):
                        self._add(z, draw_barrier, kerb + side * 0.3, z, 2.0, colour)
                    z += 2.0
            if rng.random() < 0.3:
                z = rng.uniform(3, 20)
                for _ in range(rng.integers(2, 9)):
                    self._add(z, draw_bollard, kerb + side * 0.4, z)
                    z += rng.uniform(1.2, 2.5)
            if rng.random() < 0.25:
                z = self._depth(6, 25)
                self._add(z, draw_bin, kerb + side * rng.uniform(0.5, 1.5), z)
        if plan.right - plan.left > 9 and rng.random() < 0.3:
            x, z = (plan.left + plan.right) / 2, self._depth(7, 30)
            if self._free(x, z, 6):
                self._add(z + 4, draw_island, x, z)
                for draw in (draw_sign, draw_bollard, draw_light):
                    if rng.random() < 0.5:
                        self._add(z + 0.3, draw, x, z + 0.3)
        for _ in range(rng.poisson(0.4)):
            z = self._depth(8, 40)
            self._add(z, draw_wires, self._edge(-1), z, self._edge(1), z + rng.normal(0, 8))

    def _people(self) -> None:
        rng, plan = self.rng, self.plan
        for _ in self._times("person"):
            crosses = rng.random() < 0.2
            x = rng.uniform(plan.left, plan.right) if crosses else self._on_pavement(0.1, 0.95)
            z = self._depth(6, 45)
            for _ in range(1 + rng.poisson(0.4)):
                self._add(z, draw_person, x, z)
                x, z = x + rng.choice([-0.6, 0.6]), z + rng.uniform(0, 0.5)
        for _ in self._times("rider"):
            x, z = rng.uniform(plan.left + 0.5, plan.right - 0.5), self._depth(5, 30)
            if rng.random() < 0.6:
                self._add(z, draw_cyclist, x, z)
            else:
                self._add(z, draw_cycle, x, z, motor=bool(rng.random() < 0.25), rider=True)
        for thing in ("motorcycle", "bicycle"):
            for _ in self._times(thing):
                z = self._depth(4.5, 25)
                self._add(z, draw_cycle, self._on_pavement(0.05, 0.9), z, motor=thing == "motorcycle", rider=False)
