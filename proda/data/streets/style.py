"""What makes the two domains differ: everything that the drawings draw from, for a game and for a camera."""

from dataclasses import dataclass, field

Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """Everything in which the two domains may differ. Ranges are drawn from uniformly, counts are Poisson means."""

    name: str
    # The camera and the street, in metres.
    camera_height: Range
    horizon: Range  # share of the image height above the vanishing point
    swerve: float  # largest shift of the vanishing point, as a share of the image width
    road_half_width: Range
    sidewalk_width: Range
    building_height: Range
    open_side: float  # probability that a stretch of the roadside is a garden instead of a house
    crossing: float  # probability of a side street
    # How many of each.
    counts: dict[str, float] = field(hash=False)
    # Colours of each material.
    palettes: dict[str, str] = field(hash=False)  # six hexadecimal digits a colour, red first
    colour_jitter: float  # deviation of an object's colour from its palette, in grey levels
    european: bool  # forms of signs, lights and road markings
    # Light.
    light: Range  # brightness of the scene
    shadow: float  # darkness of cast shadows and of the side of things away from the sun, 0..1
    clouds: float  # 0 clear .. 1 overcast
    stains: float  # on the road: how many, a Poisson mean
    haze: float  # extinction per metre
    # The image.
    texture: float  # deviation of the surface texture, as a share of the brightness
    grain: float  # deviation of the texture's finest part, in units of the coarse one
    saturation: Range
    contrast: Range
    warmth: Range  # white balance: red gains what blue loses
    vignette: float  # darkening of the corners, 0..1
    blur: float  # radius of the lens blur in pixels
    noise: float  # deviation of the sensor noise in grey levels
    bonnet: bool = False  # the own car's bonnet at the lower edge, labelled to be ignored


GAME = Style(
    name="game",
    camera_height=(1.4, 2.0),
    horizon=(0.40, 0.52),
    swerve=0.14,
    road_half_width=(4.5, 7.5),
    sidewalk_width=(2.0, 3.5),
    building_height=(7.0, 30.0),
    open_side=0.3,
    crossing=0.4,
    counts=dict(
        car=3.0,
        parked=2.5,
        bus=0.7,
        truck=0.4,
        person=3.5,
        rider=1.4,
        motorcycle=1.4,
        bicycle=1.6,
        light=2.2,
        sign=2.4,
        tree=3.0,
        lamp=1.5,
    ),
    palettes=dict(
        sky="468ce1 5fa0eb",
        cloud="f0f4f8",
        horizon="b9d7f0 cddeec",
        road="58585e 4e4e54 626064",
        marking="ebebe1 ebc33c",
        sidewalk="b0a89c beb8ac a5a09e",
        kerb="cdc8be",
        building="c47854 d6b280 965a4c 788ca5 e1cdaa aaa096",
        window="466991 5f82a5 324664",
        wall="96918c a5785f",
        fence="785f46 50555a",
        leaf="3a8c30 509e34 2e7834",
        trunk="6e4e32",
        grass="68a842 7cac48",
        pole="5a5c5f 787a7c",
        light="deb028 cda028",
        sign_red="cd1e24",
        sign_white="f0f0f0",
        sign_blue="1e50b4",
        sign_yellow="f5be1e",
        paint="2850b4 ebebeb 1e1e22 969ba0 a0283c 46648c d2d2d7",
        bus="ebaf23 e1961e 3c6ebe",
        motorcycle="dc4614 f05a1e",
        bicycle="14a0b4 28c8d2",
        shirt="c83c96 8c46b4 e65aa0 b43cc8",
        vest="c8e632 ff8228 dcf03c",
        trousers="323e69 46466e 3c3264",
        skin="e1b496 aa785a 6e4b37",
    ),
    colour_jitter=8.0,
    european=False,
    light=(0.95, 1.08),
    shadow=0.35,
    clouds=0.25,
    stains=1.0,
    haze=0.001,
    texture=0.02,
    grain=0.5,
    saturation=(1.0, 1.2),
    contrast=(1.0, 1.1),
    warmth=(0.0, 0.04),
    vignette=0.0,
    blur=0.0,
    noise=1.0,
)

CAMERA = Style(
    name="camera",
    camera_height=(1.2, 1.5),
    horizon=(0.40, 0.47),
    swerve=0.08,
    road_half_width=(3.6, 5.5),
    sidewalk_width=(2.0, 4.5),
    building_height=(9.0, 20.0),
    open_side=0.35,
    crossing=0.5,
    counts=dict(
        car=2.0,
        parked=4.0,
        bus=0.6,
        truck=0.25,
        person=4.5,
        rider=1.5,
        motorcycle=1.2,
        bicycle=1.8,
        light=2.2,
        sign=2.6,
        tree=4.5,
        lamp=1.5,
    ),
    palettes=dict(
        sky="b0becc 96acc8 c4cad0",
        cloud="c6cace dcdee0 b4babe",
        horizon="d6dadc cdd2d6",
        road="686664 5c5c5c 72706c",
        marking="cdcdc8",
        sidewalk="928e8a 9e9690 867e7a",
        kerb="a5a29e",
        building="baa086 a07864 c4baa8 847e78 ac9478 cec8be",
        window="46505a 5f6970 363a40",
        wall="807a72 8c6e60",
        fence="5a544a 464c4a",
        leaf="4a683a 5c703c 3c583a 70703e",
        trunk="54483c",
        grass="70824e 7c8054",
        pole="6e7070 565a5a",
        light="2c302e 363832",
        sign_red="b4282c",
        sign_white="e0e0dc",
        sign_blue="285a9a",
        sign_yellow="e6b428",
        paint="2a2c30 969a9e ced0d0 60646a 364468 702c34 46484c",
        bus="c4ba96 b23c34 cececa",
        motorcycle="a04b32 8c3c28",
        bicycle="3c6e78 508c96",
        shirt="7d4668 5f4678 96506e 6e3c64",
        vest="b4be50 d28c46 a0b45a",
        trousers="343a4c 302e3c 3c3850",
        skin="d0a890 96705a 684e40",
    ),
    colour_jitter=10.0,
    european=True,
    light=(0.82, 1.08),
    shadow=0.25,
    clouds=0.8,
    stains=4.0,
    haze=0.006,
    texture=0.07,
    grain=0.5,
    saturation=(0.75, 1.0),
    contrast=(0.85, 1.0),
    warmth=(-0.05, 0.05),
    vignette=0.2,
    blur=0.5,
    noise=5.0,
    bonnet=True,
)
