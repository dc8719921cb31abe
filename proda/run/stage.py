"""A stage of training: what its ``build`` returns, and ``fit`` trains."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch.optim import Optimizer

from proda.data.loaders import TrainingBatches
from proda.engines.events import Trainer
from proda.handlers.prototypes import InitialPrototypes
from proda.handlers.pseudo_labels import PseudoLabels
from proda.handlers.teacher import EMATeacher
from proda.models.network import SegmentationNetwork
from proda.run.data import Data
from proda.run.networks import Networks


@dataclass
class Stage:
    """A trainer with the handlers of its method, and the networks, batches and optimizers that ``fit`` needs.

    Nothing has been written or trained yet.

    ``fit`` attaches what every training run has: the seed of each iteration, the schedule of the student's learning
    rate, clipping, the stop on NaN, checkpoints, validation, models to keep, TensorBoard, and the successors' parts.
    """

    trainer: Trainer
    student: SegmentationNetwork  # without a DDP wrapper; it is validated and saved
    batches: TrainingBatches
    optimizers: Mapping[str, Optimizer]  # "student" and, in the warm-up, "discriminator"
    labels: PseudoLabels | None = None  # of a stage that trains on stored pseudo labels
    prototypes: InitialPrototypes | None = None  # of stage 1; they are saved with the student
    teacher: EMATeacher | None = None  # a moving average of the student
    val_scale: float = 1.0  # factor by which validation images are resized

    def check(self, doomed: Collection[Path] = ()) -> None:
        """Raises UserError if pseudo labels or prototypes that are stored already cannot be used.

        ``doomed``: files of an earlier run that ``--overwrite`` deletes before the first iteration.
        """
        if self.labels is not None:
            self.labels.store.check()
        if self.prototypes is not None and self.prototypes.file not in doomed:
            self.prototypes.check()


Build = Callable[[Any, Data, Networks], Stage]  # takes the settings of the experiment, its data and its networks
