"""Cars, vans, buses and trucks, seen from the front or rear on the street, or from the side on the side street."""

from collections.abc import Sequence
from dataclasses import dataclass

from proda.streets.canvas import BUS, CAR, TRUCK, Colour, Point, Sprite, View, shade

_TYRE, _HUB, _PLATE = (26, 26, 28), (140, 142, 146), (232, 232, 226)
_HEADLIGHT, _TAILLIGHT = (250, 246, 215), (205, 30, 30)


@dataclass(frozen=True)
class Body:
    """The shape of a kind of vehicle. Points are (share of the length from the rear, height in metres)."""

    label: int
    length: float
    width: float
    side: tuple[Point, ...]  # outline of the side
    windows: tuple[tuple[Point, ...], ...]
    wheels: tuple[float, float]  # centres, as shares of the length
    wheel_radius: float
    belt: float  # height of the lower edge of the front and rear windows
    roof: float
    taper: float  # how much narrower the roof is than the body on each side, in metres
    closed_rear: bool = False


CAR_BODY = Body(
    label=CAR,
    length=4.3,
    width=1.8,
    side=((0, 0.3), (0, 0.88), (0.06, 0.95), (0.17, 1.45), (0.58, 1.47), (0.74, 0.98), (0.97, 0.85), (1, 0.3)),
    windows=(
        ((0.14, 0.98), (0.22, 1.36), (0.38, 1.38), (0.38, 0.98)),
        ((0.41, 0.98), (0.41, 1.38), (0.56, 1.38), (0.69, 0.98)),
    ),
    wheels=(0.19, 0.80),
    wheel_radius=0.33,
    belt=0.96,
    roof=1.46,
    taper=0.16,
)
VAN_BODY = Body(
    label=CAR,
    length=4.6,
    width=1.9,
    side=((0, 0.3), (0, 0.95), (0.03, 1.78), (0.65, 1.82), (0.82, 1.1), (0.98, 0.95), (1, 0.3)),
    windows=(
        ((0.05, 1.05), (0.07, 1.65), (0.36, 1.68), (0.36, 1.05)),
        ((0.39, 1.05), (0.39, 1.68), (0.62, 1.68), (0.76, 1.05)),
    ),
    wheels=(0.19, 0.81),
    wheel_radius=0.35,
    belt=1.05,
    roof=1.80,
    taper=0.12,
)
BUS_BODY = Body(
    label=BUS,
    length=11.0,
    width=2.5,
    side=((0, 0.35), (0, 3.0), (0.02, 3.15), (0.98, 3.15), (1, 3.0), (1, 0.35)),
    windows=tuple(
        ((share, 1.35), (share, 2.5), (share + 0.12, 2.5), (share + 0.12, 1.35))
        for share in (0.03, 0.17, 0.31, 0.45, 0.59, 0.73, 0.86)
    ),
    wheels=(0.2, 0.82),
    wheel_radius=0.5,
    belt=1.35,
    roof=3.15,
    taper=0.0,
)
TRUCK_BODY = Body(
    label=TRUCK,
    length=8.0,
    width=2.4,
    side=((0, 0.5), (0, 3.2), (0.72, 3.2), (0.72, 2.5), (0.92, 2.5), (1, 1.4), (1, 0.4)),
    windows=(((0.8, 1.5), (0.8, 2.3), (0.91, 2.3), (0.96, 1.5)),),
    wheels=(0.2, 0.85),
    wheel_radius=0.5,
    belt=1.5,
    roof=3.2,
    taper=0.0,
    closed_rear=True,
)


def draw_vehicle(view: View, body: Body, x: float, z: float, colour: Colour, *, oncoming: bool) -> None:
    """A vehicle along the street whose near end is at Z = z: draws the side and the end that face the camera."""
    glass, half = shade(view.pick("window"), 0.7), body.width / 2
    flank = x + half if x < 0 else x - half
    lit = (x > 0) == (view.sun < 0)

    def along(share: float) -> float:
        return z + body.length * (1 - share if oncoming else share)

    view.ground(x - half - 0.1, x + half + 0.1, z - 0.2, z + body.length, shade(view.shadow_colour, 0.7))
    side = shade(colour, 0.92 if lit else 0.92 - 0.5 * view.style.shadow)
    view.face([(flank, height, along(share)) for share, height in body.side], side, body.label)
    for window in body.windows:
        view.face([(flank, height, along(share)) for share, height in window], glass)
    for share in body.wheels:
        middle, r = along(share), body.wheel_radius
        near, far = view.project(flank, r, middle - r)[0], view.project(flank, r, middle + r)[0]
        top, bottom = view.project(flank, 2 * r, middle)[1], view.project(flank, 0, middle)[1]
        cx, cy, rx, ry = (near + far) / 2, (top + bottom) / 2, abs(near - far) / 2, (bottom - top) / 2
        view.ellipse(cx, cy, rx, ry, _TYRE, body.label, middle)
        view.ellipse(cx, cy, rx * 0.5, ry * 0.5, _HUB, None, middle)
    _draw_end(Sprite(view, x, z, body.label), body, colour, glass, oncoming=oncoming)


def _draw_end(end: Sprite, body: Body, colour: Colour, glass: Colour, *, oncoming: bool) -> None:
    """The front of an oncoming vehicle, or the rear of a vehicle that drives ahead."""
    half, taper, sill = body.width / 2, body.taper, body.side[0][1]
    for u in (-half + 0.12, half - 0.34):
        end.rectangle(u, 0, u + 0.22, sill + 0.15, _TYRE)
    end.rectangle(-half, sill, half, body.belt, colour)
    end.polygon([(-half, body.belt), (half, body.belt), (half - taper, body.roof), (-half + taper, body.roof)], colour)
    end.rectangle(-half, sill, half, sill + 0.2, shade(colour, 0.55), detail=True)
    if body.closed_rear and not oncoming:
        end.rectangle(-0.03, sill + 0.3, 0.03, body.roof - 0.1, shade(colour, 0.7), detail=True)
    else:
        top = body.roof - (0.14 if taper else 0.5)
        inner, outer = half - taper - 0.12, half - 0.14
        end.polygon([(-outer, body.belt), (outer, body.belt), (inner, top), (-inner, top)], glass, detail=True)
    light = _HEADLIGHT if oncoming else _TAILLIGHT
    for u in (-half + 0.08, half - 0.42):
        end.rectangle(u, 0.64, u + 0.34, 0.84, light, detail=True)
    end.rectangle(-0.26, 0.5, 0.26, 0.62, _PLATE, detail=True)


def draw_crossing_vehicle(view: View, body: Body, x: float, z: float, colour: Colour, *, mirrored: bool) -> None:
    """A vehicle on the side street, seen from the side."""
    sprite = Sprite(view, x, z, body.label, squeeze=-1.0 if mirrored else 1.0)
    half, sill = body.length / 2, body.side[0][1]
    view.shadow(x, z, 1.5, 0.7 * half)

    def along(points: Sequence[Point]) -> list[Point]:
        return [((share - 0.5) * body.length, height) for share, height in points]

    sprite.polygon(along(body.side), colour)
    sprite.rectangle(-half, sill, half, sill + 0.15, shade(colour, 0.6), detail=True)
    glass = shade(view.pick("window"), 0.7)
    for window in body.windows:
        sprite.polygon(along(window), glass, detail=True)
    for u, height in along([(share, body.wheel_radius) for share in body.wheels]):
        sprite.disc(u, height, body.wheel_radius, _TYRE)
        sprite.disc(u, height, body.wheel_radius * 0.5, _HUB, detail=True)
