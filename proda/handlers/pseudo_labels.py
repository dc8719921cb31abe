"""Pseudo labels of the target training images: made at the start if they are not there, renewed as training goes."""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from ignite.metrics import ConfusionMatrix
from torch import nn
from tqdm import tqdm

from proda.data.label_store import HardLabelStore, SoftLabelStore, open_store, read_manifest
from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents
from proda.engines.inference import predict
from proda.engines.step import Precision, images, resize
from proda.handlers.validation import report
from proda.utils.files import sha256_of_tensors

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
                probabilities = predict(network, images(batch), size, flip=flip, softmax_first=True)
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
    _finish(store)
    # a process may have had no image at all, and still takes part in adding up
    judged = bool(idist.all_reduce(int(judged)))
    return report(confusion.compute(), class_names) if judged else {}


def missing_labels(store: SoftLabelStore | HardLabelStore, names: Sequence[str]) -> list[str]:
    """Those of ``names`` that the store does not hold, as rank 0 sees it before any process writes."""
    missing = set(store.missing(names)) if idist.get_rank() == 0 else set()
    mask = torch.tensor([name in missing for name in names], dtype=torch.uint8, device=idist.device())
    mask = idist.broadcast(mask, src=0).tolist()
    return [name for name, absent in zip(names, mask, strict=True) if absent]


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


class PseudoLabels:
    """Prepares labels of the target training images when training starts, and renews them every so many epochs.

    At the start the frozen ``network`` of the stage before predicts what ``store`` does not hold yet. At renewals
    the ``student`` predicts them anew, into ``folder/iteration_N``; their manifest holds the checksum of its weights.
    It remembers which labels were the last, so it goes into the checkpoint: a resumed run makes those of its own
    iteration again, and for older ones needs the files.

    Fires ``PSEUDO_LABELS_REFRESHED``, with the labels' scores against ground truth, where there is any, in
    ``engine.state.pseudo_label_scores``. It changes ``store.folder``: whoever reads ``store`` reads the new labels.

    Args:
        store: opened with the manifest of the first labels.
        images: batches of the images with these names.
        folder: of renewed labels, the run's own; what an earlier run left there is replaced.
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
        folder: Path | None = None,
        renew_data: Callable[..., Iterable] | None = None,
    ) -> None:
        self.store, self.network, self.images, self.student = store, network, images, student
        self.settings = {"precision": precision, "device": device, "flip": flip, "class_names": class_names}
        self.renew_data, self.every = renew_data, 0
        self.folder = Path(folder or store.folder)
        self.manifest = read_manifest(store.folder, store.kind)
        self.renewed: dict[str, Any] = {}  # iteration and weights of the last renewal

    def attach(self, trainer: Engine, *, every: int = 0) -> None:
        """``every``: epochs between renewals; 0 for none."""
        self.every = every
        trainer.add_event_handler(Events.STARTED, self.prepare)
        if every > 0:
            trainer.add_event_handler(Events.EPOCH_COMPLETED(every=self.every), self.renew)

    def prepare(self, engine: Engine) -> None:
        """Labels as they stand at the engine's iteration."""
        network = self.network
        if self._due(engine):
            digest = idist.broadcast(sha256_of_tensors(self.student.state_dict()), src=0)
            self.renewed = {"iteration": engine.state.iteration, "weights": digest}
            network = self.student
        if self.renewed:
            self._open_renewed()
        missing = missing_labels(self.store, self.manifest.images)
        engine.state.pseudo_label_scores = {}
        if missing:
            if self.renewed and not self._due(engine):
                raise ValueError(
                    f"{self.store.folder}: {len(missing)} pseudo labels of iteration {self.renewed['iteration']} are "
                    f"not there, and the student of iteration {engine.state.iteration} cannot make them again"
                )
            log.info("writing pseudo labels of %d images to %s", len(missing), self.store.folder)
            scores = write_pseudo_labels(self.store, network, self.images(missing), **self.settings)
            engine.state.pseudo_label_scores = scores
            if scores:
                log.info("pseudo labels against ground truth: mIoU %.4f", scores["miou"])
        engine.fire_event(ProdaEvents.PSEUDO_LABELS_REFRESHED)

    def renew(self, engine: Engine) -> None:
        if engine.state.iteration == engine.state.max_iters:
            return  # nobody would train on them
        self.prepare(engine)
        if self.renew_data is not None:
            engine.set_data(self.renew_data(start=engine.state.iteration))

    def state_dict(self) -> dict[str, Any]:
        return {"renewed": self.renewed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        renewed = state["renewed"]
        # a number and nothing else, since it becomes the name of a folder
        self.renewed = {"iteration": int(renewed["iteration"]), "weights": str(renewed["weights"])} if renewed else {}

    def _due(self, engine: Engine) -> bool:
        """Whether the student of this very iteration makes the labels; so also where a run resumes between epochs."""
        iteration = engine.state.iteration
        return self.every > 0 and iteration > 0 and iteration % (self.every * engine.state.epoch_length) == 0

    def _open_renewed(self) -> None:
        settings = {**self.manifest.settings, "student_at_iteration": self.renewed["iteration"]}
        with idist.one_rank_first():
            self.store.folder = open_store(
                self.folder / f"iteration_{self.renewed['iteration']}",
                self.store.kind,
                replace(self.manifest, weights=self.renewed["weights"], settings=settings),
                palette=getattr(self.store, "palette", None),
                overwrite=True,
            ).folder
