"""The scores of ``evaluate`` are those of the official Cityscapes evaluation on the files that it writes."""

import math

import pytest

from proda.cli.launch import main
from proda.data.labels import class_names
from proda.models.build import build_network
from proda.models.weights import save_weights
from proda.run.job import read_summary
from proda.streets import write_streets

official = pytest.importorskip("cityscapesscripts.evaluation.evalPixelLevelSemanticLabeling")


def test_predictions_score_the_same_in_the_official_evaluation(tmp_path):
    write_streets(tmp_path / "data", num_train=1, num_val=4, size=(192, 96))
    network = build_network("tiny", 19)
    network.layer5.head[1].weight.data.mul_(30)  # untrained, and yet it predicts several classes
    save_weights(tmp_path / "weights.pt", network, class_names=class_names(19))
    flags = {
        "weights": tmp_path / "weights.pt",
        "data_root": tmp_path / "data",
        "backbone": "tiny",
        "predictions": tmp_path / "predictions",
        "output": tmp_path / "run",
        "device": "cpu",
        "num_workers": 0,
    }
    assert main(["experiments/evaluate.py", *(f"--{name}={value}" for name, value in flags.items())]) == 0
    summary = read_summary(tmp_path / "run")

    labels = sorted((tmp_path / "data/cityscapes/gtFine/val").rglob("*_gtFine_labelIds.png"))
    names = [path.name.removesuffix("_gtFine_labelIds.png") for path in labels]
    predictions = [str(tmp_path / "predictions" / f"{name}_pred_labelIds.png") for name in names]
    official.args.evalInstLevelScore, official.args.quiet, official.args.JSONOutput = False, True, False
    found = official.evaluateImgLists(predictions, list(map(str, labels)), official.args)

    scores = {name.replace(" ", "_"): float(score) for name, score in found["classScores"].items()}
    ours = {name: float("nan") if iou is None else iou for name, iou in summary["iou"].items()}
    assert ours.keys() <= scores.keys()
    assert all(math.isnan(score) for name, score in scores.items() if name not in ours)  # those that do not count
    assert {name: scores[name] for name in ours} == pytest.approx(ours, rel=0, abs=1e-9, nan_ok=True)
    assert found["averageScoreClasses"] == pytest.approx(summary["miou"], rel=0, abs=1e-9)
    assert len([iou for iou in ours.values() if iou > 0]) >= 3  # or there was nothing to compare
