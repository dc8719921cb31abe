"""Houses with roofs, windows and shop fronts, and what stands between a garden and the pavement."""

from dataclasses import dataclass

import numpy as np

from proda.streets.canvas import (
    BUILDING,
    FENCE,
    NEAR,
    SIGN,
    TERRAIN,
    WALL,
    Colour,
    Sprite,
    View,
    shade,
    steps,
)
from proda.streets.town.view import TownView


@dataclass
class House:
    """What the houses of a row have in common. Lengths are in metres."""

    height: float
    wall: Colour
    frame: Colour
    glass: Colour
    roof: Colour
    pitched: bool
    shop: bool
    storey: float
    bay: float
    tall: float  # of a window
    wide: float  # of a window
    courses: bool  # shows courses of brick or stone


def plan_house(view: View, *, shop: bool, modern: bool) -> House:
    rng = view.rng
    low, high = view.style.building_height
    height = rng.uniform(low, high) if modern else rng.uniform(low, min(high, 11.0) + 2)
    storey, bay = rng.uniform(2.7, 3.6), rng.uniform(1.8, 4.0)
    frames = [(235, 235, 230), (235, 235, 230), shade(view.pick("building"), 0.6), (40, 40, 42)]
    return House(
        height=height,
        wall=view.pick("building"),
        frame=frames[rng.integers(4)],
        glass=view.pick("window"),
        roof=view.pick("roof"),
        pitched=not modern,
        shop=shop,
        storey=storey,
        bay=bay,
        tall=storey * rng.uniform(0.4, 0.68),
        wide=bay * (rng.uniform(0.6, 0.95) if modern else rng.uniform(0.3, 0.6)),
        courses=bool(rng.random() < 0.6),
    )


def draw_house(view: TownView, house: House, side: float, x: float, near: float, far: float) -> None:
    """A house with its front at X = x from Z = near to far; ``side`` is -1 (left of the street) or 1 (right)."""
    rng, shadow, height = view.rng, view.style.shadow, house.height
    near = max(near, NEAR)
    light = (1 - shadow if side == view.sun else 1.15) if view.sunny else 0.95
    front, gable = shade(house.wall, light), shade(house.wall, light * (0.8 if view.sunny else 0.92))
    deep, ridge = 9.0, height + rng.uniform(2.0, 4.0)
    if house.pitched:
        _draw_roof(view, house, side, x, (near, far), ridge)
    view.across(x, x + side * deep, near, 0, height, gable, BUILDING)
    view.upright(x, near, far, 0, height, front, BUILDING)
    if near < 45:
        if house.courses:
            for y in steps(0.6, height, max(0.5, near * 0.06)):
                view.upright(x, near, far, y, y + 0.06, shade(front, rng.uniform(0.82, 1.12)))
        for _ in range(rng.poisson(2)):  # patches: stains, repairs, shade
            z0, y0 = rng.uniform(near, far), rng.uniform(0, height)
            z1, y1 = min(far, z0 + rng.uniform(0.5, 4)), min(height, y0 + rng.uniform(0.3, 3))
            view.upright(x, z0, z1, y0, y1, shade(front, rng.uniform(0.8, 1.15)))
        for _ in range(rng.poisson(12)):  # ornaments, pipes, cables, boxes: a front is never plain
            z0, y0, wide = rng.uniform(near, far), rng.uniform(0, height), rng.random() < 0.5
            z1, y1 = z0 + rng.uniform(0.1, 2.0 if wide else 0.3), y0 + rng.uniform(0.08, 0.3 if wide else 2.0)
            view.upright(x, z0, min(far, z1), y0, min(height, y1), shade(front, rng.uniform(0.55, 1.35)))
        view.upright(x, near, far, 0, 0.4, shade(front, 0.75))
        view.upright(x, near, far, height - 0.35, height, shade(front, rng.choice([0.6, 1.2])))
        view.upright(x, near, near + 0.12, 0, height, shade(front, 0.7))  # a drainpipe
    if near < 75:
        _draw_windows(view, house, side, x, (near, far), light)


def _draw_roof(view: TownView, house: House, side: float, x: float, edges: tuple[float, float], ridge: float) -> None:
    near, far = edges
    height, back = house.height, x + side * 4.5
    view.face([(x, height, near), (x + side * 9, height, near), (back, ridge, near)], shade(house.wall, 0.8), BUILDING)
    view.face([(x, height, near), (x, height, far), (back, ridge, far), (back, ridge, near)], house.roof, BUILDING)
    if view.rng.random() < 0.7:
        z = view.rng.choice([near + 0.3, (near + far) / 2])
        brick = shade(house.wall, 0.75)
        view.across(back - 0.5, back + 0.5, z, ridge - 1, ridge + 1.1, brick, BUILDING)
        view.upright(back - side * 0.5, z, z + 0.9, ridge - 1, ridge + 1.1, shade(brick, 1.1), BUILDING)
        for shift in (-0.25, 0.25):
            view.across(back + shift - 0.1, back + shift + 0.1, z, ridge + 1.1, ridge + 1.5, house.roof, BUILDING)


def _draw_windows(
    view: TownView, house: House, side: float, x: float, edges: tuple[float, float], light: float
) -> None:
    rng, (near, far) = view.rng, edges
    frame, detailed = shade(house.frame, light), near < 40
    first = house.storey + 0.6 if house.shop else 0.9
    floors = steps(first, house.height - house.tall - 0.2, house.storey)
    door = rng.integers(3)
    for number, z in enumerate(steps(near + 0.5, far - house.wide, house.bay)):
        left = view.project(x, 0, z)[0]
        right = view.project(x, 0, z + house.wide)[0]
        if max(left, right) < -20 or min(left, right) > view.width + 20:
            continue
        glass = shade(house.glass, light * rng.uniform(0.6, 1.3))
        for y in floors:
            if view.project(x, y, z + house.wide)[1] < -10:
                break
            if detailed:
                view.upright(x, z - 0.1, z + house.wide + 0.1, y - 0.12, y + house.tall + 0.1, frame)
            view.upright(x, z, z + house.wide, y, y + house.tall, glass)
            if detailed:
                view.upright(x, z, z + house.wide, y + house.tall / 2, y + house.tall / 2 + 0.07, frame)
                view.upright(x, z + house.wide / 2, z + house.wide / 2 + 0.07, y, y + house.tall, frame)
        if not house.shop and number % 3 == door and detailed:
            view.upright(x, z - 0.1, z + 0.95, 0, 2.2, shade(view.pick("paint"), light))
    if house.shop:
        _draw_shop(view, side, x, edges, light)
    if near < 30 and rng.random() < 0.5:
        for u in steps(1.5, 8, house.bay):
            for y in floors[:5]:
                view.across(x + side * u, x + side * (u + house.wide), near, y, y + house.tall, house.glass)


def _draw_shop(view: TownView, side: float, x: float, edges: tuple[float, float], light: float) -> None:
    """A shop front: large panes, a board with letters above, sometimes an awning, and a sign that juts out."""
    rng, (near, far) = view.rng, edges
    board, paint = view.pick("shop"), shade(view.pick("shop"), 0.6)
    view.upright(x, near + 0.2, far - 0.2, 0, 3.3, shade(paint, light))
    pane = rng.uniform(1.2, 2.6)
    for z in steps(near + 0.4, far - pane, pane + 0.15):
        view.upright(x, z, z + pane, 0.5, 2.4, shade(view.pick("window"), light * rng.uniform(0.5, 1.6)))
        if rng.random() < 0.4 and near < 30:  # goods, posters, lamps
            view.upright(x, z + 0.2, z + pane * rng.uniform(0.3, 0.9), 0.7, rng.uniform(1.0, 2.0), view.pick("shirt"))
    view.upright(x, near + 0.2, far - 0.2, 2.55, 3.3, shade(board, light))
    if near < 40:
        ink = shade(board, 2.2) if sum(board) < 330 else shade(board, 0.3)
        start, letter = near + (far - near) * rng.uniform(0.1, 0.4), rng.uniform(0.2, 0.45)
        for z in steps(start, min(far - 0.5, start + letter * rng.integers(4, 12)), letter * 1.4):
            view.upright(x, z, z + letter * rng.uniform(0.5, 1), 2.75, rng.uniform(2.95, 3.15), ink)
    if rng.random() < 0.15:
        colour = shade(view.pick("shop"), 1.2)
        view.face(
            [(x, 2.6, near + 0.3), (x, 2.6, far - 0.3), (x - side * 1.2, 2.2, far - 0.3), (x - side * 1.2, 2.2, near)],
            colour, BUILDING,
        )  # fmt: skip
    if rng.random() < 0.4 and near > 4:
        z, y = rng.uniform(near, far), rng.uniform(2.7, 4.0)
        wide, high = rng.uniform(0.4, 0.9), rng.uniform(0.5, 1.1)
        colour = view.pick("shop")
        view.across(x - side * 0.15, x - side * (0.15 + wide), z, y, y + high, colour, SIGN)
        ink = shade(colour, 2.2) if sum(colour) < 330 else shade(colour, 0.3)
        view.across(x - side * 0.25, x - side * (0.05 + wide), z, y + high * 0.4, y + high * 0.65, ink)


def draw_house_front(view: TownView, house: House, left: float, right: float, z: float) -> None:
    """A house that faces the camera, at the end of a street."""
    rng, height = view.rng, house.height
    light = rng.uniform(0.75, 1.1) if view.sunny else 0.95
    if house.pitched:
        top = height + rng.uniform(1.5, 3.5)
        view.across(left, right, z, height, top, shade(house.roof, light), BUILDING)
        if rng.random() < 0.6:
            chimney = rng.uniform(left, right - 1)
            view.across(chimney, chimney + 1, z, top, top + 1.2, shade(house.wall, 0.7), BUILDING)
    view.across(left, right, z, 0, height, shade(house.wall, light), BUILDING)
    first = house.storey + 0.6 if house.shop else 0.9
    if house.shop:
        view.across(left, right, z, 0, 2.5, shade(house.glass, light * 0.8))
        view.across(left, right, z, 2.5, 3.2, shade(view.pick("shop"), light))
    for u in steps(left + 0.5, right - house.wide, house.bay):
        glass = shade(house.glass, light * rng.uniform(0.6, 1.3))
        for y in steps(first, height - house.tall - 0.2, house.storey):
            view.across(u - 0.1, u + house.wide + 0.1, z, y - 0.1, y + house.tall + 0.1, shade(house.frame, light))
            view.across(u, u + house.wide, z, y, y + house.tall, glass)


def draw_low_wall(view: TownView, x: float, near: float, far: float) -> None:
    height, colour = view.rng.uniform(0.6, 2.4), view.pick("wall")
    view.upright(x, near, far, 0, height, colour, WALL)
    for y in steps(0.2, height, max(0.25, near * 0.03)):
        view.upright(x, near, far, y, y + 0.04, shade(colour, view.rng.uniform(0.75, 1.1)))
    view.upright(x, near, far, height, height + 0.12, shade(colour, 1.25), WALL)


def draw_fence(view: TownView, x: float, near: float, far: float, kind: str, height: float, colour: Colour) -> None:
    """A fence along the street. What is behind railings stays visible; the label is the region of the whole fence."""
    near = max(near, NEAR)
    view.face([(x, 0, near), (x, 0, far), (x, height, far), (x, height, near)], None, FENCE)
    if kind == "boards":
        view.upright(x, near, far, 0, height, colour)
    bar, pitch = {"railings": (0.03, 0.13), "boards": (0.02, 0.15), "rails": (0.06, 2.0), "mesh": (0.03, 0.12)}[kind]
    tint = shade(colour, 0.7) if kind == "boards" else colour
    z = near
    while z < far:
        foot, head = view.project(x, 0, z), view.project(x, height * (1.0 if kind != "railings" else 1.04), z)
        view.line([foot, head], tint, bar * view.focal / z * 0.7, None, z)
        z += max(pitch, 3.5 * z * z / (view.focal * max(abs(x), 1.0)))  # bars are at least some pixels apart
    rails = {"railings": (0.12, 0.95), "boards": (0.97,), "rails": (0.45, 0.7, 0.97), "mesh": (0.02, 0.3, 0.6, 0.97)}
    for share in rails[kind]:
        thick = 0.09 if kind == "rails" else 0.05
        view.upright(x, near, far, height * share, height * share + thick, shade(colour, 1.1))
    for z in steps(near, far, 2.4):
        view.upright(x, z, z + 0.08, 0, height * 1.05, colour)


def draw_fence_across(view: TownView, left: float, right: float, z: float, height: float, colour: Colour) -> None:
    """Railings that face the camera."""
    fence = Sprite(view, 0, z, FENCE)
    fence.polygon([(left, 0), (right, 0), (right, height), (left, height)], None)
    fence.label = None
    for u in steps(left, right, max(0.12, 4 / fence.scale)):
        fence.line([(u, 0), (u, height)], colour, 0.025)
    for v in (0.1, height):
        fence.rectangle(left, v - 0.03, right, v + 0.03, colour)


def draw_lawn(view: TownView, side: float, x: float, near: float, far: float, colour: Colour) -> None:
    view.face([(x, 0, near), (x + side * 80, 0, near), (x + side * 80, 0, far), (x, 0, far)], colour, TERRAIN)


def random_fence(rng: np.random.Generator) -> tuple[str, float]:
    """A kind of fence and its height in metres."""
    kind = str(rng.choice(["railings", "railings", "boards", "rails", "mesh"]))
    return kind, rng.uniform(0.8, 1.3) if kind == "rails" else rng.uniform(0.9, 2.2)
