"""Color augmentation of the target images that the student is trained on."""

import ignite.distributed as idist
import numpy as np
import torch
from torch import Tensor

from proda.data.color import NUMBERS, change_colors, color_changes
from proda.engines.events import ProdaEvents, Trainer
from proda.engines.optimization import of_own_images


class ColorAugmentation:
    """Changes the colors of ``engine.state.target`` at ``TARGET_READY``, and blurs it: see ``proda.data.color``."""

    def attach(self, trainer: Trainer) -> None:
        """The colors of the pasted source change too, if this is attached after ``ClassMix``."""
        trainer.add_event_handler(ProdaEvents.TARGET_READY, self)

    @torch.no_grad()
    def __call__(self, engine: Trainer) -> None:
        target = engine.state.target
        engine.state.target = target._replace(image=augmented(target.image))


def augmented(images: Tensor) -> Tensor:
    """``images`` uint8 [B, 3, H, W] with other colors.

    The random numbers are NumPy's, as they are needed on the CPU. They are drawn for the global batch, so that they do
    not depend on the number of processes (see ``rand_per_image``).
    """
    changes = color_changes(of_own_images(np.random.random((idist.get_world_size() * len(images), NUMBERS))))
    return torch.stack([change_colors(image, change) for image, change in zip(images, changes, strict=True)])
