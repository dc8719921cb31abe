"""Validation during training, and which model is kept."""

import logging
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor

from proda.data.labels import class_subset
from proda.engines.events import ProdaEvents
from proda.files import save_tensors
from proda.method.metrics import scores

log = logging.getLogger("proda")


def report(confusion: Tensor, class_names: list[str]) -> dict[str, Any]:
    """Scores of a confusion matrix under the names that ``summary.json`` has; fractions, NaN where undefined."""
    result = scores(confusion)
    values = {
        "miou": result.mean_iou.item(),
        "iou": dict(zip(class_names, result.iou.tolist(), strict=True)),
        "overall_accuracy": result.overall_accuracy.item(),
        "mean_accuracy": result.mean_accuracy.item(),
        "frequency_weighted_iou": result.frequency_weighted_iou.item(),
    }
    if len(class_names) == 16:
        values["miou_13"] = result.iou[class_subset(13, of=16)].nanmean().item()
    return values


class Validation:
    """Runs the evaluator every so often and keeps three models: last, best on val, and best without labels.

    Leaves scores in ``trainer.state.metrics`` and fires ``VALIDATED``. ``results`` has one entry for each validation
    and is remembered in checkpoints. Files, each written whole, with what ``weights()`` gives: ``last.pt``, ``best.pt``
    (highest mean IoU on the labelled validation set, which an honest adaptation could not know) and ``label_free.pt``
    (highest label-free score, see ``LabelFreeScore``).
    """

    def __init__(
        self,
        evaluator: Engine,
        batches: Iterable,
        class_names: list[str],
        weights: Callable[[], dict[str, Any]],
        folder: Path,
    ) -> None:
        self.evaluator, self.batches, self.class_names = evaluator, batches, class_names
        self.weights, self.folder = weights, Path(folder)
        self.results: list[dict[str, Any]] = []

    def attach(self, trainer: Engine, *, every: int) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), self)
        trainer.add_event_handler(Events.COMPLETED, self)

    def __call__(self, trainer: Engine) -> None:
        iteration = trainer.state.iteration
        if self.results and self.results[-1]["iteration"] == iteration:
            return  # the end of training falls on a regular validation
        self.evaluator.run(self.batches)
        metrics = self.evaluator.state.metrics
        result = {
            "iteration": iteration,
            "label_free": metrics["label_free"],
            **report(metrics["confusion"], self.class_names),
        }
        self.results.append(result)
        log.info(
            "iteration %d: mIoU %.4f (best %.4f), label-free score %.4f",
            iteration,
            result["miou"],
            self.best()["miou"],
            result["label_free"],
        )
        self._keep("last.pt", result)
        if self.best() is result:
            self._keep("best.pt", result)
        if self.best("label_free") is result:
            self._keep("label_free.pt", result)
        flat = {name: value for name, value in result.items() if name not in ("iou", "iteration")}
        # an absent class has no score, so no point on its curve
        trainer.state.metrics = flat | {f"iou/{name}": iou for name, iou in result["iou"].items() if iou == iou}
        trainer.fire_event(ProdaEvents.VALIDATED)

    def best(self, score: str = "miou") -> dict[str, Any]:
        """The validation with the highest score, the first of equals."""
        return max(self.results, key=lambda result: -math.inf if math.isnan(result[score]) else result[score])

    def summary(self) -> dict[str, Any]:
        """Final scores, and mean IoU and iteration of the best and of the label-free choice."""
        last, best, chosen = self.results[-1], self.best(), self.best("label_free")
        return {
            **last,
            "best_miou": best["miou"],
            "best_iteration": best["iteration"],
            "label_free_miou": chosen["miou"],
            "label_free_iteration": chosen["iteration"],
        }

    def state_dict(self) -> dict[str, Any]:
        return {"results": self.results}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.results = list(state["results"])

    @idist.one_rank_only()
    def _keep(self, name: str, result: dict[str, Any]) -> None:
        content = {**self.weights(), "iteration": result["iteration"], "miou": result["miou"]}
        try:
            save_tensors(content, self.folder / name)
        except OSError as error:
            log.error("could not save %s: %s; the file before it is kept", self.folder / name, error)
