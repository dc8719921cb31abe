"""ClassMix: the student is trained on target images onto which classes of the source are pasted."""

import torch

from proda.engines.events import ProdaEvents, Trainer
from proda.engines.optimization import rand_per_image
from proda.method.mixing import choose_classes, paste, pixels_of, present_classes
from proda.method.views import downscale_labels


class ClassMix:
    """Pastes half of the classes of each source image onto the target image of the same place in the batch.

    Replaces ``engine.state.target`` at ``TARGET_READY``: pasted pixels have the colors and the labels of the source,
    and the weight 1 where pixels have weights. Adds ``pasted``, bool [B, h, w] at the resolution of the labels, to the
    output. Source: ClassMix (arXiv:2007.07936), between domains as in DACS (arXiv:2007.08702).
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes

    def attach(self, trainer: Trainer) -> None:
        trainer.add_event_handler(ProdaEvents.TARGET_READY, self)

    @torch.no_grad()
    def __call__(self, engine: Trainer) -> None:
        source, target = engine.state.batch["source"], engine.state.target
        present = present_classes(source["labels"], self.num_classes)
        present[:, -1] = False  # IGNORE
        chosen = choose_classes(present, rand_per_image(source["image"], self.num_classes + 1))
        labels, pasted = source["labels"].long(), pixels_of(chosen, source["labels"])
        image = paste(pasted, source["image"], target.image)
        if pasted.shape != target.labels.shape:  # stages 1 to 3 have labels at a quarter of the resolution
            height, width = target.labels.shape[-2:]  # rounded down where a side is no multiple of 4
            labels, pasted = (downscale_labels(maps)[:, :height, :width] for maps in (labels, pasted))
        weights = target.weights
        if weights is not None:
            weights = weights.masked_fill(pasted, 1.0)
        engine.state.output["pasted"] = pasted
        engine.state.target = target._replace(image=image, labels=paste(pasted, labels, target.labels), weights=weights)
