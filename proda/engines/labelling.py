"""Writing the pseudo labels of a target training set."""

from collections.abc import Iterable, Sequence
from typing import Any

import ignite.distributed as idist
import torch
from ignite.metrics import ConfusionMatrix
from torch import nn
from tqdm import tqdm

from proda.data.label_store import HardLabelStore, SoftLabelStore
from proda.data.loaders import to_device
from proda.engines.inference import predict
from proda.engines.optimization import Precision, resize, to_float
from proda.metrics import report
from proda.utils.lock import FolderLock


@torch.no_grad()
def write_pseudo_labels(
    store: SoftLabelStore | HardLabelStore,
    network: nn.Module,
    batches: Iterable[dict[str, Any]],
    precision: Precision,
    *,
    class_names: Sequence[str],
    flip: bool = False,
) -> dict[str, Any]:
    """The network's predictions on ``batches`` (``{"image", "name"}``, each image on one process) into ``store``.

    Soft labels are probabilities [K, h, w] at network resolution. Hard labels are the arg-max of the probabilities at
    image size, averaged over the image and its mirror image with ``flip``, and their confidence.

    Returns:
        Scores of the labels (see ``report``) where the batches hold ground truth; it is read for this report alone.
        Empty without ground truth.
    """
    confusion = ConfusionMatrix(len(class_names), device=precision.device)
    judged = False
    network.eval()
    with FolderLock(store.folder):
        for batch in tqdm(batches, desc="pseudo labels", disable=idist.get_rank() != 0, leave=False):
            batch = to_device(batch, precision.device)
            size = tuple(batch["image"].shape[-2:])
            with precision.autocast():
                if isinstance(store, SoftLabelStore):
                    probabilities = network(to_float(batch["image"])).logits.float().softmax(1)
                else:
                    probabilities = predict(network, to_float(batch["image"]), size, flip=flip, softmax_first=True)
            if isinstance(store, SoftLabelStore):
                for name, soft in zip(batch["name"], probabilities, strict=True):
                    store.write(name, soft.cpu())
            else:
                confidence, labels = probabilities.max(1)
                for name, hard, sure in zip(batch["name"], labels.byte().cpu(), confidence.cpu(), strict=True):
                    store.write(name, hard, sure)
            if "labels" in batch:
                confusion.update((resize(probabilities, size), batch["labels"].long()))
                judged = True
        idist.barrier()
        _finish(store)
    # a process may have had no image at all, and still takes part in adding up
    labelled = bool(idist.all_reduce(int(judged)))
    return report(confusion.compute(), class_names) if labelled else {}


def missing_labels(store: SoftLabelStore | HardLabelStore, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that the store does not hold, as rank 0 sees it before any process writes."""
    missing = set(store.missing(names)) if idist.get_rank() == 0 else set()
    mask = torch.tensor([name in missing for name in names], dtype=torch.uint8, device=idist.device())
    absent: Any = idist.broadcast(mask, src=0)
    return [name for name, is_absent in zip(names, absent.tolist(), strict=True) if is_absent]


def _finish(store: SoftLabelStore | HardLabelStore) -> None:
    """Checks on rank 0 that the labels are complete; if they are not, no process goes on or waits."""
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
        raise RuntimeError(f"{store.folder}: the pseudo labels are not complete; process 0 says why")
