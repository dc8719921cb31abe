"""The parts of ProDA's successors that flags switch on over any stage (docs/parts.md).

Rare class sampling is a part of the data: see ``Domains.source_crops``. The others are handlers.
"""

from collections.abc import Sequence

from ignite.engine import Engine

from proda.engines.optimization import Precision
from proda.handlers.class_mix import ClassMix
from proda.handlers.color_augmentation import ColorAugmentation
from proda.handlers.feature_distance import FeatureDistance
from proda.handlers.masked_consistency import MaskedConsistency
from proda.method.feature_distance import THINGS
from proda.models.network import SegmentationNetwork
from proda.settings.config import PseudoLabelConfig, TrainConfig
from proda.utils.errors import UserError


def attach_successors(
    config: TrainConfig,
    trainer: Engine,
    student: SegmentationNetwork,
    precision: Precision,
    class_names: Sequence[str],
) -> None:
    """Attaches the handlers that the flags ask for. ``student``: without a DDP wrapper, with its initial weights.

    Call it after copies of the student were made.
    """
    trainer.state.takes_parts = True
    if config.feature_distance > 0:
        things = thing_classes(config.thing_classes, class_names)
        FeatureDistance(student, precision, things, weight=config.feature_distance).attach(trainer)
    if not isinstance(config, PseudoLabelConfig):
        return
    if config.masked_consistency > 0:
        weight, ratio, block = config.masked_consistency, config.mask_ratio, config.mask_block
        MaskedConsistency(student, precision, weight=weight, ratio=ratio, block=block).attach(trainer)
    if config.class_mix:
        ClassMix(student.num_classes, as_released=config.class_mix_as_released).attach(trainer)
    if config.color_augmentation:
        ColorAugmentation().attach(trainer)  # of the mixed image


def check_attached(config: TrainConfig, trainer: Engine) -> None:
    """Raises UserError if flags would have no effect, because the experiment does not pass them on.

    These are the flags of parts without :func:`attach_successors`, and those of ``PolynomialDecay``.
    """
    flags = ("feature_distance", "masked_consistency", "class_mix", "color_augmentation")
    asked = [name for name in flags if getattr(config, name, False)]
    if asked and not getattr(trainer.state, "takes_parts", False):
        raise UserError(
            f"--{asked[0]}: this experiment does not call attach_successors of proda/run/successors.py, so the flag "
            "would have no effect"
        )
    for name, value in getattr(trainer.state, "schedule_flags", {}).items():
        if getattr(config, name, value) != value:
            argument = {"decay_power": "power", "warmup_iterations": "warmup"}[name]
            raise UserError(
                f"--{name}={getattr(config, name)}: the schedule of this experiment has {value}; it should be "
                f"PolynomialDecay(..., {argument}=config.{name})"
            )


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
