"""Pseudo labels of the target training images: missing ones are written at the start; training may renew them."""

import logging
import math
import shutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Events
from torch import nn

from proda.data.label_store import HardLabelStore, SoftLabelStore
from proda.data.loaders import TrainingBatches, prefetched
from proda.engines.events import ProdaEvents, Trainer, remember
from proda.engines.labelling import missing_labels, write_pseudo_labels
from proda.engines.optimization import Precision
from proda.metrics import NO_LABELED_PIXELS
from proda.utils.errors import UserError
from proda.utils.files import sha256_of_tensors

log = logging.getLogger("proda")


class PseudoLabels:
    """Writes pseudo labels of the target training images when training starts, and optionally renews them.

    At the start the frozen ``network`` of the previous stage predicts the labels that ``store`` lacks. Then
    ``PSEUDO_LABELS_REFRESHED`` fires; ``engine.state.pseudo_label_scores`` has the scores of new labels, if there is
    ground truth.

    Args:
        store: not yet opened; its manifest describes the first labels.
        images: names -> batches of these whole images.
        flip, scales, ensemble: what the predictions are averaged over; see ``write_pseudo_labels``.
    """

    def __init__(
        self,
        store: SoftLabelStore | HardLabelStore,
        network: nn.Module,
        images: Callable[[Sequence[str]], Iterable[dict[str, Any]]],
        precision: Precision,
        class_names: Sequence[str],
        *,
        flip: bool = False,
        scales: Sequence[float] = (1.0,),
        ensemble: Sequence[nn.Module] = (),
    ) -> None:
        self.store, self.network, self.images, self.precision = store, network, images, precision
        self.flip, self.scales, self.ensemble = flip, scales, ensemble
        self.class_names, self.manifest = class_names, store.manifest  # of the first labels
        self.every, self.labeller = 0, network
        self.batches: TrainingBatches | None = None
        self.renewed: dict[str, Any] = {}  # iteration and weights of the last renewal

    @property
    def passes(self) -> float:
        """How many predictions of a whole image it takes to write the labels of one."""
        return sum(scale**2 for scale in self.scales) * (1 + self.flip) * (1 + len(self.ensemble))

    def attach(
        self,
        trainer: Trainer,
        renew_every: int = 0,
        *,
        labeller: nn.Module | None = None,
        batches: TrainingBatches | None = None,
        folder: Path | str = "",
    ) -> None:
        """Renews the labels every ``renew_every`` epochs; 0 never renews them.

        The ``labeller``, usually the student, writes new labels to ``folder/pseudo_labels/iteration_N`` after
        ``BEFORE_LABELS_WRITTEN``, with the checksum of its weights in their manifest. A run that resumes at iteration N
        writes these labels again; a run that resumes later needs the files. Folders that no checkpoint needs are
        deleted. ``store.folder`` changes, so that readers of ``store`` get the new labels. The loader of ``batches`` is
        restarted, because its processes have already read ahead.
        """
        trainer.add_event_handler(Events.STARTED, self.prepare)
        if renew_every > 0 and labeller is not None:
            self.every, self.labeller, self.batches, self.folder = renew_every, labeller, batches, Path(folder)
            trainer.add_event_handler(Events.EPOCH_COMPLETED(every=renew_every), self.renew)
            remember(trainer, pseudo_labels=self)

    def prepare(self, engine: Trainer) -> None:
        """Provides the labels of the engine's iteration: new ones if they are due, otherwise the current ones."""
        iteration, due, network = engine.state.iteration, self._due(engine), self.network
        if due:
            engine.fire_event(ProdaEvents.BEFORE_LABELS_WRITTEN)
            digest = idist.broadcast(sha256_of_tensors(self.labeller.state_dict()), src=0)
            self.renewed, network = {"iteration": iteration, "weights": digest}, self.labeller
        if self.renewed:
            self.store.folder = self.folder / "pseudo_labels" / f"iteration_{self.renewed['iteration']}"
            settings = {**self.manifest.settings, "renewed_at_iteration": self.renewed["iteration"]}
            self.store.manifest = replace(self.manifest, weights=self.renewed["weights"], settings=settings)
            self.store.overwrite = True
        with idist.one_rank_first():  # stale labels must be deleted before other ranks open the folder
            self.store.open()
        if self.renewed:
            self._delete_unneeded(engine)
        names = missing_labels(self.store, self.manifest.images)
        engine.state.pseudo_label_scores = {}
        if names and self.renewed and not due:
            raise UserError(
                f"{self.store.folder}: {len(names)} pseudo labels of iteration {self.renewed['iteration']} are "
                f"missing, and the networks of iteration {iteration} cannot write them again"
            )
        if names:
            log.info("writing pseudo labels of %d images to %s", len(names), self.store.folder)
            engine.state.pseudo_label_scores = scores = write_pseudo_labels(
                self.store,
                network,
                self.images(names),
                self.precision,
                class_names=self.class_names,
                flip=self.flip,
                scales=self.scales,
                ensemble=self.ensemble,
            )
            if scores:
                miou = 100 * scores["miou"]
                found = f"no mIoU, {NO_LABELED_PIXELS}" if math.isnan(miou) else f"mIoU {miou:.2f} %"
                log.info("pseudo labels against ground truth: %s", found)
        engine.fire_event(ProdaEvents.PSEUDO_LABELS_REFRESHED)

    def renew(self, engine: Trainer) -> None:
        if engine.state.iteration == engine.state.max_iters:
            return  # the end of training: new labels would not be used
        self.prepare(engine)
        if self.batches is not None:
            engine.set_data(prefetched(self.batches.loader(start=engine.state.iteration), self.precision.device))

    def state_dict(self) -> dict[str, Any]:
        return {"renewed": self.renewed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        renewed = state["renewed"]
        # int() rejects everything but a number, because it becomes part of a folder name.
        self.renewed = {"iteration": int(renewed["iteration"]), "weights": str(renewed["weights"])} if renewed else {}

    def _due(self, engine: Trainer) -> bool:
        """Whether new labels are written at this iteration, also if a run resumes exactly between two epochs."""
        iteration = engine.state.iteration
        return self.every > 0 and iteration > 0 and iteration % (self.every * engine.state.epoch_length) == 0

    @idist.one_rank_only()
    def _delete_unneeded(self, engine: Trainer) -> None:
        """Deletes labels that are older than those in use at the oldest checkpoint on disk."""
        interval = self.every * engine.state.epoch_length
        oldest = min([engine.state.iteration, *engine.state.checkpoint_iterations])
        for folder in (self.folder / "pseudo_labels").glob("iteration_*"):
            iteration = folder.name.removeprefix("iteration_")
            if iteration.isdigit() and int(iteration) < (oldest - 1) // interval * interval:
                shutil.rmtree(folder)
