"""Poles of all kinds, traffic lights, signs, bollards, wires, and other things on a pavement."""

import math

from proda.method import IGNORE
from proda.streets.canvas import FENCE, LIGHT, POLE, SIDEWALK, SIGN, Colour, Sprite, shade
from proda.streets.town.view import TownView

DARK = (36, 37, 40)


def draw_pole(view: TownView, x: float, z: float) -> None:
    """A thin pole: a street lamp of some shape, a telegraph pole, or a bare post."""
    rng, pole, colour = view.rng, Sprite(view, x, z, POLE), view.pick("pole")
    kind = rng.choice(["arm", "arm", "top", "lantern", "post", "post"])
    height = rng.uniform(2.0, 4.5) if kind in ("lantern", "post") else rng.uniform(5, 10)
    thick = rng.uniform(0.04, 0.09)
    _shaft(pole, height, colour, thick)
    if kind == "arm":
        arm = -math.copysign(rng.uniform(0.8, 2.4), x)
        bent = [(0.0, height), (arm * 0.3, height + 0.35), (arm, height + 0.45)]
        pole.line(bent, colour, thick * 1.2)
        pole.rectangle(arm - 0.3, height + 0.38, arm + 0.3, height + 0.55, shade(colour, 1.3))
    elif kind == "top":
        pole.rectangle(-0.3, height, 0.3, height + 0.16, shade(colour, 1.2))
    elif kind == "lantern":
        pole.polygon([(-0.12, height), (0.12, height), (0.2, height + 0.45), (-0.2, height + 0.45)], (200, 200, 190))
        pole.polygon([(-0.24, height + 0.45), (0.24, height + 0.45), (0, height + 0.65)], colour)


def _shaft(pole: Sprite, height: float, colour: Colour, thick: float) -> None:
    pole.rectangle(-thick, 0, thick, height, colour)
    pole.rectangle(-thick, 0, -thick * 0.2, height, shade(colour, 1.25 if pole.view.sun < 0 else 0.75), detail=True)
    pole.rectangle(-thick * 1.6, 0, thick * 1.6, min(1.0, height * 0.3), shade(colour, 0.85))


def draw_wires(view: TownView, x0: float, z0: float, x1: float, z1: float) -> None:
    """Wires between two places above the street. They are too thin for a label."""
    y = view.rng.uniform(6, 9)
    for shift in range(int(view.rng.integers(1, 4))):
        points = []
        for part in (0.0, 0.25, 0.5, 0.75, 1.0):
            sag = 0.6 * (1 - (2 * part - 1) ** 2)
            points.append(view.project(x0 + (x1 - x0) * part, y + 0.3 * shift - sag, z0 + (z1 - z0) * part))
        view.line(points, DARK, 1, None, min(z0, z1))


def draw_light(view: TownView, x: float, z: float) -> None:
    """A traffic light on a post, mostly with a dark housing."""
    rng, colour = view.rng, view.pick("pole")
    housing = DARK if rng.random() < 0.75 else view.pick("light")
    low = rng.uniform(2.0, 2.6)
    _shaft(Sprite(view, x, z, POLE), low + 0.3, colour, rng.uniform(0.05, 0.08))
    heads, lit = [(0.0, low)], rng.integers(3)
    if rng.random() < 0.2:
        arm = -math.copysign(rng.uniform(2, 4), x)
        pole = Sprite(view, x, z, POLE)
        _shaft(pole, 5.6, colour, 0.08)
        pole.line([(0, 5.4), (arm, 5.6)], colour, 0.12)
        heads.append((arm, 4.6))
    head, wide = Sprite(view, x, z, LIGHT), rng.uniform(0.13, 0.22)
    facing = rng.random() < 0.75
    for u, v in heads:
        if rng.random() < 0.5:
            head.rectangle(u - wide * 1.5, v - 0.1, u + wide * 1.5, v + 1.1, (215, 215, 210))
            head.rectangle(u - wide * 1.35, v - 0.04, u + wide * 1.35, v + 1.04, DARK, detail=True)
        head.rectangle(u - wide, v, u + wide, v + 1.0, housing)
        for lamp, bright in enumerate(((255, 40, 30), (255, 190, 40), (50, 235, 120))):
            tone = bright if lamp == lit else shade(bright, 0.22)
            if facing:
                head.disc(u, v + 0.82 - 0.32 * lamp, 0.12, tone, detail=True)


def draw_sign(view: TownView, x: float, z: float) -> None:
    """A sign on a post: round, triangular, a board for directions, a notice for parking, or a large panel."""
    rng, post = view.rng, Sprite(view, x, z, POLE)
    sign, r = Sprite(view, x, z, SIGN, squeeze=rng.uniform(0.6, 1.0)), rng.uniform(0.28, 0.5)
    v = rng.uniform(1.9, 2.8) + r
    red, white, blue, yellow = (view.pick(f"sign_{name}") for name in ("red", "white", "blue", "yellow"))
    kind = rng.choice(["ring", "triangle", "disc", "board", "notice", "panel", "keep"])
    if kind in ("ring", "triangle", "disc", "notice"):
        _shaft(post, v + r * rng.uniform(0, 0.8), view.pick("pole"), rng.uniform(0.035, 0.06))
    if kind == "ring":
        sign.disc(0, v, r, red)
        sign.disc(0, v, r * 0.75, white, detail=True)
        sign.rectangle(-r * 0.4, v - r * 0.3, r * 0.4, v + r * 0.3, DARK, detail=True)
    elif kind == "triangle":
        turn = rng.choice([-1, 1], p=[0.3, 0.7])
        sign.polygon([(-r, v - turn * 0.7 * r), (r, v - turn * 0.7 * r), (0, v + turn * r)], red)
        inner = [(-r * 0.65, v - turn * 0.5 * r), (r * 0.65, v - turn * 0.5 * r), (0, v + turn * 0.65 * r)]
        sign.polygon(inner, white, detail=True)
    elif kind == "disc":
        sign.disc(0, v, r, blue if rng.random() < 0.6 else red)
        sign.rectangle(-r * 0.65, v - r * 0.15, r * 0.65, v + r * 0.15, white, detail=True)
    elif kind == "notice":
        sign.rectangle(-r * 0.6, v - r * 0.7, r * 0.6, v + r * 0.7, white if rng.random() < 0.6 else yellow)
        for w in (-0.4, 0.0, 0.4):
            sign.rectangle(-r * 0.4, v + r * w, r * 0.4, v + r * (w + 0.15), DARK, detail=True)
    elif kind == "keep":  # on a bollard that is lit from inside
        sign.rectangle(-0.2, 0.15, 0.2, 1.1, white)
        sign.disc(0, 0.75, 0.17, blue, detail=True)
        sign.rectangle(-0.2, 0.15, 0.2, 0.45, yellow, detail=True)
    else:
        wide, high, low = rng.uniform(0.6, 1.6), rng.uniform(0.4, 1.4), rng.uniform(0.5, 2.6)
        if kind == "panel":
            wide, high, low = rng.uniform(0.5, 0.9), rng.uniform(1.5, 3.0), 0.1
        board = (white, blue, (25, 95, 60), view.pick("shop"))[rng.integers(4)]
        ink = white if board is not white else DARK
        for u in (-wide * 0.8, wide * 0.8):
            post.rectangle(u - 0.05, 0, u + 0.05, low + high, view.pick("pole"))
        sign.rectangle(-wide, low, wide, low + high, board)
        for row in (0.2, 0.45, 0.7):
            end = rng.uniform(-0.2, 0.8)
            sign.rectangle(-wide * 0.8, low + high * row, wide * end, low + high * (row + 0.12), ink, detail=True)


def draw_bollard(view: TownView, x: float, z: float) -> None:
    post, colour = Sprite(view, x, z, POLE), view.pick("pole")
    thick, height = view.rng.uniform(0.05, 0.12), view.rng.uniform(0.8, 1.1)
    post.rectangle(-thick, 0, thick, height, colour)
    post.rectangle(-thick, height * 0.75, thick, height * 0.85, shade(colour, 1.8), detail=True)


def draw_bin(view: TownView, x: float, z: float) -> None:
    """A bin, a box of a telephone company or a pillar box: a thing of the pavement without a class of its own."""
    rng, wide, high = view.rng, view.rng.uniform(0.2, 0.5), view.rng.uniform(0.8, 1.5)
    box = Sprite(view, x, z, IGNORE)
    colour = view.pick("shop")
    box.rectangle(-wide, 0, wide, high, colour)
    box.rectangle(-wide, 0, -wide * 0.3, high, shade(colour, 0.7), detail=True)
    box.rectangle(-wide, high * 0.8, wide, high * rng.uniform(0.85, 0.95), shade(colour, 0.5), detail=True)


def draw_island(view: TownView, x: float, z: float) -> None:
    """A refuge in the middle of the road, with a kerb."""
    kerb, top = view.pick("kerb"), view.pick("sidewalk")
    half, length = view.rng.uniform(0.5, 1.0), view.rng.uniform(2, 5)
    view.across(x - half, x + half, z, 0, 0.12, shade(kerb, 0.7), SIDEWALK)
    view.slab(x - half, x + half, (z, z + length), 0.12, top, SIDEWALK)


def draw_barrier(view: TownView, x: float, z: float, length: float, colour: Colour) -> None:
    """A piece of railing at the kerb, between the pavement and the road."""
    height, far = 1.05, z + length
    view.face([(x, 0.1, z), (x, 0.1, far), (x, height, far), (x, height, z)], None, FENCE)
    step = max(0.14, 3.5 * z * z / (view.focal * max(abs(x), 1.0)))
    at = z
    while at < far:
        view.line([view.project(x, 0.15, at), view.project(x, height, at)], colour, 0.02 * view.focal / at, None, at)
        at += step
    for low in (0.15, height - 0.06):
        view.upright(x, z, far, low, low + 0.06, colour)
    view.upright(x, z, z + 0.07, 0, height + 0.05, colour)
