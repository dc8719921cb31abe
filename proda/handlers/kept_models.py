"""Saves the last model of a run, the best one, the one chosen without labels, and the mean teacher."""

import logging
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Events
from torch import Tensor

from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.checkpoints import damage
from proda.handlers.validation import Validation
from proda.models.model_info import ModelInfo
from proda.models.network import SegmentationNetwork
from proda.models.weights import weights_content
from proda.utils.files import save_tensors

log = logging.getLogger("proda")

BEST = {"best.pt": "miou", "label_free.pt": "label_free"}  # file -> the score by which it is chosen


class KeptModels:
    """Saves the network after a validation, atomically, under up to four names.

    - ``last.pt``: the last validation.
    - ``best.pt``: the highest mean IoU on the labelled validation set. Unsupervised adaptation could not
      know these labels. The file is not written without labels.
    - ``label_free.pt``: the highest label-free score, see ``LabelFreeScore``.
    - ``teacher.pt``: the mean teacher of the last validation, if it was judged as well.

    Args:
        info: what the files say about the network, without its scores.
        teacher: the mean teacher, if ``validation`` has an evaluator for it.
        prototypes: stored in the files besides the network.
    """

    def __init__(
        self,
        validation: Validation,
        network: SegmentationNetwork,
        info: ModelInfo,
        folder: Path,
        *,
        prototypes: Tensor | None = None,
        teacher: SegmentationNetwork | None = None,
    ) -> None:
        self.validation, self.network, self.info = validation, network, replace(info)
        self.teacher = teacher
        self.folder, self.prototypes = Path(folder), prototypes
        self.saved: dict[str, int] = {}  # file -> iteration of its network, for files that this process saved
        self.failures: dict[str, OSError] = {}  # file -> why it could not be saved

    def attach(self, trainer: Trainer) -> None:
        """Raises ValueError if ``Validation`` is not attached yet."""
        if "validation" not in trainer.state.remembered:
            raise ValueError("attach KeptModels after Validation")
        trainer.add_event_handler(ProdaEvents.VALIDATED, self)
        trainer.add_event_handler(Events.COMPLETED, self)

    def __call__(self, trainer: Trainer) -> None:
        """Saves what this process has not saved yet; a resumed run may have been interrupted while saving."""
        results = self.validation.results
        if not results or results[-1]["iteration"] != trainer.state.iteration:
            return  # training ended without a validation, or a signal ended that, so this network has no scores
        result = results[-1]
        for name in self.names(result):
            if self.saved.get(name) != result["iteration"]:
                self._save(name, result)

    def recover(self, trainer: Trainer) -> None:
        """After a resume: saves the best models that are gone, or passes over validations whose models stay gone.

        ``best.pt`` of an iteration after the checkpoint was deleted, and the one before it had been overwritten. The
        best validation of the run is then the best one whose model there is.
        """
        results, iteration = self.validation.results, trainer.state.iteration
        for name, score in BEST.items():
            there = idist.broadcast(_iteration_of(self.folder / name), src=0)
            while results and not math.isnan((best := self.validation.best(score))[score]):
                lost = self.validation.lost.setdefault(score, set())
                if best["iteration"] == there or best["iteration"] in lost:
                    break
                if best["iteration"] == iteration and best is results[-1]:
                    self._save(name, best)
                    break
                log.warning("%s of iteration %d, the best so far, is gone", self.folder / name, best["iteration"])
                lost.add(best["iteration"])

    def names(self, result: dict[str, Any]) -> list[str]:
        """The files to save after the last validation, whose scores are ``result``."""
        names = ["last.pt"]
        names += ["best.pt"] if self.validation.best() is result and not math.isnan(result["miou"]) else []
        names += ["label_free.pt"] if self.validation.best("label_free") is result else []
        names += [] if self.teacher is None else ["teacher.pt"]
        return names

    def content(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """What the file of that name holds."""
        judged = name == "teacher.pt"
        prefix = "teacher_" if judged else ""
        miou, label_free = (float(result[f"{prefix}{score}"]) for score in ("miou", "label_free"))
        info = replace(self.info, iteration=result["iteration"], miou=miou, label_free=label_free)
        return weights_content(
            self.teacher if judged and self.teacher is not None else self.network,
            prototypes=self.prototypes,
            **vars(info),
        )

    def raise_failures(self) -> None:
        """Raises the OSError of a file that could not be saved: later stages would use an older model, or find none."""
        for error in self.failures.values():
            raise error

    @idist.one_rank_only()
    def _save(self, name: str, result: dict[str, Any]) -> None:
        try:
            save_tensors(self.content(name, result), self.folder / name)
            self.saved[name] = result["iteration"]
            self.failures.pop(name, None)
        except OSError as error:
            self.failures[name] = error
            log.error("could not save a model: %s; the file before it is kept", error)


def _iteration_of(path: Path) -> int:
    """The iteration of a model that was saved; -1 if there is none that can be read."""
    if not path.is_file() or damage(path):
        return -1
    content = torch.load(path, map_location="meta", weights_only=True)
    found = content.get("iteration") if isinstance(content, dict) else None
    return found if isinstance(found, int) else -1
