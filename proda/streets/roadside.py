"""Objects beside the road: trees, street lamps, traffic lights and traffic signs."""

import math

import numpy as np

from proda.streets.canvas import LIGHT, POLE, SIGN, VEGETATION, Colour, Sprite, View, shade

_DARK = (40, 40, 40)


def draw_crown(sprite: Sprite, radius: float, middle: float, colour: Colour) -> None:
    """The crown of a tree as overlapping discs: darker at the rim, lighter towards the sun."""
    rng, sun = sprite.view.rng, sprite.view.sun
    for ring, tone in ((0.75, 0.78), (0.6, 0.92), (0.35, 1.08)):
        shift = (0.8 - ring) * radius * 0.5
        for turn, size, light in rng.random((5, 3)).tolist():
            u, v = (
                0.7 * ring * radius * math.cos(2 * math.pi * turn),
                0.6 * ring * radius * math.sin(2 * math.pi * turn),
            )
            tint = shade(colour, tone * (0.93 + 0.14 * light))
            sprite.disc(u + sun * shift, middle + v + shift, radius * (0.38 + 0.2 * size), tint)


def draw_tree(view: View, x: float, z: float) -> None:
    rng = view.rng
    tree = Sprite(view, x, z, VEGETATION)
    height, radius = rng.uniform(4, 9), rng.uniform(1.4, 2.8)
    view.shadow(x, z, radius * 0.8)
    tree.rectangle(-0.16, 0, 0.16, height - radius, view.pick("trunk"))
    draw_crown(tree, radius, max(height - radius * 0.6, 2.2 + radius * 0.5), view.pick("leaf"))


def draw_lamp(view: View, x: float, z: float) -> None:
    lamp, colour = Sprite(view, x, z, POLE), view.pick("pole")
    height, arm = view.rng.uniform(5.5, 8), -math.copysign(1.6, x)
    _draw_pole(lamp, height, colour)
    lamp.line([(0, height), (arm, height + 0.3)], colour, 0.1)
    lamp.rectangle(arm - 0.35, height + 0.2, arm + 0.35, height + 0.4, shade(colour, 1.3))


def draw_light(view: View, x: float, z: float) -> None:
    """A traffic light on a pole, sometimes with a second light on an arm above the road."""
    rng, colour, housing = view.rng, view.pick("pole"), view.pick("light")
    pole, head = Sprite(view, x, z, POLE), Sprite(view, x, z, LIGHT)
    places = [(0.0, rng.uniform(1.9, 2.6))]
    if rng.random() < (0.3 if view.style.european else 0.6):
        arm = -math.copysign(rng.uniform(2, 4), x)
        _draw_pole(pole, 5.6, colour)
        pole.line([(0, 5.3), (arm, 5.5)], colour, 0.12)
        places.append((arm, 4.6))
    _draw_pole(pole, places[0][1], colour)
    lit = rng.integers(3)
    for u, v in places:
        head.rectangle(u - 0.3, v, u + 0.3, v + 1.5, housing)
        for lamp, bright in enumerate(((255, 40, 30), (255, 190, 40), (50, 235, 120))):
            tone = bright if lamp == lit else shade(bright, 0.28)
            head.disc(u, v + 1.22 - 0.46 * lamp, 0.2, tone, detail=True)


def draw_sign(view: View, x: float, z: float) -> None:
    """A European or American traffic sign, depending on the style, on its pole."""
    rng = view.rng
    height, r = rng.uniform(1.8, 2.4), rng.uniform(0.5, 0.75)
    v = height + 0.35  # height of the centre
    _draw_pole(Sprite(view, x, z, POLE), height + 0.3, view.pick("pole"))
    sign = Sprite(view, x, z, SIGN)
    red, white, blue, yellow = (view.pick(f"sign_{name}") for name in ("red", "white", "blue", "yellow"))
    diamond = [(0, v - r), (r, v), (0, v + r), (-r, v)]
    octagon = [(r * math.cos(a), v + r * math.sin(a)) for a in np.linspace(np.pi / 8, 15 / 8 * np.pi, 8).tolist()]
    kind = rng.choice(
        ["ring", "triangle", "arrow", "priority", "parking"]
        if view.style.european
        else ["stop", "diamond", "limit", "board"]
    )
    if kind == "ring":
        sign.disc(0, v, r, red)
        sign.disc(0, v, r * 0.7, white, detail=True)
        sign.rectangle(-r * 0.3, v - r * 0.25, r * 0.3, v + r * 0.25, _DARK, detail=True)
    elif kind == "triangle":
        sign.polygon([(-r, v - 0.7 * r), (r, v - 0.7 * r), (0, v + r)], red)
        sign.polygon([(-r * 0.6, v - 0.5 * r), (r * 0.6, v - 0.5 * r), (0, v + 0.55 * r)], white, detail=True)
    elif kind == "arrow":
        sign.disc(0, v, r, blue)
        sign.polygon([(-r * 0.5, v), (0, v + r * 0.6), (r * 0.5, v), (0, v - r * 0.1)], white, detail=True)
    elif kind == "priority":
        sign.polygon(diamond, white)
        sign.polygon([(0.7 * u, v + 0.7 * (w - v)) for u, w in diamond], yellow, detail=True)
    elif kind == "parking":
        sign.rectangle(-r * 0.75, v - r, r * 0.75, v + r, blue)
        sign.rectangle(-r * 0.3, v - r * 0.6, r * 0.3, v + r * 0.5, white, detail=True)
    elif kind == "stop":
        sign.polygon(octagon, red)
        sign.rectangle(-r * 0.6, v - r * 0.15, r * 0.6, v + r * 0.15, white, detail=True)
    elif kind == "diamond":
        sign.polygon(diamond, yellow)
        sign.rectangle(-r * 0.12, v - r * 0.45, r * 0.12, v + r * 0.45, _DARK, detail=True)
    elif kind == "limit":
        sign.rectangle(-r * 0.75, v - r, r * 0.75, v + r, white)
        sign.rectangle(-r * 0.4, v - r * 0.6, r * 0.4, v + r * 0.5, _DARK, detail=True)
    else:
        sign.rectangle(-r * 1.8, v - r * 0.6, r * 1.8, v + r * 0.7, (30, 130, 70))
        for w in (-0.2, 0.3):
            sign.rectangle(-r * 1.4, v + r * w - 0.05, r * 1.2, v + r * w + 0.07, white, detail=True)


def _draw_pole(sprite: Sprite, height: float, colour: Colour) -> None:
    sprite.rectangle(-0.06, 0, 0.06, height, colour)
    sprite.rectangle(-0.1, 0, 0.1, 0.5, shade(colour, 0.8))
