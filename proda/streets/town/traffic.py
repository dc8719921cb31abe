"""Cars with a body in three dimensions, and cyclists seen from behind."""

from collections.abc import Callable
from dataclasses import dataclass

from proda.streets.canvas import BICYCLE, CAR, RIDER, Colour, Point, Sprite, shade
from proda.streets.town.view import TownView

TYRE, HUB = (24, 24, 26), (135, 137, 141)


@dataclass(frozen=True)
class Car:
    """Points are (share of the length from the rear, height in metres), along the outline from the rear bumper."""

    length: float
    width: float
    outline: tuple[Point, ...]
    glass: tuple[int, ...]  # numbers of the pieces of the outline that are panes; piece i begins at point i
    windows: tuple[tuple[Point, ...], ...]  # of the side
    wheels: tuple[float, float]
    wheel_radius: float = 0.31


HATCHBACK = Car(
    length=3.9,
    width=1.7,
    outline=(
        *((0, 0.26), (0, 0.92), (0.09, 1.36), (0.15, 1.44), (0.56, 1.46)),
        *((0.78, 0.98), (0.97, 0.80), (1, 0.62), (1, 0.24)),
    ),
    glass=(1, 4),
    windows=(
        ((0.11, 0.98), (0.18, 1.34), (0.38, 1.36), (0.38, 0.96)),
        ((0.41, 0.96), (0.41, 1.36), (0.55, 1.36), (0.72, 0.98)),
    ),
    wheels=(0.17, 0.82),
)
SALOON = Car(
    length=4.6,
    width=1.76,
    outline=(
        *((0, 0.26), (0, 0.88), (0.02, 0.97), (0.15, 1.00), (0.28, 1.40), (0.56, 1.42)),
        *((0.73, 0.97), (0.97, 0.80), (1, 0.62), (1, 0.24)),
    ),
    glass=(3, 5),
    windows=(
        ((0.22, 1.0), (0.30, 1.32), (0.42, 1.34), (0.42, 0.98)),
        ((0.44, 0.98), (0.44, 1.34), (0.55, 1.34), (0.68, 0.99)),
    ),
    wheels=(0.18, 0.82),
)
ESTATE = Car(
    length=4.6,
    width=1.75,
    outline=(
        *((0, 0.26), (0, 0.92), (0.05, 1.40), (0.09, 1.46), (0.58, 1.46)),
        *((0.74, 0.97), (0.97, 0.82), (1, 0.62), (1, 0.24)),
    ),
    glass=(1, 4),
    windows=(
        ((0.08, 0.99), (0.11, 1.36), (0.32, 1.37), (0.32, 0.97)),
        ((0.34, 0.97), (0.34, 1.37), (0.57, 1.37), (0.70, 0.98)),
    ),
    wheels=(0.18, 0.82),
)
TALL = Car(
    length=4.5,
    width=1.82,
    outline=(
        *((0, 0.34), (0, 1.05), (0.04, 1.62), (0.08, 1.72), (0.60, 1.74)),
        *((0.74, 1.14), (0.96, 1.0), (1, 0.75), (1, 0.34)),
    ),
    glass=(1, 4),
    windows=(
        ((0.06, 1.12), (0.09, 1.6), (0.33, 1.62), (0.33, 1.1)),
        ((0.36, 1.1), (0.36, 1.62), (0.58, 1.62), (0.70, 1.13)),
    ),
    wheels=(0.19, 0.81),
    wheel_radius=0.36,
)
VAN = Car(
    length=4.9,
    width=1.9,
    outline=(
        *((0, 0.3), (0, 1.15), (0.01, 2.0), (0.04, 2.14), (0.66, 2.14)),
        *((0.80, 1.22), (0.97, 1.02), (1, 0.75), (1, 0.3)),
    ),
    glass=(1, 4),
    windows=(((0.62, 1.25), (0.62, 1.85), (0.68, 1.85), (0.79, 1.25)),),
    wheels=(0.18, 0.82),
    wheel_radius=0.33,
)
CARS = (HATCHBACK, HATCHBACK, HATCHBACK, SALOON, SALOON, ESTATE, TALL, VAN)


def draw_car(view: TownView, car: Car, x: float, z: float, colour: Colour, *, oncoming: bool) -> None:
    """A car along the street whose near end is at Z = z."""
    rng, half = view.rng, car.width / 2
    roof = max(height for _, height in car.outline)
    glass = shade(view.pick("window"), rng.uniform(0.4, 1.2))
    flank_side = 1.0 if x + view.bend * z * z < 0 else -1.0
    lit = (0.7 if (flank_side > 0) == (view.sun < 0) else 1.05) if view.sunny else 0.85

    def along(share: float) -> float:
        return z + car.length * (1 - share if oncoming else share)

    def reach(height: float) -> float:  # half the width at a height: the body narrows towards the roof
        return half - 0.17 * max(0.0, height - 0.95) / (roof - 0.95)

    view.ground(x - half - 0.15, x + half + 0.15, z - 0.15, z + car.length + 0.1, shade(view.shadow_colour, 0.6))
    pieces = list(enumerate(zip(car.outline, car.outline[1:], strict=False)))
    for number, ((s0, h0), (s1, h1)) in pieces if oncoming else pieces[::-1]:
        z0, z1, w0, w1 = along(s0), along(s1), reach(h0), reach(h1)
        flat = abs(s1 - s0) * car.length / (abs(s1 - s0) * car.length + abs(h1 - h0) + 1e-6)
        tone = shade(colour, 0.8 + 0.4 * flat)
        view.face([(x - w0, h0, z0), (x + w0, h0, z0), (x + w1, h1, z1), (x - w1, h1, z1)], tone, CAR)
        if number in car.glass:
            g0, g1 = w0 - 0.09, w1 - 0.09
            a, b = 0.12, 0.9
            low, high = ((h0 + (h1 - h0) * a, z0 + (z1 - z0) * a), (h0 + (h1 - h0) * b, z0 + (z1 - z0) * b))
            pane = [(x - g0, *low), (x + g0, *low), (x + g1, *high), (x - g1, *high)]
            view.face(pane, glass)
            if rng.random() < 0.6:  # the sky or a house is reflected
                view.face([pane[0], pane[1], pane[3]], shade(glass, rng.uniform(0.7, 1.7)))
    side = shade(colour, lit)
    view.face([(x + flank_side * reach(h), h, along(s)) for s, h in car.outline], side, CAR)
    for window in car.windows:
        view.face([(x + flank_side * reach(h), h, along(s)) for s, h in window], shade(glass, 0.9))
    sill = [(0.02, 0.3), (0.98, 0.3), (0.98, 0.45), (0.02, 0.45)]
    view.face([(x + flank_side * half, h, along(s)) for s, h in sill], shade(side, 0.6))
    _draw_wheels(view, car, x + flank_side * half, along)
    _draw_end(view, car, x, z, colour, oncoming=oncoming)


def _draw_wheels(view: TownView, car: Car, flank: float, along: Callable[[float], float]) -> None:
    for share in car.wheels:
        middle, r = along(share), car.wheel_radius
        if middle < 2.6:
            continue
        near, far = view.project(flank, r, middle - r)[0], view.project(flank, r, middle + r)[0]
        top, bottom = view.project(flank, 2 * r, middle)[1], view.project(flank, 0, middle)[1]
        cx, cy, rx, ry = (near + far) / 2, (top + bottom) / 2, abs(near - far) / 2, (bottom - top) / 2
        view.ellipse(cx, cy, rx, ry, TYRE, CAR, middle)
        view.ellipse(cx, cy, rx * 0.6, ry * 0.6, HUB, None, middle)


def _draw_end(view: TownView, car: Car, x: float, z: float, colour: Colour, *, oncoming: bool) -> None:
    rng, half = view.rng, car.width / 2
    end = Sprite(view, x, z, CAR)
    bottom, belt = car.outline[0][1], car.outline[1][1]
    if oncoming:
        bottom, belt = car.outline[-1][1], car.outline[-2][1] + 0.1
    end.rectangle(-half + 0.1, 0.14, half - 0.1, bottom + 0.1, shade(TYRE, 0.8))
    for u in (-half + 0.05, half - 0.27):
        end.rectangle(u, 0, u + 0.22, bottom + 0.1, TYRE)
    bumper = shade(colour, 0.45) if rng.random() < 0.4 else shade(colour, 0.75)
    end.rectangle(-half, bottom, half, bottom + 0.22, bumper, detail=True)
    light = (235, 235, 225) if oncoming else (190, 25, 25)
    high, wide = (0.14, 0.36) if oncoming else (rng.uniform(0.12, 0.35), rng.uniform(0.14, 0.36))
    top = belt - 0.06
    for u in (-half + 0.05, half - 0.05 - wide):
        end.rectangle(u, top - high, u + wide, top, light, detail=True)
        if not oncoming and rng.random() < 0.2:  # it brakes
            end.disc(u + wide / 2, top - high / 2, 0.09, (255, 90, 70), detail=True)
    plate = (225, 225, 218) if oncoming or rng.random() < 0.4 else (225, 190, 50)
    level = bottom + rng.uniform(0.08, 0.3)
    end.rectangle(-0.26, level, 0.26, level + 0.12, plate, detail=True)
    end.rectangle(-0.2, level + 0.04, 0.2, level + 0.08, shade(plate, 0.4), detail=True)
    if oncoming:
        end.rectangle(-0.4, top - 0.13, 0.4, top - 0.02, (30, 30, 32), detail=True)


def draw_cyclist(view: TownView, x: float, z: float) -> None:
    """A cyclist on the road, seen from behind or from the front."""
    rng = view.rng
    view.shadow(x, z, 0.35)
    bike, body = Sprite(view, x, z, BICYCLE), Sprite(view, x, z, RIDER)
    shirt, trousers, skin = view.pick("vest"), view.pick("trousers"), view.pick("skin")
    bike.rectangle(-0.04, 0, 0.04, 0.68, TYRE)
    bike.line([(0, 0.6), (0, 0.95)], view.pick("bicycle"), 0.06)
    bike.line([(-0.28, 1.02), (0.28, 1.02)], TYRE, 0.05)
    for side, lift in ((-1, rng.uniform(0, 0.3)), (1, rng.uniform(0, 0.3))):
        body.line([(side * 0.1, 0.95), (side * 0.17, 0.6 + lift / 2), (side * 0.13, 0.2 + lift)], trousers, 0.14)
        body.line([(side * 0.2, 1.4), (side * 0.32, 1.15), (side * 0.26, 1.02)], shade(shirt, 0.8), 0.1)
    body.polygon([(-0.17, 0.88), (0.17, 0.88), (0.23, 1.45), (-0.23, 1.45)], shirt)
    head = view.pick("shirt") if rng.random() < 0.5 else shade(skin, 0.4)
    body.disc(0, 1.62, 0.13, head, tall=1.2)
    if rng.random() < 0.4:  # a bag on the back
        body.rectangle(-0.17, 1.0, 0.17, 1.35, view.pick("shirt"), detail=True)
