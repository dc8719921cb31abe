"""Which network and batch of the pipeline fit a machine's memory, for images of a given size."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from proda.data.view_sizes import ViewSizes
from proda.run.config import TrainConfig
from proda.run.made_up import Sizes
from proda.run.memory import Memory, stage_memory
from proda.run.stage import Build
from proda.settings.reading import make_config

# Flags of the pipeline, the published ones first; each takes less memory than the one before.
CANDIDATES: tuple[Mapping[str, Any], ...] = (
    {"backbone": "resnet101", "batch_size": 4, "amp": "off"},
    {"backbone": "resnet101", "batch_size": 4, "amp": "bf16"},
    {"backbone": "resnet101", "batch_size": 2, "amp": "bf16"},
    {"backbone": "resnet50", "batch_size": 2, "amp": "bf16"},
    {"backbone": "resnet50", "batch_size": 1, "amp": "bf16"},
)
CLASSES = 19  # the number hardly matters


class Suggestion(NamedTuple):
    """Flags with which a process of a stage fits, and the memory that it takes then."""

    flags: Mapping[str, Any]
    memory: Memory


def suggestion(
    config_class: type[TrainConfig], build: Build, views: ViewSizes, image: tuple[int, int], available: int
) -> Suggestion | None:
    """The first of ``CANDIDATES`` with which a stage takes at most ``available`` bytes; None if none does.

    Counting takes some seconds for each. ``image``: width and height of whole images of the target.
    """
    for flags in CANDIDATES:
        config = make_config(config_class, {**flags, **views._asdict()})
        memory = stage_memory(config, build, Sizes(CLASSES, image[::-1], image[::-1], config.batch_size))
        if memory.with_margin <= available:
            return Suggestion(flags, memory)
    return None
