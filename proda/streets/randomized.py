"""A style that is drawn anew for every scene (domain randomization)."""

import colorsys
from dataclasses import replace

import numpy as np

from proda.streets.style import CAMERA, GAME, Range, Style

SKIES = ("sky", "cloud", "horizon")
HUES = {"sign_red": 0.0, "sign_blue": 0.61, "sign_yellow": 0.13, "light": 0.12}
ANY: Range = (0.0, 1.0)


def random_style(rng: np.random.Generator) -> Style:
    """The appearance of one scene: colors, light, texture, camera, and the sizes and numbers of things."""

    def colors(hue: Range, saturation: Range, value: Range, number: int = 3) -> str:
        """A palette: hue, saturation and value are uniform in the ranges; hues may leave 0..1."""
        low, high = zip(hue, saturation, value, strict=True)
        return " ".join(_code(*hsv) for hsv in rng.uniform(low, high, (number, 3)).tolist())

    def often(share: float) -> bool:
        return bool(rng.random() < share)

    overcast, brown = often(0.5), often(0.3)
    sky = colors((0.52, 0.64), (0.0, 0.12) if overcast else (0.15, 0.6), (0.45, 1.0), 1)
    house_hues, leaf_hues = (0.0, 0.13) if often(0.7) else ANY, (0.04, 0.13) if brown else (0.13, 0.36)
    plain_cars = often(0.6)
    palettes = dict(
        sky=sky,
        cloud=colors(ANY, (0.0, 0.05), (0.6, 1.0)),
        horizon=colors((0.52, 0.64), (0.0, 0.15), (0.6, 1.0), 1),
        road=colors(ANY, (0.0, 0.1), (0.15, 0.66), 1),
        marking=colors((0.1, 0.16), (0.0, 0.2), (0.6, 1.0), 1),
        sidewalk=colors((0.02, 0.14), (0.0, 0.25), (0.2, 0.85), 1),
        kerb=colors((0.02, 0.14), (0.0, 0.15), (0.3, 0.9), 1),
        building=colors(house_hues, (0.0, 0.55), (0.15, 0.9), 6),
        roof=colors((0.0, 0.12) if often(0.5) else ANY, (0.0, 0.45), (0.1, 0.5)),
        shop=colors(ANY, (0.0, 0.95), (0.1, 0.95), 8),
        window=colors((0.5, 0.7), (0.0, 0.4), (0.08, 0.7)),
        wall=colors(house_hues, (0.0, 0.5), (0.15, 0.85)),
        fence=colors(ANY, (0.0, 0.35), (0.06, 0.8)),
        leaf=colors(leaf_hues, (0.15, 0.75), (0.08, 0.5), 4),
        trunk=colors((0.04, 0.12), (0.1, 0.5), (0.08, 0.45)),
        grass=colors((0.13, 0.33), (0.2, 0.7), (0.2, 0.65)),
        pole=colors(ANY, (0.0, 0.1), (0.08, 0.75)),
        sign_white=colors(ANY, (0.0, 0.06), (0.75, 1.0), 1),
        **{name: colors((hue - 0.03, hue + 0.03), (0.6, 1.0), (0.4, 1.0), 2) for name, hue in HUES.items()},
        paint=colors(ANY, (0.0, 0.1) if plain_cars else (0.0, 0.9), (0.05, 0.9), 7),
        bus=colors(ANY, (0.3, 0.9), (0.3, 0.9)),
        motorcycle=colors(ANY, (0.0, 0.9), (0.05, 0.9)),
        bicycle=colors(ANY, (0.0, 0.9), (0.05, 0.9)),
        shirt=colors(ANY, (0.0, 0.8), (0.05, 0.95), 6),
        vest=colors(ANY, (0.0, 0.9), (0.05, 1.0), 4),
        trousers=colors(ANY, (0.0, 0.5), (0.05, 0.6), 4),
        skin=colors((0.03, 0.09), (0.25, 0.6), (0.3, 0.9)),
    )  # fmt: skip
    dusk, backlit = often(0.2), often(0.4)
    brightness = rng.uniform(0.35, 0.6) if dusk else rng.uniform(0.6, 1.2)
    if dusk:  # lamps are on behind some windows
        palettes["window"] += " " + colors((0.08, 0.15), (0.1, 0.6), (0.8, 1.0), 1)
    if backlit:  # the camera exposes for a white sky: the street is dark, and the sky nearly burnt out
        white = {name: colors(ANY, (0.0, 0.05), (0.9, 1.0), 1) for name in SKIES}
        palettes = {name: _darker(colours, brightness) for name, colours in palettes.items()} | white
        brightness = rng.uniform(0.85, 1.1)
    return replace(
        GAME if often(0.5) else CAMERA,
        name="random",
        camera_height=(1.1, 2.0),
        horizon=(0.36, 0.56),
        swerve=0.4 if often(0.25) else 0.14,  # turning into a street, or driving along it
        road_half_width=(2.8, 4.2) if often(0.6) else (4.2, 8.0),
        sidewalk_width=(1.5, 5.0),
        building_height=(5.0, 25.0),
        counts=dict(
            car=2.5,
            parked=4.0,
            bus=0.5,
            truck=0.3,
            person=3.5,
            rider=1.2,
            motorcycle=0.5,
            bicycle=1.5,
            light=2.0,
            sign=3.0,
            tree=3.0,
            lamp=2.5,
        ),
        palettes=palettes,
        light=(brightness, brightness),
        shadow=rng.uniform(0.1, 0.6),
        clouds=rng.uniform(0.0, 1.0),
        texture=0.01 + 0.08 * rng.random() ** 2,
        grain=rng.uniform(0.3, 0.9),
        saturation=(0.6, 1.2),
        contrast=(0.8, 1.4),
        warmth=(-0.12, 0.12),
        vignette=rng.uniform(0.0, 0.3),
        blur=1.2 * rng.random() ** 2,
        noise=9.0 * rng.random() ** 2,
        bonnet=False,
    )


def _code(hue: float, saturation: float, value: float) -> str:
    """Six hexadecimal digits of a color; hue, saturation and value are in 0..1, and the hue may leave it."""
    return bytes(round(255 * part) for part in colorsys.hsv_to_rgb(hue % 1.0, saturation, value)).hex()


def _darker(palette: str, factor: float) -> str:
    """A palette whose colors are multiplied by a factor."""
    return " ".join(
        bytes(min(255, int(part * factor)) for part in bytes.fromhex(code)).hex() for code in palette.split()
    )
