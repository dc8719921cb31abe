"""Validation during training."""

import logging
import math
from collections.abc import Iterable, Sequence, Sized
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

from proda.engines.events import ProdaEvents, Trainer, remember
from proda.handlers.nan import REMEDY
from proda.handlers.progress import show_progress
from proda.metrics import flatten, named_scores
from proda.utils.errors import UserError

log = logging.getLogger("proda")


class Validation:
    """Runs the evaluator at regular intervals and at the end of training, and keeps the results.

    ``results`` has the scores of each validation (see ``named_scores``) with its ``iteration``, and is saved in the
    checkpoint. When ``VALIDATED`` fires, those of the last one are in ``trainer.state.scores``, and flattened in
    ``trainer.state.metrics``. The names of the scores of ``teacher``, the evaluator of a mean teacher, begin with
    ``teacher_``. A run that was stopped during a validation repeats all of it when it is resumed.

    Raises:
        UserError: there are fewer validation images than processes.
        FloatingPointError: a network predicts NaN; ``VALIDATED`` does not fire.
    """

    def __init__(
        self, evaluator: Engine, batches: Iterable, class_names: Sequence[str], *, teacher: Engine | None = None
    ) -> None:
        processes = idist.get_world_size()
        if processes > 1 and isinstance(batches, Sized) and not len(batches):
            raise UserError(f"fewer validation images than processes ({processes}): start fewer processes")
        self.evaluators = {"": evaluator} if teacher is None else {"": evaluator, "teacher_": teacher}
        self.batches, self.class_names = batches, class_names
        self.results: list[dict[str, Any]] = []
        self.lost: dict[str, set[int]] = {}  # score -> iterations whose model no longer exists; see ``KeptModels``
        self.every = 0

    def attach(self, trainer: Trainer, *, every: int) -> None:
        """``every``: iterations between validations."""
        self.every = every
        for prefix, evaluator in self.evaluators.items():
            show_progress(evaluator, "validation of the teacher, batch" if prefix else "validation, batch")
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), self)
        trainer.add_event_handler(Events.EPOCH_STARTED, self.repeat_interrupted)
        trainer.add_event_handler(Events.COMPLETED, self)
        remember(trainer, validation=self)

    def __call__(self, trainer: Trainer) -> None:
        iteration = trainer.state.iteration
        if self.results and self.results[-1]["iteration"] == iteration:
            return  # the end of training coincides with a regular validation
        trainer.fire_event(ProdaEvents.BEFORE_WEIGHTS_USED)
        scores: dict[str, Any] = {}
        for prefix, evaluator in self.evaluators.items():
            evaluator.run(self.batches)
            if evaluator.should_terminate:
                return  # stopped during the validation; the resumed run repeats it
            metrics = evaluator.state.metrics
            if math.isnan(metrics["label_free"]):
                raise FloatingPointError(
                    f"the {'teacher' if prefix else 'network'} predicts NaN at iteration {iteration}; files saved "
                    f"before are kept: {REMEDY}"
                )
            found = {"label_free": metrics["label_free"], **named_scores(metrics["confusion"], self.class_names)}
            scores |= {f"{prefix}{name}": value for name, value in found.items()}
        self.results.append({"iteration": iteration, **scores})
        log.info("iteration %d: %s", iteration, self.describe(scores))
        trainer.state.scores = scores
        trainer.state.metrics.update(flatten(scores))
        trainer.fire_event(ProdaEvents.VALIDATED)

    def describe(self, scores: dict[str, Any]) -> str:
        """The scores of the last result in words, for the log."""
        labelled, parts = not math.isnan(scores["miou"]), []
        for prefix in self.evaluators:
            best = "" if prefix else f" (best {100 * self.best()['miou']:.2f} %)"
            miou = f"mIoU {100 * scores[f'{prefix}miou']:.2f} %{best}" if labelled else "no pixel with a label"
            name = prefix and "teacher: "
            parts.append(f"{name}{miou}, label-free score {scores[f'{prefix}label_free']:.4f}")
        return "; ".join(parts)

    def repeat_interrupted(self, trainer: Trainer) -> None:
        """Repeats the validation of the iteration that a resumed run starts from, if it was due but not finished."""
        if trainer.state.iteration > 0 and trainer.state.iteration % self.every == 0:
            self(trainer)

    def best(self, score: str = "miou") -> dict[str, Any]:
        """The validation with the highest score; the first one of several equals. Its model exists."""
        lost = self.lost.get(score, set())
        there = [result for result in self.results if result["iteration"] not in lost] or self.results
        return max(there, key=lambda result: -math.inf if math.isnan(result[score]) else result[score])

    def summary(self) -> dict[str, Any]:
        """The final scores, and the mean IoU and iteration of the best and of the label-free model."""
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
