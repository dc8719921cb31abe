"""The street: sky, ground, houses, garden boundaries and the skyline."""

from proda.streets.canvas import (
    BUILDING,
    FAR,
    FENCE,
    NEAR,
    ROAD,
    SIDEWALK,
    SKY,
    TERRAIN,
    VEGETATION,
    WALL,
    Sprite,
    View,
    shade,
    steps,
)
from proda.streets.roadside import draw_crown
from proda.streets.style import Range


def draw_sky(view: View) -> None:
    rng, width = view.rng, view.width
    bottom = view.horizon + 2
    top, haze = view.pick("sky"), view.haze_colour
    for band in range(24):
        share, y = band / 23, bottom * band / 24
        r, g, b = (int(t + (h - t) * share) for t, h in zip(top, haze, strict=True))
        view.polygon([(0, y), (width, y), (width, bottom), (0, bottom)], (r, g, b), None)
    view.polygon([(0, 0), (width, 0), (width, bottom), (0, bottom)], None, SKY)
    for _ in range(rng.poisson(12 * view.style.clouds)):
        x, y = rng.uniform(0, width), rng.uniform(0, 0.8 * bottom)
        for _ in range(4):
            rx = rng.uniform(0.03, 0.10) * width
            ry = rx * rng.uniform(0.15, 0.35)
            view.ellipse(x, y, rx, ry, view.pick("cloud"), None, 0)
            x, y = x + rng.normal(0, rx), y + rng.normal(0, ry / 2)


def draw_ground(view: View, left: float, right: float, walk: float, crossing: Range | None) -> None:
    """Terrain, the road, its sidewalks and the side street.

    Args:
        left, right: X of the kerbs.
        walk: width of the sidewalks in metres.
        crossing: near and far edge (Z) of the side street, or None.
    """
    rng, style = view.rng, view.style
    road, pavement, kerb = view.pick("road"), view.pick("sidewalk"), view.pick("kerb")
    view.shadow_colour = shade(road, 1 - 0.9 * style.shadow)
    view.ground(-400, 400, NEAR, FAR * 3, view.pick("grass"), TERRAIN)
    # Road and sidewalks are drawn in bands of depth, because haze applies to each shape as a whole.
    bands = ((60, FAR), (30, 60), (14, 30), (NEAR, 14))
    for inner, outer in ((left, left - walk), (right, right + walk)):
        for near, far in bands:
            view.ground(outer, inner, near, far, pavement, SIDEWALK)
        joint = shade(pavement, 0.9)
        for z in steps(3, 30, 1.6):  # joints between slabs
            view.ground(outer, inner, z, z + 0.10, joint)
    for near, far in bands:
        view.ground(left, right, near, far, road, ROAD)
    for x in (left, right):
        view.ground(x - 0.15, x + 0.15, NEAR, FAR, kerb, SIDEWALK)
    if crossing:
        view.ground(-60, 60, *crossing, road, ROAD)
    for _ in range(rng.poisson(style.stains)):  # stains and repaired patches
        x, z = rng.uniform(left, right), rng.uniform(5, 30)
        view.ground(x, x + rng.uniform(0.5, 2), z, z * rng.uniform(1.1, 1.5), shade(road, rng.uniform(0.8, 1.15)))
    _draw_markings(view, left, right, crossing)


def _draw_markings(view: View, left: float, right: float, crossing: Range | None) -> None:
    rng, european, marking = view.rng, view.style.european, view.pick("marking")
    lanes = 2 if right - left < 11 else 4
    for lane in range(1, lanes):
        x = left + (right - left) * lane / lanes
        if 2 * lane == lanes and not european:
            for shift in (-0.16, 0.16):
                view.ground(x + shift - 0.07, x + shift + 0.07, NEAR, FAR, (225, 180, 50))
        else:
            for z in steps(rng.uniform(2, 8), 60, 8.0):
                view.ground(x - 0.08, x + 0.08, z, z + 3.5, marking)
    if crossing and crossing[0] > 9:
        near = crossing[0] - 3
        for x in steps(left + 0.4, right - 0.4, 1.1):
            view.ground(x, x + 0.55, near, near + 2.2, marking)
        if not european:
            view.ground((left + right) / 2, right, near - 1.2, near - 0.8, marking)


def draw_house(view: View, side: float, x: float, near: float, far: float) -> None:
    """A house with its front at X = x from Z = near to far; ``side`` is -1 (left of the street) or 1 (right)."""
    rng, shadow = view.rng, view.style.shadow
    height = rng.uniform(*view.style.building_height)
    wall, glass = view.pick("building"), view.pick("window")
    light = 1 - shadow if side == view.sun else 1.0  # the sun lights the fronts on the opposite side
    front, glass, gable = shade(wall, light), shade(glass, light), shade(wall, 0.95 - 0.6 * shadow)
    view.across(x, x + side * 14, near, 0, height, gable, BUILDING)
    view.upright(x, near, far, 0, height, front, BUILDING)
    view.upright(x, near, far, 0, 0.7, shade(front, 0.75))
    view.upright(x, near, far, height - 0.5, height, shade(front, 1.12))
    storey, bay = rng.uniform(2.8, 3.6), rng.uniform(2.2, 4.0)
    tall, wide = storey * rng.uniform(0.45, 0.65), bay * rng.uniform(0.35, 0.65)
    shop = rng.random() < 0.4
    if near > 70:  # windows would be smaller than a pixel
        return
    floors = steps(storey + 0.7 if shop else 1.0, height - tall - 0.4, storey)
    for z in steps(near + 0.6, far - wide, bay):
        if not -20 < view.project(x, 0, z + wide)[0] < view.width + 20:
            continue
        if shop:
            view.upright(x, z, z + bay * 0.8, 0.5, 2.4, shade(glass, 0.8))
        for y in floors:
            if view.project(x, y, z + wide)[1] < -10:
                break
            view.upright(x, z, z + wide, y, y + tall, glass)
    if near > 4 and 0 < view.project(x, 0, near)[0] < view.width:
        for u in steps(1.0, 12, bay):
            for y in floors:
                view.across(x + side * u, x + side * (u + wide), near, y, y + tall, shade(glass, 0.85))


def draw_boundary(view: View, side: float, x: float, near: float, far: float) -> None:
    """The boundary between a garden and the street: a wall, a fence, a hedge or nothing."""
    kind = view.rng.choice(["wall", "fence", "hedge", "nothing"], p=[0.2, 0.25, 0.3, 0.25])
    if kind == "wall":
        height, colour = view.rng.uniform(1.2, 2.5), view.pick("wall")
        view.upright(x, near, far, 0, height, colour, WALL)
        view.upright(x, near, far, height, height + 0.15, shade(colour, 1.2))
    elif kind == "fence":
        colour = view.pick("fence")
        view.face([(x, 0, near), (x, 0, far), (x, 1.3, far), (x, 1.3, near)], None, FENCE)
        for y in (0.25, 1.15):
            view.upright(x, near, far, y, y + 0.12, colour)
        for z in steps(max(near, 3), min(far, 40), 0.5):
            view.upright(x, z, z + 0.22, 0, 1.3, colour)
    elif kind == "hedge":
        height, colour = view.rng.uniform(0.8, 2.2), view.pick("leaf")
        view.across(x, x + side * 3, near, 0, height, colour, VEGETATION)
        view.upright(x, near, far, 0, height, shade(colour, 0.9), VEGETATION)


def draw_skyline(view: View) -> None:
    """Distant houses and trees around the vanishing point."""
    rng, x = view.rng, -110.0
    while x < 110:
        width = rng.uniform(8, 25)
        if rng.random() < 0.45:
            height, colour = rng.uniform(6, 22), view.pick("building")
            house = Sprite(view, x, FAR, BUILDING)
            house.rectangle(0, 0, width, height, colour)
            for v in steps(2, height - 2, 4):
                house.rectangle(1.5, v, width - 1.5, v + 1.5, shade(colour, 0.8), detail=True)
        elif rng.random() < 0.7:
            draw_crown(Sprite(view, x + width / 2, FAR, VEGETATION), width / 2, 4.0, view.pick("leaf"))
        x += width
