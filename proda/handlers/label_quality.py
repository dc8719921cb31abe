"""Watches the pseudo labels of a stage: figures that need no ground truth, and those that use it where it exists.

docs/watching.md says what each figure means. The sums behind them are in ``proda.method.label_quality``.
"""

import copy
import logging
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Events
from torch import Tensor

from proda.data.augment import weak_view_of_labels
from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, Trainer, check_before_validation, remember
from proda.method import IGNORE
from proda.method.label_quality import agreement, certainty, contingency, corrections, movements, nearest_distances
from proda.method.metrics import scores
from proda.method.pseudo_labels import hard_labels
from proda.method.tensors import resize
from proda.method.views import WeakView, crop_soft_label_batch, downscale_labels, warp_to_strong_view

log = logging.getLogger("proda")

SAMPLES = 5  # watched iterations that a report covers: a single batch has too few pixels of rare classes
DIGITS = 6  # of the figures; more would be noise, and long in summary.json
KEPT_REPORTS = 199  # in summary.json; a checkpoint has all
PREDICTED = 0.001  # a class with a smaller share of the first labels is not watched for dying out
DEAD = 0.01  # a class has died out where less than this part of its share is left, in two reports in a row

# What a checkpoint has of LabelQuality.
STATE = ("start", "sums", "samples", "first", "renewed", "missing", "died_out", "history", "classes")
# Maps of classes whose pairs are counted.
PAIRS = (
    *(("before", "rectified"), ("student", "labels"), ("teacher", "labels"), ("student", "teacher")),
    *(("truth", name) for name in ("before", "rectified", "labels", "student", "teacher")),
)


class LabelQuality:
    """Reports how good the pseudo labels seem to be, and how good they are where there is ground truth.

    Looks at every ``every``-th iteration of ``denoise_trainer``, ``distill_trainer`` or ``online_trainer``, and reports
    the figures of ``SAMPLES`` of these together, summed over all processes. When ``LABELS_REPORTED`` fires,
    ``engine.state.label_quality`` maps the tags of TensorBoard to the new figures.
    ``engine.state.summary["label_quality"]`` has the last report and the history. Training is not changed. For
    other trainers it warns once and reports nothing.

    Args:
        prototypes: float32 [K, D], as another handler moves them.
        truth: name of a target image -> its ground truth, uint8 [H, W], or None; used for the report only.
        replay_as_released: ``as_released`` of the options of ``distill_trainer``.
    """

    def __init__(
        self,
        class_names: Sequence[str],
        *,
        prototypes: Tensor | None = None,
        truth: Callable[[str], np.ndarray | None] | None = None,
        replay_as_released: bool = False,
    ) -> None:
        self.class_names, self.prototypes, self.truth = list(class_names), prototypes, truth
        self.replay_as_released = replay_as_released
        self.start = torch.zeros(0)  # the prototypes before the first iteration
        self.unknown = False  # the trainer is of another kind
        self.sums: dict[str, Tensor] = {}  # over the iterations since the last report
        self.samples = 0  # number of these iterations
        # Pixels of each class in the first labels.
        self.first = torch.zeros(len(self.class_names) + 1, dtype=torch.int64)
        self.renewed = False  # the labels before rectification are not the first ones any more
        self.missing: dict[str, int] = {}  # class -> iteration of the report that it was missing from
        self.died_out: list[dict[str, Any]] = []
        self.history: list[dict[str, Any]] = []  # the figures of every report
        self.classes: dict[str, dict[str, float]] = {}  # class -> its figures in the last report

    def attach(self, trainer: Trainer, *, every: int) -> None:
        """``every``: iterations between those that are looked at; 0 for none."""
        check_before_validation(trainer, self)
        if every == 0:
            return
        trainer.add_event_handler(Events.STARTED, self.note_prototypes)
        trainer.add_event_handler(Events.ITERATION_COMPLETED(every=every), self)
        trainer.add_event_handler(ProdaEvents.BEFORE_LABELS_WRITTEN, self.note_renewal)
        trainer.add_event_handler(Events.COMPLETED, self.finish)
        remember(trainer, label_quality=self)
        trainer.state.label_charts = charts(self.class_names)

    @torch.no_grad()
    def __call__(self, engine: Trainer) -> None:
        """Adds the batch of this iteration to the sums, and reports when they cover ``SAMPLES`` iterations."""
        batch, out = engine.state.batch, engine.state.output
        kinds = {
            "rectified": self._denoising,
            "confident_fraction": self._online,
            "teacher_logits": self._distillation,
        }
        sums = next((kinds[name] for name in kinds if name in out), None)
        if sums is None:
            if not self.unknown:
                log.warning("no label reports: they know the output of stages 1 to 3 and of online self-training alone")
            self.unknown = True
            return
        part = sums(batch["target"], out)
        source = downscale_labels(batch["source"]["labels"])
        part["source"] = contingency(source, source, len(self.class_names)).diagonal()
        # Added up at once, so that every process has the sums of all and any can write the checkpoint.
        for name, value in _sum_over_processes(part).items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value
        self.samples += 1
        if self.samples == SAMPLES:
            self.report(engine)

    def report(self, engine: Trainer) -> None:
        """Turns the sums into figures, and starts new ones."""
        reference = self._first_labels()
        figures = {name: round(value, DIGITS) for name, value in self._figures() if not math.isnan(value)}
        self.classes = self._classes(reference)
        self.history.append({"iteration": engine.state.iteration, **figures})
        self._warn_of_missing_classes(engine.state.iteration)
        self.sums, self.samples = {}, 0
        engine.state.label_quality = tags(figures, self.classes)
        engine.fire_event(ProdaEvents.LABELS_REPORTED)

    def finish(self, engine: Trainer) -> None:
        """Puts the record into the summary. A last report of fewer iterations is only made if there is no other."""
        if self.samples and not self.history:
            self.report(engine)
        if self.history:
            engine.state.summary["label_quality"] = self.summary()

    def summary(self) -> dict[str, Any]:
        """The last figures, those of each class, the classes that died out, and at most ``KEPT_REPORTS`` reports."""
        step = -(-len(self.history) // KEPT_REPORTS)
        return {
            "last": self.history[-1],
            "classes": self.classes,
            "died_out": self.died_out,
            "history": self.history[::-1][::step][::-1],  # the last one is always among them
        }

    def note_prototypes(self, trainer: Trainer) -> None:
        if self.prototypes is not None and trainer.state.iteration == 0:
            self.start = self.prototypes.clone()

    def note_renewal(self) -> None:
        self.renewed = True

    # Sums of one batch

    def _denoising(self, target: dict[str, Any], out: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums of a batch of stage 1, on the weak view."""
        size = tuple(target["image"].shape[-2:])
        maps = {
            "before": out["pseudo_labels"],
            "rectified": hard_labels(out["rectified"]),  # without a threshold
            "labels": out["rectified_labels"],
            "student": _without_pasted(out["target_logits"].max(1).indices, out),
        }
        sure = {"before": out["soft_labels"], "labels": out["rectified"], "student": out["target_logits"].softmax(1)}
        if "full_logits" in out:
            sure["teacher"] = crop_soft_label_batch(out["full_logits"].float().softmax(1), target["weak_view"], size)
            maps["teacher"] = sure["teacher"].max(1).indices
        if self.truth is not None:
            truth = self._truth_of_weak_view(target)
            # Where crop_soft_labels samples the soft labels, to the nearest pixel.
            rows, columns = (
                torch.linspace(0, side - 1, length).round().long()
                for side, length in zip(size, maps["before"].shape[-2:], strict=True)
            )
            maps["truth"] = truth[:, rows][:, :, columns].to(maps["labels"].device)
        part = self._pairs(maps) | {f"certainty {name}": certainty(value) for name, value in sure.items()}
        if "prototype_weights" in out:
            part["certainty prototype weights"] = certainty(out["prototype_weights"])
        if self.truth is not None:
            part["corrections"] = corrections(maps["before"], maps["rectified"], maps["truth"], len(self.class_names))
        return part

    def _distillation(self, target: dict[str, Any], out: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums of a batch of stages 2 and 3, on the strong view without its fill color and cutout."""
        labels = out["pseudo_labels"]
        teacher = resize(out["teacher_logits"], labels.shape[-2:]).softmax(1)
        student = out["target_logits"].softmax(1)
        weak = torch.full_like(labels, IGNORE)
        if self.truth is not None:
            weak = downscale_labels(self._truth_of_weak_view(target)).to(labels.device)
        truth, valid = warp_to_strong_view(weak.unsqueeze(1), target["strong_view"], released=self.replay_as_released)
        valid = valid.squeeze(1)
        maps = {
            "labels": labels,
            "student": _without_pasted(student.max(1).indices.masked_fill(~valid, IGNORE), out),
            "teacher": _without_pasted(teacher.max(1).indices.masked_fill(~valid, IGNORE), out),
        }
        if self.truth is not None:
            maps["truth"] = truth.squeeze(1)
        sure = {"student": student, "teacher": teacher}
        return self._pairs(maps) | {f"certainty {name}": certainty(value, valid) for name, value in sure.items()}

    def _online(self, target: dict[str, Any], out: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums of a batch of online self-training, on the target crop; the labels are the teacher's."""
        student = out["target_logits"].softmax(1)
        maps = {
            "labels": out["pseudo_labels"],
            "teacher": out["pseudo_labels"],
            "student": _without_pasted(student.max(1).indices, out),
        }
        if self.truth is not None:
            maps["truth"] = self._truth_of_weak_view(target).to(student.device)
        maps = {name: downscale_labels(classes) for name, classes in maps.items()}
        return self._pairs(maps) | {"certainty student": certainty(downscale_labels(student))}

    def _pairs(self, maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {
            f"{one} {other}": contingency(maps[one], maps[other], len(self.class_names))
            for one, other in PAIRS
            if one in maps and other in maps
        }

    def _truth_of_weak_view(self, target: dict[str, Any]) -> Tensor:
        """Ground truth of the weak views, uint8 [B, H, W] on the CPU; ``IGNORE`` where it is not known."""
        assert self.truth is not None
        views = to_device(target["weak_view"], "cpu")
        result = torch.full((len(target["name"]), *target["image"].shape[-2:]), IGNORE, dtype=torch.uint8)
        for i, name in enumerate(target["name"]):
            labels = self.truth(name)
            if labels is not None:
                view = WeakView(*(field[i] for field in views))
                result[i] = weak_view_of_labels(torch.from_numpy(labels), view)
        return result

    # Figures of a report

    def _figures(self) -> Iterator[tuple[str, float]]:
        """Figures and their names, from the sums; NaN where one is undefined."""
        sums = self.sums
        if "before rectified" in sums:
            yield "changed", 1 - agreement(sums["before rectified"])
        yield "kept", (sums["student labels"][:-1, :-1].sum() / sums["student labels"][:-1].sum()).item()
        if "certainty prototype weights" in sums:
            pixels, largest, _ = sums["certainty prototype weights"].tolist()
            yield "prototype_weight", largest / pixels
        for name in ("before", "labels", "student", "teacher"):
            if f"certainty {name}" in sums:
                pixels, confidence, entropy = sums[f"certainty {name}"].tolist()
                yield f"confidence_{name}", confidence / pixels
                yield f"entropy_{name}", entropy / pixels
        for one, other in (("student", "labels"), ("teacher", "labels"), ("student", "teacher")):
            if f"{one} {other}" in sums:
                yield f"agreement_{one}_{other}", agreement(sums[f"{one} {other}"])
        if self.prototypes is not None:
            yield "prototypes_moved", movements(self.prototypes, self._start()).nanmean().item()
            yield "prototypes_nearest", nearest_distances(self.prototypes).nanmean().item()
        for name in ("before", "rectified", "labels", "student", "teacher"):
            if f"truth {name}" in sums:
                yield f"miou_{name}", scores(sums[f"truth {name}"][:-1, :-1]).mean_iou.item()
        if "corrections" in sums:
            changed, right, wrong = sums["corrections"].tolist()
            yield "changed_to_right", right / changed if changed else math.nan
            yield "changed_to_wrong", wrong / changed if changed else math.nan

    def _classes(self, reference: Tensor) -> dict[str, dict[str, float]]:
        """Class -> its shares of the pixels, and the way and the nearest neighbour of its prototype."""
        table = self.sums["student labels"]
        columns = {
            "first": _shares(reference),
            "labels": _shares(table[:-1].sum(0)),
            "student": _shares(table.sum(1)),
            "source": _shares(self.sums["source"]),
        }
        if self.prototypes is not None:
            columns["moved"] = movements(self.prototypes, self._start())
            columns["nearest"] = nearest_distances(self.prototypes)
        values = {name: column.tolist() for name, column in columns.items()}
        return {
            class_name: {name: round(column[k], DIGITS) for name, column in values.items() if not math.isnan(column[k])}
            for k, class_name in enumerate(self.class_names)
        }

    def _first_labels(self) -> Tensor:
        """Pixels of each class in the labels before rectification, or as the frozen teacher predicts, int64 [K + 1].

        Counted on the pixels of this report; after labels were renewed, in all reports before that.
        """
        table = self.sums.get("before rectified")
        counts = self.sums["student teacher"].sum(0) if table is None else table.sum(1)
        if not self.renewed:
            self.first = self.first + counts
        return self.first if self.renewed else counts

    def _start(self) -> Tensor:
        assert self.prototypes is not None
        return self.start.to(self.prototypes.device)

    def _warn_of_missing_classes(self, iteration: int) -> None:
        """Logs a warning, once for each class that the first labels contain and the last two reports do not."""
        before, self.missing = self.missing, {}
        gone = {entry["class"] for entry in self.died_out}
        for name, shares in self.classes.items():
            first = shares.get("first", 0.0)
            where = [place for place in ("labels", "student") if shares.get(place, 0.0) < DEAD * first]
            if first < PREDICTED or not where or name in gone:
                continue
            self.missing[name] = iteration
            if name in before:
                places = " and ".join("the student's predictions" if place == "student" else place for place in where)
                log.warning(
                    "iteration %d: the class %s has died out of %s: %.2f %% of the pixels in the first labels, "
                    "less than a hundredth of that since iteration %d",
                    iteration, name, places, 100 * first, before[name],
                )  # fmt: skip
                self.died_out.append({"class": name, "of": where, "iteration": before[name], "share_before": first})

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in STATE}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in STATE:
            setattr(self, name, copy.copy(state[name]))


def _without_pasted(classes: Tensor, out: Mapping[str, Tensor]) -> Tensor:
    """``classes`` [B, h, w], ``IGNORE`` where ``ClassMix`` has pasted the source: there is nothing to compare with."""
    return classes.masked_fill(out["pasted"], IGNORE) if "pasted" in out else classes


def tags(figures: Mapping[str, float], classes: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """The figures by their tags in TensorBoard, shares in percent; a tag begins with its group."""
    found = {}
    for name, value in figures.items():
        if name.startswith("prototypes_"):
            found[f"prototypes/mean/{name.removeprefix('prototypes_')}"] = value
        elif name.startswith("agreement_"):
            found[f"agreement_percent/{name.removeprefix('agreement_')}"] = 100 * value
        elif name.startswith(("miou_", "changed_to_")):
            found[f"truth_percent/{name}"] = 100 * value
        else:
            found[f"labels_percent/{name}"] = 100 * value
    for class_name, values in classes.items():
        for name, value in values.items():
            if name in ("moved", "nearest"):
                found[f"prototypes/{_plain(class_name)}/{name}"] = value
            else:
                found[f"classes_percent/{_plain(class_name)}/{name}"] = 100 * value
    return found


def charts(class_names: Sequence[str]) -> dict[str, dict[str, list]]:
    """Charts of several curves, for TensorBoard's page of custom scalars: group -> title -> curves by their tags."""
    titles = {
        "confidence (%)": "labels_percent/confidence_.*",
        "entropy (%)": "labels_percent/entropy_.*",
        "agreement (%)": "agreement_percent/.*",
        "mIoU on target training images (%)": "truth_percent/miou_.*",
        "changed pixels that become right or wrong (%)": "truth_percent/changed_to_.*",
    }
    return {
        "labels": {title: ["Multiline", [tag]] for title, tag in titles.items()},
        "share of the pixels (%)": {
            name: ["Multiline", [f"classes_percent/{re.escape(_plain(name))}/.*"]] for name in class_names
        },
        "prototypes, in distances of features": {
            name: ["Multiline", [f"prototypes/{re.escape(_plain(name))}/.*"]] for name in ("mean", *class_names)
        },
    }


def _plain(name: str) -> str:
    """A name as it may stand in a tag; the charts would not find what tensorboardX replaces."""
    return re.sub(r"[^-\w.]", "_", name)


def _shares(counts: Tensor) -> Tensor:
    """The share of each class in the pixels [K + 1] that have a class, float64 [K]."""
    return counts[:-1].double() / counts[:-1].sum()


def _sum_over_processes(part: dict[str, Tensor]) -> dict[str, Tensor]:
    """The sums of all processes on the CPU, in one exchange. float64 holds counts of pixels exactly."""
    flat = torch.cat([value.flatten().double() for value in part.values()])
    if idist.get_world_size() > 1:
        flat = idist.all_reduce(flat)
    pieces = flat.cpu().split([value.numel() for value in part.values()])
    return {
        name: piece.reshape(value.shape).to(value.dtype)
        for (name, value), piece in zip(part.items(), pieces, strict=True)
    }
