"""Class prototypes: computed with the warm-up model, then updated as a moving average during training.

The formulas are in ``proda.method.prototypes``.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, Trainer, remember
from proda.engines.inference import require_finite
from proda.engines.optimization import Precision
from proda.method.prototypes import class_means, update_prototypes
from proda.method.tensors import to_float
from proda.models.network import evaluation_mode
from proda.models.weights import load_prototypes, prototypes_record, save_prototypes
from proda.utils.errors import UserError
from proda.utils.progress import track
from proda.utils.record import differences, plain, shortened

log = logging.getLogger("proda")

COUNT_CAP = 3000
IMAGES_AT_ONCE = 64


class Prototypes:
    """Class prototypes, and the number of image means that each was computed from.

    ``values`` float32 [K, D] and ``counts`` float32 [K] are updated in place, so an engine that was passed ``values``
    sees every update. A class that has not occurred yet has a prototype of zeros and count 0.
    """

    def __init__(self, num_classes: int, num_features: int, device: torch.device | str = "cpu") -> None:
        self.values = torch.zeros(num_classes, num_features, device=device)
        self.counts = torch.zeros(num_classes, device=device)

    def update(self, means: Tensor, present: Tensor, *, momentum: float | None) -> None:
        """Performs N updates in order: ``means`` [N, K, D], ``present`` bool [N, K]; see ``update_prototypes``."""
        values, counts = update_prototypes(self.values, self.counts, means, present, momentum=momentum, cap=COUNT_CAP)
        self.values.copy_(values)
        self.counts.copy_(counts)

    def state_dict(self) -> dict[str, Tensor]:
        return {"prototypes": self.values, "counts": self.counts}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        found, expected = tuple(state["prototypes"].shape), tuple(self.values.shape)
        if found != expected:
            raise ValueError(f"prototypes have shape {found}, expected [classes, features] = {expected}")
        self.values.copy_(state["prototypes"])
        self.counts.copy_(state.get("counts", torch.zeros_like(self.counts)))


class PrototypeEMA:
    """Updates the prototypes by the moving average of the class means, image by image (ProDA equation 6).

    Reads ``output["class_means"]`` [B, K, D] and ``output["class_present"]`` bool [B, K] after each step of the
    optimizer; fires ``PROTOTYPES_UPDATED``. ``momentum`` is the weight of the new value: 1e-4 is the paper's
    lambda = 0.9999; 0 keeps the prototypes fixed. The images of all processes are used in the order of the global
    batch, so the result does not depend on the number of processes.
    """

    def __init__(self, prototypes: Prototypes, momentum: float = 1e-4) -> None:
        self.prototypes, self.momentum = prototypes, momentum

    @torch.no_grad()
    def __call__(self, engine: Trainer) -> None:
        means, present = engine.state.output["class_means"], engine.state.output["class_present"]
        if idist.get_world_size() > 1:
            means, present = idist.all_gather(means), idist.all_gather(present.to(torch.uint8)).bool()
        self.prototypes.update(means, present, momentum=self.momentum)
        engine.fire_event(ProdaEvents.PROTOTYPES_UPDATED)

    def attach(self, engine: Trainer, event: Any = ProdaEvents.OPTIMIZER_STEPPED) -> None:
        if self.momentum > 0:
            engine.add_event_handler(event, self)
        remember(engine, prototypes=self.prototypes)


class InitialPrototypes:
    """Provides the prototypes before the first iteration: those in ``file``; if it is missing, ``network``'s are
    computed and written to it. A resumed run has them in its checkpoint.

    Their counts start at 0, as in the published training (the moving average does not use them).

    Args:
        network: of the previous stage.
        batches: as for :func:`initial_prototypes`.
        made_from: name -> JSON value of everything that the prototypes depend on (weights, images, classes, ...). It is
            stored in the file and compared with the record in an existing file. Released files have no record.
    """

    def __init__(
        self,
        prototypes: Prototypes,
        network: nn.Module,
        batches: Iterable[dict[str, Any]],
        precision: Precision,
        file: Path | str,
        made_from: Mapping[str, Any],
        *,
        passes: int = 1,
    ) -> None:
        self.prototypes, self.network, self.batches, self.precision = prototypes, network, batches, precision
        self.file, self.made_from, self.passes = Path(file), {**made_from, "passes": passes}, passes

    def attach(self, trainer: Trainer) -> None:
        trainer.add_event_handler(Events.STARTED, self)
        remember(trainer, prototypes=self.prototypes)

    def check(self) -> None:
        """Raises UserError if the file was computed from other inputs, or has other classes or features."""
        if self.file.is_file():
            self._read()

    def __call__(self, engine: Trainer) -> None:
        if engine.state.iteration > 0:
            return
        if idist.broadcast(int(self.file.is_file()), src=0):  # others may see a new file on a shared disk later
            self.prototypes.values.copy_(self._read())
        else:
            log.info("computing prototypes into %s", self.file)
            initial_prototypes(self.prototypes, self.network, self.batches, self.precision, passes=self.passes)
            if idist.get_rank() == 0:
                values, counts = self.prototypes.values, self.prototypes.counts
                save_prototypes(self.file, values, counts, made_from=self.made_from)
            idist.barrier()
        self.prototypes.counts.zero_()

    def _read(self) -> Tensor:
        """The prototypes in the file, float32 [K, D]."""
        values, recorded = load_prototypes(self.file), plain(prototypes_record(self.file))
        expected = {name: value for name, value in plain(self.made_from).items() if name in recorded}
        if other := differences({name: recorded[name] for name in expected}, expected):
            raise UserError(
                f"{self.file}: prototypes of other inputs: {shortened(other)}; remove the file, or choose another "
                "--prototypes"
            )
        if values.shape != self.prototypes.values.shape:
            found, size = list(values.shape), list(self.prototypes.values.shape)
            raise UserError(f"{self.file}: prototypes have shape {found}, expected [classes, features] = {size}")
        return values


@torch.no_grad()
def initial_prototypes(
    prototypes: Prototypes,
    network: nn.Module,
    batches: Iterable[dict[str, Any]],
    precision: Precision,
    *,
    passes: int = 1,
) -> None:
    """Sets ``prototypes`` to the mean over the images of their class means, by the network's own arg-max.

    ``batches``: ``{"image"}`` of the unaugmented target training set in the order of ``evaluation_loader``; each image
    is on one process only. The result does not depend on the number of processes.
    The network runs in evaluation mode; afterwards each module returns to its previous mode. The released code makes
    four passes; the cap on the counts then gives more weight to later images of frequent classes. One pass computes the
    mean, up to that cap. A class that is not predicted keeps its prototype. FloatingPointError if the network predicts
    NaN.
    """
    prototypes.counts.zero_()
    shape = (0, *prototypes.values.shape)
    means = [torch.zeros(shape, device=precision.device)]
    present = [torch.zeros(shape[:2], dtype=torch.bool, device=precision.device)]
    with evaluation_mode(network):
        for batch in track(batches, "prototypes, batch", show=idist.get_rank() == 0):
            batch = to_device(batch, precision.device)
            with precision.autocast():
                result = network(to_float(batch["image"]))
            found = class_means(result.features, result.logits)
            for scores in (result.logits, found.means):
                require_finite(scores, batch.get("name", ()))
            means.append(found.means)
            present.append(found.present)
    # Every process updates with the images of all processes in their order, because with the cap the order matters.
    all_means, all_present = _in_order(torch.cat(means)), _in_order(torch.cat(present).to(torch.uint8)).bool()
    for _ in range(passes):  # the network does not change, so every pass has the same means
        for part, there in zip(all_means.split(IMAGES_AT_ONCE), all_present.split(IMAGES_AT_ONCE), strict=True):
            prototypes.update(part, there, momentum=None)


def _in_order(values: Tensor) -> Tensor:
    """The rows of all processes in the order of ``evaluation_loader``: rank r of W has rows r, r + W, r + 2 W..."""
    processes = idist.get_world_size()
    if processes == 1:
        return values
    total = int(idist.all_reduce(len(values)))
    share = -(-total // processes)
    padded = torch.cat([values, values.new_zeros(share - len(values), *values.shape[1:])])
    gathered = idist.all_gather(padded).unflatten(0, (processes, share))
    return gathered.transpose(0, 1).flatten(0, 1)[:total]
