"""Pseudo labels of the target training images: made at the start if they are not there, renewed as training goes."""

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import ConfusionMatrix
from torch import nn
from tqdm import tqdm

from proda.data.loaders import to_device
from proda.data.store import HardLabelStore, SoftLabelStore, open_store, read_manifest
from proda.engines.evaluate import predict
from proda.engines.events import ProdaEvents
from proda.engines.update import Precision, images, resize
from proda.handlers.validation import report

log = logging.getLogger("proda")


@torch.no_grad()
def write_pseudo_labels(
    store: SoftLabelStore | HardLabelStore,
    network: nn.Module,
    batches: Iterable[dict[str, Any]],
    precision: Precision,
    device: torch.device,
    *,
    flip: bool = False,
    class_names: list[str] | None = None,
) -> dict[str, Any]:
    """The network's predictions on ``batches`` (``{"image", "name"}``, each image on one process) into ``store``.

    Soft labels are probabilities [K, h, w] at network resolution. Hard labels are the arg-max of the probabilities at
    image size, averaged over the image and its mirror image with ``flip``, and their confidence.

    Returns:
        Scores of the labels (see ``report``) where the batches hold ground truth; it is read for this report alone.
        Empty without ground truth.
    """
    confusion = ConfusionMatrix(len(class_names), device=device) if class_names else None
    judged = False
    network.eval()
    for batch in tqdm(batches, desc="pseudo labels", disable=idist.get_rank() != 0, leave=False):
        batch = to_device(batch, device)
        size = tuple(batch["image"].shape[-2:])
        with precision.autocast():
            if isinstance(store, SoftLabelStore):
                probabilities = network(images(batch)).logits.float().softmax(1)
            else:
                probabilities = predict(network, images(batch), size, flip=flip)
        if isinstance(store, SoftLabelStore):
            for name, soft in zip(batch["name"], probabilities, strict=True):
                store.write(name, soft.cpu())
        else:
            confidence, labels = probabilities.max(1)
            for name, hard, sure in zip(batch["name"], labels.byte().cpu(), confidence.cpu(), strict=True):
                store.write(name, hard, sure)
        if confusion is not None and "labels" in batch:
            confusion.update((resize(probabilities, size), batch["labels"].long()))
            judged = True
    idist.barrier()
    if idist.get_rank() == 0:
        store.finish()
    idist.barrier()
    return report(confusion.compute(), class_names) if judged else {}


class PseudoLabels:
    """Prepares labels of the target training images when training starts, and renews them every so many epochs.

    At the start the frozen ``network`` of the stage before predicts what ``store`` does not hold yet. At renewals
    the ``student`` predicts them anew, into ``FOLDER/iteration_N``. Labels follow from the weights at
    hand, so a resumed run finds or makes the same.

    Fires ``PSEUDO_LABELS_REFRESHED``, with the labels' scores against ground truth, where there is any, in
    ``engine.state.pseudo_label_scores``. It changes ``store.folder``: whoever reads ``store`` reads the new labels.

    Args:
        store: opened with the manifest of the first labels.
        images: batches of the images with these names.
        renew_data: training batches from iteration ``start`` on; loader processes that have read ahead hold old labels.
    """

    def __init__(
        self,
        store: SoftLabelStore | HardLabelStore,
        network: nn.Module,
        images: Callable[[list[str]], Iterable[dict[str, Any]]],
        precision: Precision,
        device: torch.device,
        *,
        flip: bool = False,
        class_names: list[str] | None = None,
        student: nn.Module | None = None,
        renew_data: Callable[..., Iterable] | None = None,
    ) -> None:
        self.store, self.network, self.images, self.student = store, network, images, student
        self.settings = {"precision": precision, "device": device, "flip": flip, "class_names": class_names}
        self.renew_data, self.every = renew_data, 0
        self.folder = store.folder
        self.manifest = read_manifest(store.folder, store.kind)

    def attach(self, trainer: Engine, *, every: int = 0) -> None:
        """``every``: epochs between renewals; 0 for none."""
        self.every = every
        trainer.add_event_handler(Events.STARTED, self.prepare)
        if every > 0:
            trainer.add_event_handler(Events.EPOCH_COMPLETED(every=self.every), self.renew)

    def prepare(self, engine: Engine) -> None:
        """Labels as they stand at the engine's iteration."""
        epoch = engine.state.iteration // engine.state.epoch_length if self.every else 0
        renewals = epoch // self.every if self.every else 0
        network, at = self.network, 0
        if renewals:
            network, at = self.student, renewals * self.every * engine.state.epoch_length
            manifest = replace(self.manifest, settings={**self.manifest.settings, "student_at_iteration": at})
            with idist.one_rank_first():
                self.store.folder = open_store(
                    self.folder / f"iteration_{at}",
                    self.store.kind,
                    manifest,
                    palette=getattr(self.store, "palette", None),
                ).folder
        missing = self.store.missing(self.manifest.images)
        engine.state.pseudo_label_scores = {}
        if missing:
            log.info("writing pseudo labels of %d images to %s", len(missing), self.store.folder)
            scores = write_pseudo_labels(self.store, network, self.images(missing), **self.settings)
            engine.state.pseudo_label_scores = scores
            if scores:
                log.info("pseudo labels against ground truth: mIoU %.4f", scores["miou"])
        engine.fire_event(ProdaEvents.PSEUDO_LABELS_REFRESHED)

    def renew(self, engine: Engine) -> None:
        self.prepare(engine)
        if self.renew_data is not None:
            engine.set_data(self.renew_data(start=engine.state.iteration))
