"""The sky, the road, its markings and the pavements."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps

from proda.streets.canvas import FAR, NEAR, ROAD, SIDEWALK, SKY, TERRAIN, Colour, shade, steps
from proda.streets.town.view import DEPTHS, TownView

KERB = 0.12  # height of the pavement in metres


@dataclass
class Plan:
    """Where the ground of a street is. Lengths are in metres."""

    left: float  # X of the kerbs
    right: float
    walks: tuple[float, float]  # widths of the pavements
    crossing: tuple[float, float] | None  # near and far edge of the side street


def draw_sky(view: TownView) -> None:
    """A gradient from the zenith to the horizon, with clouds of noise."""
    rng, width = view.rng, view.width
    bottom = min(view.height, round(view.horizon) + 4)
    top, low, cloud = (np.array(view.pick(name), np.float32) for name in ("sky", "horizon", "cloud"))
    view.haze_colour = (int(low[0]), int(low[1]), int(low[2]))
    share = np.linspace(0, 1, bottom, dtype=np.float32)[:, None, None] ** rng.uniform(0.5, 1.5)
    sky = np.repeat(top + (low - top) * share, 2, axis=1)
    image = Image.fromarray(sky.clip(0, 255).astype(np.uint8)).resize((width, bottom))
    if rng.random() < 0.15 + 0.8 * view.style.clouds:
        layers = [(6, 3, 1.0), (14, 7, 0.6), (40, 20, 0.3)]
        noise = np.zeros((bottom // 4, width // 4), np.float32)
        for across, down, weight in layers:
            small = Image.fromarray(rng.standard_normal((down, across), np.float32))
            noise += weight * np.asarray(small.resize((width // 4, bottom // 4), Image.Resampling.BICUBIC))
        cover = (noise * rng.uniform(0.2, 0.7) + rng.uniform(-0.3, 0.8)).clip(0, 1)
        mask = Image.fromarray((cover * 255).astype(np.uint8)).resize((width, bottom), Image.Resampling.BILINEAR)
        tones = Image.fromarray((128 + 60 * noise.clip(-2, 2)).astype(np.uint8)).resize((width, bottom))
        bright, dark = tuple(int(part) for part in cloud), tuple(int(part * rng.uniform(0.6, 0.95)) for part in cloud)
        image.paste(ImageOps.colorize(tones, bright, dark), (0, 0), mask)
    view.image.paste(image, (0, 0))
    view.polygon([(0, 0), (width, 0), (width, bottom), (0, bottom)], None, SKY)


def draw_ground(view: TownView, plan: Plan) -> None:
    rng, style = view.rng, view.style
    road, grass = view.pick("road"), view.pick("grass")
    view.shadow_colour = shade(road, 1 - 0.9 * style.shadow)
    beyond = grass if rng.random() < 0.5 else view.pick("sidewalk")
    view.ground(-400, 400, NEAR, FAR * 3, beyond, TERRAIN if beyond == grass else SIDEWALK)
    view.strip(plan.left, plan.right, road, ROAD)
    for _ in range(2):  # worn tracks of wheels, or lanes of another asphalt
        x, wide = rng.uniform(plan.left, plan.right), rng.uniform(0.4, 3)
        view.strip(max(plan.left, x - wide), min(plan.right, x + wide), shade(road, rng.uniform(0.88, 1.1)))
    _draw_pavements(view, plan, grass)
    if plan.crossing:
        view.ground(-80, 80, *plan.crossing, road, ROAD)
        _draw_corners(view, plan)
    for _ in range(rng.poisson(style.stains + 2)):  # stains, repaired trenches, manhole covers
        x, z = rng.uniform(plan.left, plan.right), rng.uniform(3, 30)
        view.ground(x, x + rng.uniform(0.3, 2), z, z * rng.uniform(1.05, 1.5), shade(road, rng.uniform(0.7, 1.15)))
    _draw_markings(view, plan, road)


def _draw_pavements(view: TownView, plan: Plan, grass: Colour) -> None:
    rng = view.rng
    asphalt = rng.random() < 0.45
    pavement = shade(view.pick("road"), rng.uniform(0.75, 1.4)) if asphalt else view.pick("sidewalk")
    kerb, joint = view.pick("kerb"), shade(pavement, rng.uniform(0.7, 0.92))
    slab, verge = rng.uniform(0.4, 1.6), rng.random() < 0.15
    gutter = shade(view.pick("road"), rng.uniform(0.5, 0.9))
    for side, inner, walk in ((-1.0, plan.left, plan.walks[0]), (1.0, plan.right, plan.walks[1])):
        outer = inner + side * walk
        view.strip(inner, inner - side * 0.35, gutter)
        for near, far in view.cuts((NEAR, DEPTHS[-1])):
            view.slab(inner, outer, (near, far), KERB, pavement, SIDEWALK)
            view.upright(inner, near, far, 0, KERB, shade(kerb, 0.75), SIDEWALK)
            view.slab(inner, inner + side * 0.22, (near, far), KERB, kerb, SIDEWALK)
        if not asphalt:
            z = NEAR
            while z < 35:
                view.slab(inner + side * 0.22, outer, (z, z + 0.04 + 0.004 * z), KERB, joint)
                z += max(slab, 0.05 * z)
            for u in steps(slab, walk, slab):
                view.strip(inner + side * u, inner + side * (u + 0.05), joint, height=KERB, edges=(NEAR, 25))
        if verge and walk > 2.5:
            view.strip(inner + side * 0.3, inner + side * 1.4, grass, TERRAIN, height=KERB)
        for _ in range(rng.poisson(2)):
            u, z = rng.uniform(0.3, walk), rng.uniform(4, 30)
            view.slab(
                inner + side * u, inner + side * min(walk, u + rng.uniform(0.3, 1.5)), (z, z * rng.uniform(1.05, 1.4)),
                KERB, shade(pavement, rng.uniform(0.75, 1.2)),
            )  # fmt: skip


def _draw_corners(view: TownView, plan: Plan) -> None:
    """The pavements along the side street."""
    assert plan.crossing
    pavement, kerb = view.pick("sidewalk"), view.pick("kerb")
    near, far = plan.crossing
    for side, inner, walk in ((-1.0, plan.left, plan.walks[0]), (1.0, plan.right, plan.walks[1])):
        for z0, z1, edge in ((far, far + walk, far), (near - walk, near, near)):
            view.slab(inner + side * 0.8, side * 80, (z0, z1), KERB, pavement, SIDEWALK)
            view.slab(inner + side * 0.8, side * 80, (edge, edge + 0.25), KERB, kerb)


def _draw_markings(view: TownView, plan: Plan, road: Colour) -> None:
    """Lines of the lanes and along the kerbs, zebra crossings, letters, boxes and bus lanes: each in some streets."""
    rng, (left, right) = view.rng, (plan.left, plan.right)
    white, wear = view.pick("marking"), rng.uniform(0.35, 1.0)
    yellow = view.pick("sign_yellow")

    def worn(colour: Colour) -> Colour:
        r, g, b = (int(wear * c + (1 - wear) * under) for c, under in zip(colour, road, strict=True))
        return r, g, b

    if rng.random() < 0.12:
        lane = worn(((150, 60, 50), (60, 110, 70))[rng.integers(2)])
        view.strip(right - 3.2, right, lane) if rng.random() < 0.5 else view.strip(right - 1.6, right, lane)
    lanes = 2 if right - left < 11 else int(rng.integers(2, 5))
    centre, dash, gap = rng.random(), rng.uniform(1, 5), rng.uniform(2, 6)
    for lane_number in range(1, lanes):
        x, wide = left + (right - left) * lane_number / lanes, rng.uniform(0.05, 0.1)
        if centre < 0.15:
            continue
        if centre < 0.25:
            view.strip(x - wide, x + wide, worn(white), edges=(NEAR, 90))
            continue
        for z in steps(rng.uniform(NEAR, 6), 70, dash + gap):
            view.ground(x - wide, x + wide, z, z + dash, worn(white))
    for x in (left, right):
        inwards, kind = (1.0 if x == left else -1.0), rng.random()
        colour = worn(yellow if kind < 0.5 else white)
        for shift in (0.25, 0.45) if kind < 0.35 else (0.3,) if kind < 0.6 else ():
            view.strip(x + inwards * shift, x + inwards * (shift + 0.09), colour, edges=(NEAR, 80))
        if kind > 0.92:  # zigzag in front of a crossing
            for z in steps(4, 24, 4):
                points = [(x + inwards * u, 0, z + dz) for u, dz in ((0.5, 0), (0.6, 0), (1.3, 2), (1.2, 2))]
                view.face(points, colour)
                points = [(x + inwards * u, 0, z + dz) for u, dz in ((1.2, 2), (1.3, 2), (0.6, 4), (0.5, 4))]
                view.face(points, colour)
    if rng.random() < 0.3:
        near = rng.uniform(6, 30)
        for x in steps(left + 0.4, right - 0.6, 1.2):
            view.ground(x, x + 0.6, near, near + rng.uniform(2, 3), worn(white))
    if rng.random() < 0.25:
        near = rng.uniform(5, 25)
        view.ground(0 if rng.random() < 0.5 else left, right, near, near + rng.uniform(0.2, 0.4), worn(white))
    if rng.random() < 0.35:  # letters
        x, z, colour = rng.uniform(left + 0.5, max(left + 0.6, right - 3)), rng.uniform(4, 15), worn(white)
        for u in steps(0, 2.4, 0.6):
            for _ in range(3):
                du, dz = rng.uniform(0, 0.35), rng.uniform(0, 1.5)
                if rng.random() < 0.5:
                    view.ground(x + u + du, x + u + du + 0.1, z, z + 1.8, colour)
                else:
                    view.ground(x + u, x + u + 0.45, z + dz, z + dz + 0.25, colour)
    if rng.random() < 0.2:  # an arrow
        x, z, colour = rng.uniform(left + 1, right - 1), rng.uniform(4, 15), worn(white)
        view.ground(x - 0.08, x + 0.08, z, z + 3, colour)
        view.face([(x - 0.4, 0, z + 2.6), (x + 0.4, 0, z + 2.6), (x, 0, z + 4)], colour)
    if rng.random() < 0.12 or (plan.crossing and rng.random() < 0.25):  # a box that has to be kept clear
        near, far = plan.crossing or (6.0, 14.0)
        colour = worn(yellow)
        for u in steps(left - 8, right, 2.0):
            for a, b in ((u, u + far - near), (u + far - near, u)):
                a, b = (min(max(end, left), right) for end in (a, b))
                if abs(a - b) > 1:
                    view.face(
                        [(a - 0.07, 0, near), (a + 0.07, 0, near), (b + 0.07, 0, far), (b - 0.07, 0, far)], colour
                    )
