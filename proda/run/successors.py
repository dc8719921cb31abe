"""The parts of ProDA's successors that flags add to any stage (docs/successors.md).

Rare class sampling concerns the data: see ``Data.source_crops``. The others are handlers.
"""

from collections.abc import Sequence

from proda.engines.optimization import Precision
from proda.handlers.class_mix import ClassMix
from proda.handlers.color_augmentation import ColorAugmentation
from proda.handlers.feature_distance import FeatureDistance
from proda.handlers.masked_consistency import MaskedConsistency
from proda.method.feature_distance import THINGS
from proda.run.config import PseudoLabelConfig, TrainConfig
from proda.run.stage import Stage
from proda.utils.errors import UserError


def attach_successors(config: TrainConfig, stage: Stage, class_names: Sequence[str], precision: Precision) -> None:
    """Attaches the handlers that the flags ask for. The student still has its initial weights."""
    trainer, student = stage.trainer, stage.student
    if config.feature_distance > 0:
        things = thing_classes(config.thing_classes, class_names)
        FeatureDistance(student, precision, things, weight=config.feature_distance).attach(trainer)
    if not isinstance(config, PseudoLabelConfig):
        return
    if config.masked_consistency > 0:
        # MIC masks squares of 32 pixels; in crops that are lower than 256 pixels, an eighth of the height.
        block = max(1, min(32, config.crop_height // 8))
        MaskedConsistency(student, precision, weight=config.masked_consistency, block=block).attach(trainer)
    if config.class_mix:
        ClassMix(student.num_classes).attach(trainer)
    if config.color_augmentation:
        ColorAugmentation().attach(trainer)  # of the mixed image


def check_successors(config: TrainConfig, class_names: Sequence[str]) -> None:
    """Raises UserError if ``--feature_distance`` has no classes to cover or ``--thing_classes`` is not some of them."""
    if config.feature_distance > 0 or config.thing_classes:
        thing_classes(config.thing_classes, class_names)


def thing_classes(names: str, class_names: Sequence[str]) -> list[int]:
    """Numbers of the classes in ``names``, separated by commas; if it is empty, of the objects of the benchmarks."""
    chosen = [name.strip() for name in names.split(",") if name.strip()]
    if unknown := [name for name in chosen if name not in class_names]:
        raise UserError(f"--thing_classes: no class {unknown[0]!r}; expected some of {', '.join(class_names)}")
    found = [number for number, name in enumerate(class_names) if name in (chosen or THINGS)]
    if not found:
        raise UserError(
            f"--feature_distance needs --thing_classes: none of the classes {', '.join(class_names)} is an object that "
            "the benchmarks know"
        )
    return found
