"""The classes of a run: those of its source, or those that a weights file names."""

from proda.data.labels import LabelSpace, benchmark_labels, stored_labels
from proda.data.own_data import Description
from proda.models.weights import Weights
from proda.run.config import DataConfig
from proda.utils.errors import UserError


def label_space(
    config: DataConfig, source: Description | None, target: Description | None, trained: Weights | None
) -> LabelSpace:
    """Names and colors of the classes, and their ids in the target's label files.

    ``source`` and ``target``: descriptions of your own data, None for benchmarks. ``trained``: the content of a weights
    file, whose classes apply if ``--source`` is empty.

    Raises:
        UserError: source, target, ``--num_classes`` and the weights file do not agree.
    """
    if source is None and not config.source:
        space = _trained_classes(config, trained)
    elif source is None:
        space = benchmark_labels(config.num_classes or (16 if config.source == "synthia" else 19))
    elif source.space is None:
        raise UserError(f"{source.path}: no classes = [...]; the description of the source must list them")
    else:
        space = source.space
    if config.num_classes not in (0, len(space.names)):
        raise UserError(
            f"--num_classes={config.num_classes}: {config.source} has {len(space.names)} classes; --num_classes=0 "
            "takes them all, whatever a preset sets"
        )
    if target is not None and target.space is not None:
        if trained is not None and not trained.info.class_names and len(target.space.names) == len(space.names):
            space = target.space  # a file that does not name its classes
        if target.space.names != space.names:
            those = "the source" if config.source or trained is None else trained.path
            raise UserError(
                f"{target.path}: its classes are {', '.join(target.space.names)}; expected those of {those} in "
                f"the same order: {', '.join(space.names)}"
            )
        space = space._replace(table=target.space.table)
    return space


def _trained_classes(config: DataConfig, trained: Weights | None) -> LabelSpace:
    """The classes that a weights file names, or those of the benchmarks if it names none."""
    if trained is None:
        return benchmark_labels(config.num_classes or 19)
    info, number = trained.info, config.num_classes
    if number not in (0, info.num_classes) and info.num_classes:
        raise UserError(
            f"{trained.path}: found weights for {info.num_classes} classes, expected {number} classes "
            "(--source, --num_classes)"
        )
    if not (number or info.num_classes):
        raise UserError(
            f"{trained.path}: found weights for an unknown number of classes; set --source or --num_classes"
        )
    return stored_labels(number or info.num_classes, info.class_names, info.colors, info.label_ids)
