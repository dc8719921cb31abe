"""People on foot, bicycles and motorcycles, with and without riders."""

import math

from proda.streets.canvas import BICYCLE, MOTORCYCLE, PERSON, RIDER, Colour, Sprite, View, shade

_BLACK, _METAL = (28, 28, 30), (120, 122, 126)


def draw_person(view: View, x: float, z: float) -> None:
    rng = view.rng
    person = Sprite(view, x, z, PERSON)
    shirt, trousers, skin = view.pick("shirt"), view.pick("trousers"), view.pick("skin")
    hair = shade(skin, rng.uniform(0.25, 0.6))
    size, stride, swing = rng.uniform(0.92, 1.08), rng.uniform(0.05, 0.28), rng.uniform(0.02, 0.25)
    view.shadow(x, z, 0.35)
    for foot, tone in ((-stride, 0.85), (stride, 1.0)):
        person.line([(0, 0.9 * size), (foot * 0.6, 0.48 * size), (foot, 0.05)], shade(trousers, tone), 0.19)
        person.rectangle(foot - 0.08, 0, foot + 0.14, 0.08, (40, 36, 34))
    for side, tone in ((-1, 0.8), (1, 0.9)):
        person.line([(side * 0.2, 1.38 * size), (side * (0.26 + 0.3 * swing), 0.95 * size)], shade(shirt, tone), 0.12)
    person.polygon([(-0.19, 0.85 * size), (0.19, 0.85 * size), (0.25, 1.42 * size), (-0.25, 1.42 * size)], shirt)
    person.rectangle(-0.06, 1.4 * size, 0.06, 1.5 * size, skin)
    person.disc(0, 1.6 * size, 0.135, hair, tall=1.2)
    person.disc(0.02, 1.57 * size, 0.105, skin, tall=1.15, detail=True)
    if rng.random() < 0.3:  # a bag
        person.rectangle(-0.34, 0.62 * size, -0.2, 0.95 * size, view.pick("shirt"))


def draw_cycle(view: View, x: float, z: float, *, motor: bool, rider: bool) -> None:
    """A bicycle or a motorcycle, seen from the side or at an angle, with or without a rider."""
    angle = math.copysign(view.rng.uniform(0.5, 1.0), view.rng.random() - 0.5)
    view.shadow(x, z, 0.8, abs(angle))
    if motor:
        _draw_motorcycle(Sprite(view, x, z, MOTORCYCLE, squeeze=angle), view.pick("motorcycle"))
    else:
        _draw_bicycle(Sprite(view, x, z, BICYCLE, squeeze=angle), view.pick("bicycle"))
    if rider:
        _draw_rider(Sprite(view, x, z, RIDER, squeeze=angle), view, helmet=motor or view.rng.random() < 0.6)


def _draw_bicycle(bike: Sprite, colour: Colour) -> None:
    # As in Cityscapes, the label includes the gaps between the spokes and inside the frame.
    for u in (-0.52, 0.52):
        bike.disc(u, 0.34, 0.35, _BLACK, rim=0.08)
        bike.disc(u, 0.34, 0.05, _BLACK, detail=True)
    bike.polygon([(-0.52, 0.34), (-0.2, 0.88), (0.36, 0.86), (0.45, 0.34)], None)
    frame = [(-0.52, 0.34), (-0.06, 0.3), (0.38, 0.78), (-0.17, 0.78), (-0.52, 0.34)]
    bike.line(frame, colour, 0.08, detail=True)
    bike.line([(-0.06, 0.3), (-0.21, 0.95)], colour, 0.075, detail=True)
    bike.line([(0.52, 0.34), (0.36, 0.98), (0.5, 1.05)], colour, 0.075)
    bike.line([(-0.34, 0.96), (-0.1, 0.96)], _BLACK, 0.08)


def _draw_motorcycle(bike: Sprite, colour: Colour) -> None:
    for u in (-0.68, 0.68):
        bike.disc(u, 0.32, 0.32, _BLACK)
        bike.disc(u, 0.32, 0.16, _METAL, detail=True)
    engine = [(-0.7, 0.32), (-0.45, 0.75), (0.5, 0.85), (0.68, 0.35), (0.2, 0.22), (-0.3, 0.22)]
    bike.polygon(engine, shade(colour, 0.5))
    bike.polygon([(-0.1, 0.72), (0.0, 0.98), (0.4, 1.0), (0.5, 0.75)], colour)  # tank
    bike.polygon([(-0.9, 0.78), (-0.8, 0.92), (0.0, 0.86), (0.0, 0.72), (-0.6, 0.7)], _BLACK)  # seat
    bike.polygon([(-0.95, 0.62), (-0.55, 0.8), (-0.4, 0.55), (-0.75, 0.5)], colour)
    bike.polygon([(0.42, 0.7), (0.45, 1.12), (0.62, 0.98), (0.68, 0.7)], colour)
    bike.line([(0.68, 0.32), (0.42, 1.08), (0.28, 1.12)], _METAL, 0.07)  # fork and handlebar
    bike.disc(0.62, 0.85, 0.1, (240, 236, 200), detail=True)


def _draw_rider(rider: Sprite, view: View, *, helmet: bool) -> None:
    shirt, trousers, skin = view.pick("vest"), view.pick("trousers"), view.pick("skin")
    hip, knee, foot = (-0.2, 0.98), (0.16, 0.72), (0.0, 0.26)
    rider.line([hip, (0.06, 0.6), (-0.12, 0.42)], shade(trousers, 0.8), 0.15)
    rider.line([hip, knee, foot], trousers, 0.17)
    lean = view.rng.uniform(0.1, 0.25)
    rider.polygon([(-0.34, 0.9), (-0.04, 0.9), (lean + 0.14, 1.5), (lean - 0.16, 1.5)], shirt)
    rider.line([(lean + 0.04, 1.42), (0.24, 1.18), (0.42, 1.1)], shade(shirt, 0.85), 0.12)
    rider.disc(lean + 0.08, 1.68, 0.15, view.pick("shirt") if helmet else shade(skin, 0.4), tall=1.1)
    rider.disc(lean + 0.13, 1.64, 0.09, skin, tall=1.1, detail=True)
