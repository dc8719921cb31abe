"""Validation during training, and which model is kept."""

import logging
import math
from collections.abc import Callable, Iterable, Sized
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch import Tensor

from proda.data.labels import class_names as benchmark_names
from proda.data.labels import class_subset
from proda.engines.events import ProdaEvents
from proda.method.metrics import scores
from proda.utils.files import save_tensors

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
    if list(class_names) == benchmark_names(16):
        values["miou_13"] = result.iou[class_subset(13, of=16)].nanmean().item()
    return values


class Validation:
    """Runs the evaluator every so often and keeps three models: last, best on val, and best without labels.

    Leaves scores in ``trainer.state.metrics`` and fires ``VALIDATED``. ``results`` has one entry for each validation
    and is remembered in checkpoints. Files, each written whole, with what ``weights()`` gives: ``last.pt``, ``best.pt``
    (highest mean IoU on the labelled validation set, which an honest adaptation could not know) and ``label_free.pt``
    (highest label-free score, see ``LabelFreeScore``). Where the images have no labels there is no ``best.pt``.

    Raises FloatingPointError, before anything is kept, for a network that predicts NaN.
    """

    def __init__(
        self,
        evaluator: Engine,
        batches: Iterable,
        class_names: list[str],
        weights: Callable[[], dict[str, Any]],
        folder: Path,
    ) -> None:
        processes = idist.get_world_size()
        if processes > 1 and isinstance(batches, Sized) and not len(batches):
            raise ValueError(f"fewer validation images than processes ({processes}): start fewer processes")
        self.evaluator, self.batches, self.class_names = evaluator, batches, class_names
        self.weights, self.folder = weights, Path(folder)
        self.results: list[dict[str, Any]] = []
        self.kept: dict[str, int] = {}  # file -> iteration of the network in it, of those that this process has saved
        self.failure: OSError | None = None  # of the last attempt to save one of them

    def attach(self, trainer: Engine, *, every: int) -> None:
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), self)
        trainer.add_event_handler(Events.COMPLETED, self)

    def __call__(self, trainer: Engine) -> None:
        iteration = trainer.state.iteration
        if self.results and self.results[-1]["iteration"] == iteration:
            # The end of training falls on a regular validation. Or a resumed run was cut short after it, with perhaps
            # no room on the disk: the networks are those of the checkpoint.
            self._keep_models(self.results[-1])
            return
        self.evaluator.run(self.batches)
        metrics = self.evaluator.state.metrics
        if math.isnan(metrics["label_free"]):
            raise FloatingPointError(
                f"the network predicts NaN at iteration {iteration}; what was saved before is kept: "
                "lower --lr, set --grad_clip, or try --amp=off"
            )
        result = {
            "iteration": iteration,
            "label_free": metrics["label_free"],
            **report(metrics["confusion"], self.class_names),
        }
        self.results.append(result)
        labelled = not math.isnan(result["miou"])
        miou = f"mIoU {result['miou']:.4f} (best {self.best()['miou']:.4f})" if labelled else "no labels"
        log.info("iteration %d: %s, label-free score %.4f", iteration, miou, result["label_free"])
        self._keep_models(result)
        flat = {name: value for name, value in result.items() if name not in ("iou", "iteration")}
        flat |= {f"iou/{name}": iou for name, iou in result["iou"].items()}
        # an absent class has no score, so no point on its curve
        trainer.state.metrics = {name: value for name, value in flat.items() if value == value}
        trainer.fire_event(ProdaEvents.VALIDATED)

    def best(self, score: str = "miou") -> dict[str, Any]:
        """The validation with the highest score, the first of equals."""
        return max(self.results, key=lambda result: -math.inf if math.isnan(result[score]) else result[score])

    def summary(self) -> dict[str, Any]:
        """Final scores, and mean IoU and iteration of the best and of the label-free choice.

        OSError where the final model could not be saved: whatever comes next would take an older one.
        """
        if self.failure is not None:
            raise self.failure
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

    def _keep_models(self, result: dict[str, Any]) -> None:
        """Saves the last validation's network under the names it deserves, unless this process has done so."""
        names = ["last.pt"]
        names += ["best.pt"] if self.best() is result and not math.isnan(result["miou"]) else []
        names += ["label_free.pt"] if self.best("label_free") is result else []
        for name in names:
            if self.kept.get(name) != result["iteration"]:
                self._keep(name, result)

    @idist.one_rank_only()
    def _keep(self, name: str, result: dict[str, Any]) -> None:
        content = {**self.weights(), "iteration": result["iteration"], "miou": result["miou"]}
        try:
            save_tensors(content, self.folder / name)
            self.kept[name] = result["iteration"]
            self.failure = None if name == "last.pt" else self.failure
        except OSError as error:
            self.failure = error
            log.error("could not save a model: %s; the file before it is kept", error)
