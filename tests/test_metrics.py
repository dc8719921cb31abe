"""Scores of a run."""

import math
from pathlib import Path

import ignite.distributed as idist
import pytest
import torch
from ignite.exceptions import NotComputableError
from ignite.metrics import ConfusionMatrix

from proda.data.labels import class_names
from proda.method import IGNORE
from proda.metrics import LabelConfusion, LabelFreeScore, flatten, named_scores

CLASSES = ["road", "sky", "train"]
CONFUSION = torch.tensor([[8, 0, 0], [2, 8, 0], [0, 0, 0]], dtype=torch.float64)  # the last class is absent


def test_an_absent_class_is_no_zero():
    result = named_scores(CONFUSION, CLASSES)
    assert result["iou"]["road"] == 8 / 10 and result["iou"]["sky"] == 8 / 10
    assert math.isnan(result["iou"]["train"])
    assert result["miou"] == pytest.approx(0.8)


def test_sixteen_classes_have_a_thirteen_class_score_beside_them():
    matrix = torch.eye(16, dtype=torch.float64)
    matrix[3, 3], matrix[3, 0] = 0, 1  # wall is wrong: it is not among the thirteen, but takes half of road
    result = named_scores(matrix, class_names(16))
    assert result["miou"] == pytest.approx((14 + 0.5) / 16)
    assert result["miou_13"] == pytest.approx((12 + 0.5) / 13)
    assert "miou_13" not in named_scores(torch.eye(3), CLASSES)


def test_flat_scores_leave_out_what_is_undefined():
    flat = flatten({"miou": 0.5, "label_free": math.nan, "iou": {"road": 0.0, "train": math.nan}})
    assert flat == {"miou": 0.5, "iou/road": 0.0}


def test_the_confusion_of_label_maps_is_ignites_of_their_logits():
    logits, labels = torch.randn(3, 4, 5, 7), torch.randint(0, 4, (3, 5, 7), dtype=torch.uint8)
    labels[:, 0], labels[:, 1] = IGNORE, 4  # neither is one of the classes
    ours, ignites = LabelConfusion(4), ConfusionMatrix(4)
    for _ in range(2):
        for image, truth in zip(logits.split(2), labels.split(2), strict=True):
            ours.update((image.max(1).indices, truth))
            ignites.update((image, truth.long()))
        assert ours.compute().sum() == 3 * 3 * 7
        assert torch.equal(ours.compute(), ignites.compute())
        ours.reset(), ignites.reset()  # and a second run counts from zero
        ours.update((labels, torch.full_like(labels, IGNORE)))
        assert not ours.compute().any()
        ours.reset()
    with pytest.raises(NotComputableError):
        ours.compute()


def test_the_label_free_score_is_that_of_all_images_together_however_they_are_batched():
    logits = torch.randn(5, 3, 2, 4)
    found = []
    for sizes in ([5], [1, 4], [2, 2, 1]):
        score = LabelFreeScore()
        for part in logits.split(sizes):
            score.update((part, None))
        found.append(score.compute())
    probabilities = logits.double().softmax(1)
    mean, entropy = probabilities.mean((0, 2, 3)), -(probabilities * probabilities.log()).sum(1).mean()
    assert found == pytest.approx([(-(mean * mean.log()).sum() - entropy).item()] * 3, abs=1e-6)


def _label_free(rank: int, folder: Path) -> None:
    score = LabelFreeScore()
    if rank == 0:
        score.update((torch.arange(24.0).reshape(1, 3, 2, 4).sin(), None))
    (folder / f"{rank}.txt").write_text(repr(score.compute()))


def test_the_label_free_score_of_processes_of_which_one_has_no_image(tmp_path):
    _label_free(0, tmp_path)
    alone = (tmp_path / "0.txt").read_text()
    idist.spawn("gloo", _label_free, args=(tmp_path,), nproc_per_node=2, start_method="spawn")
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)] == [alone] * 2
