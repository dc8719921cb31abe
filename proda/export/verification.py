"""Whether an exported file computes what the network computes: both run on drawn street scenes of several sizes."""

from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from proda.data.samples import image_tensor
from proda.export.formats import Runner
from proda.export.program import ImageProgram
from proda.streets import CAMERA, draw_scene
from proda.utils.errors import UserError

SIZES = ((1, 128, 256), (2, 97, 131), (3, 200, 72))  # batch, height, width; sides need not be multiples of the stride
BOUNDS = {torch.float32: 1e-4, torch.float16: 5e-2}  # largest difference allowed, by the precision of the file


class Comparison(NamedTuple):
    """A file against its network at one size of images."""

    size: tuple[int, int, int]  # batch, height, width
    difference: float  # see ``compare``; infinite or NaN if the file computes such values
    changed: float  # share of the pixels whose class differs, 0..1

    def __str__(self) -> str:
        """One line for people."""
        batch, height, width = self.size
        return (
            f"{batch} x {width} x {height}: largest difference {self.difference:.1e}, "
            f"{100 * self.changed:.3f} % of the pixels of another class"
        )


@torch.no_grad()
def compare(reference: ImageProgram, exported: Runner, result: str, images: Tensor) -> Comparison:
    """Compares a file with the network on images, float32 [B, 3, H, W] in 0..1.

    ``reference`` computes the logits of the network in float32. The difference is the largest of any pixel and class:
    of ``logits`` relative to the largest logit of the network, of ``probabilities`` as it is. For ``labels`` it is how
    far the network's own logit of a label lies below its largest logit of that pixel, relative to the largest of all:
    0 where the labels agree, and small where the network itself was undecided.

    Raises:
        UserError: the file computes another shape or type.
    """
    batch, _, height, width = images.shape
    logits, found = reference(images), exported(images)
    expected = {"labels": logits.argmax(1).byte(), "probabilities": logits.softmax(1), "logits": logits}[result]
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        raise UserError(
            f"the exported file computes {found.dtype} {list(found.shape)}, expected {expected.dtype} "
            f"{list(expected.shape)}"
        )
    largest = logits.abs().max()
    if result == "labels":
        known = F.pad(logits, (0, 0, 0, 0, 0, 256 - logits.shape[1]), value=-torch.inf)  # other numbers are no classes
        difference = (logits.max(1).values - known.gather(1, found.long()[:, None])[:, 0]).max() / largest
        labels = found
    else:
        difference = (found - expected).abs().max() / (largest if result == "logits" else 1)
        labels = found.argmax(1).byte()
    changed = (labels != logits.argmax(1).byte()).float().mean()
    return Comparison((batch, height, width), difference.item(), changed.item())


def verify(reference: ImageProgram, exported: Runner, program: ImageProgram) -> list[Comparison]:
    """Compares the file of ``program`` with the network at every one of ``SIZES``.

    Raises:
        UserError: it cannot compute images of a size, or differs by more than ``BOUNDS`` of its precision.
    """
    bound, comparisons = BOUNDS[program.dtype], []
    for number, (batch, height, width) in enumerate(SIZES):
        images = street_scenes(batch, height, width, seed=number)
        try:
            comparison = compare(reference, exported, program.result, images)
        except UserError:
            raise
        except Exception as error:  # each runtime has its own errors
            line = str(error).strip().partition("\n")[0][:200]
            raise UserError(
                f"the exported file cannot compute {batch} images of {width} x {height} pixels: "
                f"{type(error).__name__}: {line}"
            ) from error
        if not comparison.difference <= bound:  # also refuses NaN
            raise UserError(
                f"the exported file differs from the network by more than {bound:g} ({comparison}); nothing was written"
            )
        comparisons.append(comparison)
    return comparisons


def street_scenes(batch: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Drawn street scenes, float32 [B, 3, H, W] in 0..1. They have regions and edges, unlike noise."""
    rng = np.random.default_rng(seed)
    scenes = [image_tensor(draw_scene(rng, CAMERA, (width, height))[0]) for _ in range(batch)]
    return torch.stack(scenes).float() / 255
