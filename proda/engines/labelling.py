"""Writes the pseudo labels of the target training images."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import ignite.distributed as idist
import torch
from torch import Tensor, nn

from proda.data.label_store import HardLabelStore, SoftLabelStore
from proda.data.loaders import to_device
from proda.engines.inference import predict, require_finite
from proda.engines.optimization import Precision
from proda.method.pseudo_labels import flip_averaged
from proda.method.tensors import resize, to_float
from proda.metrics import LabelConfusion, named_scores
from proda.models.network import SegmentationNetwork, evaluation_mode
from proda.utils.lock import FolderLock
from proda.utils.progress import track


class Averaging(NamedTuple):
    """What the predictions that hard pseudo labels are made from are averaged over."""

    flip: bool = False  # the image and its mirror image
    scales: Sequence[float] = (1.0,)  # scales of the image
    ensemble: Sequence[SegmentationNetwork] = ()  # further networks; the manifest's ``weights`` names the first

    def settings(self) -> dict[str, Any]:
        """The settings for the manifest of the labels. A single scale and a single network are not mentioned."""
        settings: dict[str, Any] = {"flip": self.flip}
        settings |= {"scales": self.scales} if tuple(self.scales) != (1.0,) else {}
        return settings | ({"ensemble": [network.origin for network in self.ensemble]} if self.ensemble else {})


@torch.no_grad()
def write_pseudo_labels(
    store: SoftLabelStore | HardLabelStore,
    network: nn.Module,
    batches: Iterable[dict[str, Any]],
    precision: Precision,
    *,
    class_names: Sequence[str],
    flip: bool = False,
    scales: Sequence[float] = (1.0,),
    ensemble: Sequence[nn.Module] = (),
) -> dict[str, Any]:
    """Writes the network's predictions on ``batches`` to ``store``.

    ``batches``: ``{"image", "name"}``; each image is on one process only. Soft labels are probabilities [K, h, w] at
    network resolution; hard labels are the arg-max of the probabilities at image size, with their confidence. The
    probabilities are averaged as in :class:`Averaging`, those of soft labels over the mirror image (``flip``) only.
    The networks predict in evaluation mode; afterwards each module returns to its previous mode.

    Returns:
        Scores of the labels (see ``named_scores``) if the batches contain ground truth, which is used for nothing else;
        an empty dict otherwise.

    Raises:
        FloatingPointError: a network predicts NaN.
    """
    confusion = LabelConfusion(len(class_names), device=precision.device)
    has_labels = False
    with FolderLock(store.folder), ExitStack() as modes:
        for labeller in (network, *ensemble):
            modes.enter_context(evaluation_mode(labeller))
        for batch in track(batches, "pseudo labels, batch", show=idist.get_rank() == 0):
            batch = to_device(batch, precision.device)
            size = tuple(batch["image"].shape[-2:])
            with precision.autocast():
                image = to_float(batch["image"])
                if isinstance(store, SoftLabelStore):
                    probabilities = _soft_labels(network, image, flip=flip)
                else:
                    probabilities = averaged_probabilities((network, *ensemble), image, flip=flip, scales=scales)
            require_finite(probabilities, batch["name"])
            if isinstance(store, SoftLabelStore):
                for name, soft in zip(batch["name"], probabilities, strict=True):
                    store.write(name, soft.cpu())
            else:
                confidence, labels = probabilities.max(1)
                for name, hard, sure in zip(batch["name"], labels.byte().cpu(), confidence.cpu(), strict=True):
                    store.write(name, hard, sure)
            if "labels" in batch:
                confusion.update((resize(probabilities, size).max(1).indices, batch["labels"]))
                has_labels = True
        idist.barrier()
        _finish(store)
    # compute() sums over all processes, so a process without any image has to call it, too
    labelled = bool(idist.all_reduce(int(has_labels)))
    return named_scores(confusion.compute(), class_names) if labelled else {}


def averaged_probabilities(
    networks: Sequence[nn.Module], images: Tensor, *, flip: bool, scales: Sequence[float]
) -> Tensor:
    """Probabilities [B, K, H, W] that hard labels are made from: means over networks, mirror images and scales."""
    size = (images.shape[-2], images.shape[-1])
    several = [predict(network, images, size, flip=flip, scales=scales, softmax_first=True) for network in networks]
    return torch.stack(several).mean(0) if len(several) > 1 else several[0]


def _soft_labels(network: nn.Module, images: Tensor, *, flip: bool) -> Tensor:
    """Probabilities [B, K, h, w] at network resolution."""
    probabilities = network(images).logits.float().softmax(1)
    if not flip:
        return probabilities
    return flip_averaged(probabilities, network(images.flip(-1)).logits.float().softmax(1))


def missing_labels(store: SoftLabelStore | HardLabelStore, names: Sequence[str]) -> list[str]:
    """The ``names`` that the store does not contain, as rank 0 sees it before any process writes."""
    missing = set(store.missing(names)) if idist.get_rank() == 0 else set()
    mask: Any = idist.broadcast("".join("01"[name in missing] for name in names), src=0)
    return [name for name, absent in zip(names, mask, strict=True) if absent == "1"]


def _finish(store: SoftLabelStore | HardLabelStore) -> None:
    """Checks on rank 0 that the labels are complete. If they are not, every process raises; none keeps waiting."""
    failure = None
    if idist.get_rank() == 0:
        try:
            store.finish()
        except (RuntimeError, ValueError, OSError) as error:
            failure = error
    failed = bool(idist.all_reduce(int(failure is not None)))
    if failure is not None:
        raise failure
    if failed:
        raise RuntimeError(f"{store.folder}: the pseudo labels are incomplete; process 0 reports the reason")
