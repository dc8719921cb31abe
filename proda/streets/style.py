"""The appearance of the domains, two sources and a target: every parameter in which they may differ."""

from dataclasses import dataclass, field, replace

Range = tuple[float, float]


@dataclass(frozen=True)
class Style:
    """Appearance of a domain. Values are sampled uniformly from ranges; counts are means of Poisson distributions."""

    name: str
    # The camera and the street, in metres.
    camera_height: Range
    horizon: Range  # share of the image height above the vanishing point
    swerve: float  # largest shift of the vanishing point, as a share of the image width
    road_half_width: Range
    sidewalk_width: Range
    building_height: Range
    open_side: float  # probability of a garden instead of a house
    crossing: float  # probability of a side street
    # Mean number of each kind of object.
    counts: dict[str, float] = field(hash=False)
    # Colours of each material.
    palettes: dict[str, str] = field(hash=False)  # six hexadecimal digits (RRGGBB) per colour
    colour_jitter: float  # standard deviation of colours around the palette, in grey levels
    european: bool  # European (else American) signs, traffic lights and road markings
    # Light.
    light: Range  # brightness of the scene
    shadow: float  # darkness of cast shadows and of surfaces that face away from the sun, 0..1
    clouds: float  # 0 clear .. 1 overcast
    stains: float  # mean number of stains on the road
    haze: float  # extinction per metre
    # The image.
    texture: float  # standard deviation of the surface texture, relative to the brightness
    grain: float  # standard deviation of the fine texture, relative to the coarse one
    saturation: Range
    contrast: Range
    warmth: Range  # white balance: red is multiplied by 1 + warmth, blue by 1 - warmth
    vignette: float  # darkening of the corners, 0..1
    blur: float  # radius of the lens blur in pixels
    noise: float  # standard deviation of the sensor noise, in grey levels
    bonnet: bool = False  # shows the bonnet of the camera's own car at the lower edge; its label is IGNORE


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
        bus=1.0,
        truck=0.4,
        person=4.5,
        rider=2.0,
        motorcycle=2.0,
        bicycle=2.4,
        light=3.0,
        sign=3.2,
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

# The second source: a simulator with a camera at changing heights, many people, harsh light and flat materials.
SIMULATOR = replace(
    GAME,
    name="simulator",
    camera_height=(1.3, 2.1),
    horizon=(0.34, 0.54),
    swerve=0.2,
    sidewalk_width=(2.5, 5.0),
    building_height=(9.0, 40.0),
    counts=GAME.counts | dict(car=4.0, parked=1.5, person=7.0, rider=2.5, tree=4.0, lamp=2.5),
    palettes=GAME.palettes
    | dict(
        sky="4a86c8 6c9cd2",
        cloud="e6e8ea",
        road="505054 48484e 5a5a5c",
        sidewalk="b6aea6 c2bab0",
        building="b8694c cca678 8c5648 7484a0 d8ccb4",
        leaf="2e7c2c 44903a",
        grass="5c983c 70a044",
        shirt="be328c 823cb4 dc5096 aa32be 5a3cb4",
    ),
    light=(0.88, 1.12),
    shadow=0.5,
    clouds=0.1,
    texture=0.01,
    saturation=(0.95, 1.15),
    contrast=(1.05, 1.2),
    noise=0.5,
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
        bus=0.7,
        truck=0.25,
        person=4.5,
        rider=1.8,
        motorcycle=1.5,
        bicycle=2.2,
        light=3.0,
        sign=3.0,
        tree=4.5,
        lamp=1.5,
    ),
    palettes=dict(
        sky="a0b8d2 a6bed9 a0b6cf",
        cloud="dcdee0 e4e6e6 d4d6d8",
        horizon="ccd5de d0d7dc",
        road="777472 787674 787572",
        marking="dcdcd4",
        sidewalk="8a8580 968f86 807b76",
        kerb="b9b5ae",
        building="ba9f8c a59687 847a7b 91908f c7baa6 9b948d",
        window="465c76 5f768a 344052",
        wall="84807c 917c70",
        fence="6a625a 444d47",
        leaf="757138 766e34 76773a 827738",
        trunk="614b37",
        grass="83904c 85894c",
        pole="646668 676a6b",
        light="c89040 b08038",
        sign_red="c02328",
        sign_white="e8e8e6",
        sign_blue="2355a7",
        sign_yellow="eeb923",
        paint="293e72 c0c2c4 767779 7b8085 6b3652 5b4860 8c8d92",
        bus="c8963c b4823c 5a78a5",
        motorcycle="be4823 be4b23",
        bicycle="288796 3caab4",
        shirt="a2417f 764696 be5587 913c96",
        vest="bed241 e88737 bed24b",
        trousers="333c5a 3b3a55 3c355a",
        skin="d8ae93 a0745a 6b4c3c",
    ),
    colour_jitter=9.0,
    european=True,
    light=(0.93, 1.06),
    shadow=0.3,
    clouds=0.6,
    stains=3.0,
    haze=0.003,
    texture=0.06,
    grain=0.5,
    saturation=(0.93, 1.1),
    contrast=(0.96, 1.06),
    warmth=(-0.04, 0.04),
    vignette=0.1,
    blur=0.5,
    noise=5.0,
    bonnet=True,
)
