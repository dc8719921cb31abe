"""Which models of a run are kept."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor, nn

from proda.engines.events import ProdaEvents
from proda.handlers.validation import Validation
from proda.models.network import SegmentationNetwork
from proda.models.weights import weights_content
from proda.utils.files import save_tensors

log = logging.getLogger("proda")


class KeptModels:
    """Saves the network of each validation under the names it deserves, written atomically.

    ``last.pt``; ``best.pt`` (highest mean IoU on the labelled validation set, which an honest adaptation could not
    know; none without labels) and ``label_free.pt`` (highest label-free score, see ``LabelFreeScore``).

    Args:
        prototypes, discriminator: what the files hold besides the network.
    """

    def __init__(
        self,
        validation: Validation,
        network: SegmentationNetwork,
        class_names: Sequence[str],
        folder: Path,
        *,
        prototypes: Tensor | None = None,
        discriminator: nn.Module | None = None,
    ) -> None:
        self.validation, self.network, self.class_names = validation, network, class_names
        self.folder, self.prototypes, self.discriminator = Path(folder), prototypes, discriminator
        self.saved: dict[str, int] = {}  # file -> iteration of the network in it, of those that this process has saved
        self.failures: dict[str, OSError] = {}  # file -> why it could not be saved

    def attach(self, trainer: Engine) -> None:
        """Attach it after the validation."""
        trainer.add_event_handler(ProdaEvents.VALIDATED, self)
        trainer.add_event_handler(Events.COMPLETED, self)

    def __call__(self, trainer: Engine) -> None:
        """Saves what this process has not saved yet, as after a resumed run that was interrupted while saving."""
        result = self.validation.results[-1]
        if result["iteration"] != trainer.state.iteration:
            return  # training ended elsewhere than at a validation, and this network has not been validated
        names = ["last.pt"]
        names += ["best.pt"] if self.validation.best() is result and not math.isnan(result["miou"]) else []
        names += ["label_free.pt"] if self.validation.best("label_free") is result else []
        for name in names:
            if self.saved.get(name) != result["iteration"]:
                self._save(name, result)

    def raise_failures(self) -> None:
        """OSError where a file could not be saved: whatever comes next would use an older model, or none."""
        for error in self.failures.values():
            raise error

    @idist.one_rank_only()
    def _save(self, name: str, result: dict[str, Any]) -> None:
        content = weights_content(
            self.network,
            class_names=self.class_names,
            prototypes=self.prototypes,
            discriminator=self.discriminator,
            iteration=result["iteration"],
            miou=result["miou"],
        )
        try:
            save_tensors(content, self.folder / name)
            self.saved[name] = result["iteration"]
            self.failures.pop(name, None)
        except OSError as error:
            self.failures[name] = error
            log.error("could not save a model: %s; the file before it is kept", error)
