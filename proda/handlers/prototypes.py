"""Class prototypes: computed with the warm-up model, then updated as a moving average during training.

The formulas are in ``proda.method.prototypes``.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, remember
from proda.engines.optimization import Precision
from proda.method.prototypes import class_means, update_prototypes
from proda.method.tensors import to_float
from proda.models.network import SegmentationNetwork, evaluation_mode
from proda.models.weights import load_prototypes, prototypes_record, save_prototypes
from proda.utils.errors import UserError
from proda.utils.progress import track

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
    def __call__(self, engine: Engine) -> None:
        means, present = engine.state.output["class_means"], engine.state.output["class_present"]
        if idist.get_world_size() > 1:
            means, present = idist.all_gather(means), idist.all_gather(present.to(torch.uint8)).bool()
        self.prototypes.update(means, present, momentum=self.momentum)
        engine.fire_event(ProdaEvents.PROTOTYPES_UPDATED)

    def attach(self, engine: Engine, event: Any = ProdaEvents.OPTIMIZER_STEPPED) -> None:
        if self.momentum > 0:
            engine.add_event_handler(event, self)
        remember(engine, prototypes=self.prototypes)


class RenewPrototypes:
    """Recomputes the prototypes with the network that is about to write new pseudo labels.

    They are what :func:`initial_prototypes` computes at the start, with this network, and their counts start at 0
    again. Attach it after ``AdaBN``, and ``network`` predicts with the target's batch-norm statistics.

    Args:
        batches: as for :func:`initial_prototypes`.
    """

    def __init__(
        self,
        prototypes: Prototypes,
        network: nn.Module,
        batches: Iterable[dict[str, Any]],
        precision: Precision,
        *,
        passes: int = 1,
    ) -> None:
        self.prototypes, self.network, self.batches = prototypes, network, batches
        self.precision, self.passes = precision, passes

    def attach(self, trainer: Engine) -> None:
        trainer.add_event_handler(ProdaEvents.BEFORE_LABELS_WRITTEN, self)

    def __call__(self, _: Engine) -> None:
        log.info("computing new prototypes")
        initial_prototypes(self.prototypes, self.network, self.batches, self.precision, passes=self.passes)
        self.prototypes.counts.zero_()


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
    mean, up to that cap. A class that is not predicted keeps its prototype.
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


def prepare_prototypes(
    file: Path,
    network: SegmentationNetwork,
    batches: Iterable[dict[str, Any]],
    precision: Precision,
    passes: int,
    made_from: Mapping[str, Any],
) -> Prototypes:
    """The prototypes in ``file``; if it does not exist, they are computed with ``network`` and written to it first.

    Their counts start at 0, as in the published training (the moving average does not use them).

    Args:
        made_from: name -> JSON value of everything that the prototypes depend on (weights, images, classes, ...). It is
            stored in the file and compared with the record in an existing file. Released files have no record.

    Raises:
        UserError: the file was computed from other inputs, or has another number of classes or features.
    """
    prototypes = Prototypes(network.num_classes, network.num_features, precision.device)
    made_from = {**made_from, "passes": passes}
    if not idist.broadcast(int(file.is_file()), src=0):  # other processes may see a new file on a shared disk later
        log.info("computing prototypes into %s", file)
        initial_prototypes(prototypes, network, batches, precision, passes=passes)
        if idist.get_rank() == 0:
            save_prototypes(file, prototypes.values, prototypes.counts, made_from=made_from)
        idist.barrier()
    else:
        values, recorded = load_prototypes(file), prototypes_record(file)
        for name in sorted(recorded.keys() & made_from.keys()):
            if recorded[name] != made_from[name]:
                raise UserError(
                    f"{file}: prototypes computed from other {name}: found {_brief(recorded[name])}, expected "
                    f"{_brief(made_from[name])}; remove the file, or choose another --prototypes"
                )
        try:
            prototypes.load_state_dict({"prototypes": values})
        except ValueError as error:
            raise UserError(f"{file}: {error}") from error
    prototypes.counts.zero_()
    return prototypes


def _brief(value: Any) -> str:
    """A value for an error message; of a checksum only the beginning."""
    return value[:12] if isinstance(value, str) and len(value) == 64 else str(value)
