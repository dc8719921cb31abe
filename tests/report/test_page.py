"""The report as a reader gets it."""

import base64
import io
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from proda.cli.launch import main
from proda.data.loaders import evaluation_loader
from proda.data.own_data import Description
from proda.data.samples import EvaluationSamples
from proda.engines.inference import segmentation_evaluator
from proda.engines.optimization import Precision
from proda.models.weights import load_network
from proda.report.curves import Point
from proda.report.page import _jpeg, _png, report_page, write_report
from proda.report.predictions import look_at_predictions, open_data
from proda.report.pseudo_labels import label_sentences
from proda.report.runs import Group, Run, read_group
from proda.report.texts import points
from tests import small_runs

VOID = {"meta", "img", "br", "path", "circle", "polyline"}
CPU = torch.device("cpu")
FEW = ["--worst=1", "--num_workers=0"]


class Page(HTMLParser):
    """Text and links of a page; an AssertionError if elements are not nested."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.resources: list[str] = []
        self.tags: list[str] = []
        self.feed(html)
        self.close()
        assert not self.open, self.open
        self.text = re.sub(r"\s+", " ", " ".join(self.texts))

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.resources += [value for name, value in attributes if name in ("src", "href")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert tag in VOID, tag

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.getpos())

    def handle_data(self, data):
        if not self.open or self.open[-1] not in ("style", "script"):
            self.texts.append(data)


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Source-only and two runs of stage 1, of two iterations each."""
    folder, data = tmp_path_factory.mktemp("runs"), small_runs.write_data(tmp_path_factory.mktemp("data"))
    first = small_runs.write_weights(folder / "first.pt")
    more = {"iterations": 2, "checkpoint_every": 9}
    small_runs.train("source_only", data, first, folder / "stages/source_only", **more)
    before = folder / "stages/source_only/last.pt"
    small_runs.train("stage1_denoise", data, before, folder / "stages/stage1_denoise", **more)
    small_runs.train("stage1_denoise", data, before, folder / "other", temperature=2.5, label_report_every=0, **more)
    return folder


def read(file: Path) -> tuple[str, Page]:
    html = file.read_text(encoding="utf-8")
    return html, Page(html)


def summary(folder: Path) -> dict:
    return json.loads((folder / "summary.json").read_text())


def test_the_report_on_stages_answers_every_question(runs, capsys):
    assert main(["experiments/report.py", str(runs / "stages"), "--num_workers=0"]) == 0
    file = runs / "stages/report.html"
    assert capsys.readouterr().out.strip() == str(file)
    html, page = read(file)
    assert file.stat().st_size < 5_000_000
    assert "http" not in html and "url(" not in html and "script" not in page.tags
    assert all(resource.startswith(("#", "data:image/")) for resource in page.resources)
    before, stage = (summary(runs / "stages" / name) for name in ("source_only", "stage1_denoise"))
    gain = points(stage["miou"] - before["miou"])
    assert f"Stage 1 ends at {100 * stage['miou']:.1f} % mIoU over 13 classes" in page.text
    assert f"stage 1 {100 * stage['miou']:.1f} {gain} over source only" in page.text
    for name, iou in stage["iou"].items():
        assert name in page.text and (iou is None or f"{100 * iou:.1f}" in page.text)
    assert page.text.count("of the pixels right") == 4 and page.tags.count("img") == 16
    assert "last.pt of stage 1 on 5 of 5 validation images: mIoU" in page.text and "as in the table above" in page.text
    assert "Mean of the last" in page.text or "In the last report" in page.text
    assert "mIoU against ground truth (%)" in page.text and "Prototypes: mean distance of features" in page.text
    assert "Trained without pseudo labels: source only." in page.text
    assert "Losses" in page.text and "Learning rate, student" in page.text and "Iterations per second" in page.text
    assert "Memory was not recorded" in page.text
    assert "source 8 images" in page.text and "validation 5 images" in page.text
    config = json.loads((runs / "stages/stage1_denoise/config.json").read_text())
    assert "flag value default" in page.text and "--iterations 2 0" in page.text
    assert config["run"]["torch"] in page.text and config["run"]["git_commit"] in page.text
    assert f"--config={runs / 'stages/stage1_denoise/config.json'}" in page.text


def test_two_runs_side_by_side_show_what_differs(runs):
    one, other = runs / "stages/stage1_denoise", runs / "other"
    assert main(["experiments/report.py", f"--runs={one},{other}", f"--output={runs / 'both'}", *FEW]) == 0
    _, page = read(runs / "both/report.html")
    assert "What differs? setting stage1_denoise other" in page.text
    differing = page.text.split("What differs?")[1].split("Which classes?")[0]
    assert "--temperature 1.0 2.5" in differing and "--lr" not in differing and "--seed" not in differing
    scores = [summary(folder)["miou"] for folder in (one, other)]
    difference = points(scores[1] - scores[0])
    assert f"mIoU: stage1_denoise has {100 * scores[0]:.1f} %" in page.text
    assert f"and other has {100 * scores[1]:.1f} % ({difference} points)." in page.text
    assert page.tags.count("img") == 2 * 4
    assert "Not recorded for other: figures about labels need --label_report_every above 0" in page.text


def test_predictions_are_those_of_the_last_validation_at_its_scale(runs):
    run = read_group(runs / "other").result
    data = open_data(run)
    seen = look_at_predictions(run, data, CPU, worst=2)
    assert seen.miou == pytest.approx(run.summary["miou"], abs=1e-6)
    assert (seen.images, seen.available, len(seen.worst)) == (5, 5, 2)
    assert seen.worst[0].miou <= seen.worst[1].miou
    every = look_at_predictions(run, data, CPU, worst=5)
    assert [result.name for result in every.worst[:2]] == [result.name for result in seen.worst]
    assert torch.equal(sum(result.confusion for result in every.worst), every.confusion)
    some = look_at_predictions(run, data, CPU, worst=5, max_images=2)
    assert some.images == 2 and len(some.worst) == 2
    run.config["val_scale"] = 0.5
    evaluator = segmentation_evaluator(load_network(run.folder / "last.pt"), Precision(CPU), scales=(0.5,))
    batches = evaluation_loader(EvaluationSamples(data.validation), batch_size=1, num_workers=0)
    halved = evaluator.run(batches).metrics["confusion"]
    assert torch.equal(look_at_predictions(run, data, CPU).confusion, halved)
    assert not torch.equal(seen.confusion, halved)


def test_data_of_a_run_are_opened_without_waiting_for_other_processes(runs, tmp_path, monkeypatch):
    run, data = read_group(runs / "other").result, Path(read_group(runs / "other").result.config["data_root"])
    photos = tmp_path / "photos.toml"
    photos.write_text(f'[train]\nimages = "{data}/cityscapes/leftImg8bit/train"\n')
    run.config["target"] = str(photos)
    monkeypatch.setattr(Description, "has_videos", lambda *_: True)
    monkeypatch.setattr("proda.run.domains.idist.one_rank_first", lambda: pytest.fail("waits for the others"))
    assert len(open_data(run).open("target", "train", with_labels=False)) == 8


def test_what_is_not_there_is_said_in_a_sentence(runs, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(runs / "other", folder)
    for file in [*folder.glob("events.out.tfevents.*"), folder / "summary.json"]:
        file.unlink()
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "data_root": str(tmp_path / "gone"), "run": {}}))
    assert main(["experiments/report.py", str(folder), "--device=cpu"]) == 0
    _, page = read(folder / "report.html")
    for sentence in (
        *("Old has no scores yet.", "The IoU of the classes is not known", "Not shown: no folder"),
        *("Not recorded for old: figures about labels", "The run has not finished", "The command was not recorded."),
        *("Losses, learning rates and throughput are not known", "validation not known, since the data cannot be read"),
        "The flags cannot be compared with a preset",
    ):
        assert sentence in page.text, sentence
    assert not list(tmp_path.glob("gone*"))


def test_a_report_on_a_folder_whose_name_is_not_utf8_is_utf8(runs, tmp_path):
    folder = tmp_path / "old\udcff"
    shutil.copytree(runs / "other", folder)
    html = write_report([folder], folder / "report.html", device=CPU, worst=0).read_text(encoding="utf-8")
    assert f"{tmp_path}/old\\udcff" in html


def test_data_that_have_changed_are_noticed(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs / "other", folder)
    (folder / "summary.json").write_text(json.dumps({**summary(folder), "miou": 0.75}))
    data = small_runs.write_data(tmp_path / "data", num_val=3)
    flags = [f"--data_root={data}", f"--output={tmp_path / 'here'}", *FEW]
    assert main(["experiments/report.py", str(folder), *flags]) == 0
    _, page = read(tmp_path / "here/report.html")
    assert "validation 3 images; not the files of the run" in page.text
    assert "source 8 images target" in page.text  # drawn alike
    assert "while the run recorded 75.0 %" in page.text and not (folder / "report.html").exists()


HOSTILE = '<script>alert("x")</script>&amp;'


def run_of(folder: Path, **summary) -> Run:
    config = {"weights": HOSTILE, "preset": HOSTILE, "label_report_every": 1, "rectification": True, "seed": 0}
    provenance = {"command": ["run.py", HOSTILE], "git_commit": HOSTILE, "torch": HOSTILE, "experiment": HOSTILE}
    curves = {
        tag: [Point(1, 50.0, 0.0), Point(2, 40.0, 1.0)]
        for tag in ("labels_percent/kept", f"train/loss_{HOSTILE}", "train/loss", f"{HOSTILE}/lr/group_0")
    }
    return Run(folder, config, provenance, summary, True, curves)


def test_names_from_data_and_flags_are_escaped(tmp_path):
    folder = tmp_path / HOSTILE.replace("/", "\\")
    classes = {HOSTILE: {"first": 0.5, "labels": 0.5, "student": 0.5, "source": 0.5}}
    quality = {"classes": classes, "died_out": [{"class": HOSTILE}]}
    groups = [
        Group(folder, [run_of(folder, miou=0.5, iou={HOSTILE: 0.5, "b": None}, label_quality=quality)]),
        Group(tmp_path, [run_of(tmp_path, miou=0.6, iou={HOSTILE: 0.6, "b": 0.1})]),
    ]
    for chosen in (groups[:1], groups):
        html = report_page(chosen, device=CPU)
        page = Page(html)
        assert "script" not in page.tags and html.count("<script") == 0
        assert page.text.count(HOSTILE) >= 5
        assert "Died out of the labels or of the predictions" in page.text


def test_synthia_has_13_classes_beside_16_and_own_photographs_may_have_no_score(tmp_path):
    iou = {f"class {k}": 0.5 for k in range(16)}
    page = Page(report_page([Group(tmp_path, [run_of(tmp_path, miou=0.5, miou_13=0.625, iou=iou)])], device=CPU))
    assert "over 16 classes" in page.text and "62.5 % mIoU over 13 classes" in page.text
    assert "mIoU of 13 classes label-free score" in page.text and "50.0 62.5" in page.text
    unknown = run_of(tmp_path, miou=None, best_miou=None, label_free=1.25, iou=dict.fromkeys(iou))
    page = Page(report_page([Group(tmp_path, [unknown])], device=CPU))
    assert "has no mIoU, because the validation images have no labels; its label-free score is 1.25." in page.text


def test_stages_of_two_folders_are_compared_by_their_names(tmp_path):
    def group(name: str, **config) -> Group:
        folders = [tmp_path / name / stage for stage in ("warmup", "stage1_denoise")]
        runs = [run_of(folder, miou=0.5, iou={"road": 0.5}) for folder in folders]
        for run in runs:
            run.config.update(config, weights=str(tmp_path / name / "warmup/last.pt"))
        return Group(tmp_path / name, runs)

    page = Page(report_page([group("a", lr=0.1), group("b", lr=0.2)], device=CPU))
    differing = page.text.split("What differs?")[1].split("Which classes?")[0]
    assert " ".join(differing.split()) == "warm-up setting a b --lr 0.1 0.2 stage 1 setting a b --lr 0.1 0.2"
    assert "mIoU: a (stage 1) has 50.0 % and b (stage 1) has 50.0 % (0.0 points)." in page.text


def test_pictures_are_made_smaller_than_large_images():
    noise = np.random.default_rng(0).integers(0, 256, (1024, 2048, 3), dtype=np.uint8)
    for url in (_jpeg(noise), _png(noise)):
        with Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))) as picture:
            assert picture.size == (512, 256)
        assert len(url) < 250_000  # sixteen of them stay below 5 MB whatever they show


def test_labels_without_ground_truth_and_labels_that_get_worse(tmp_path):
    def curve(*values: float) -> list[Point]:
        return [Point(step, value, 0.0) for step, value in enumerate(values)]

    run = run_of(tmp_path)
    assert "have no ground truth" in label_sentences(run)[0]
    assert "45.0 % of the pixels keep a label." not in label_sentences(run)  # of the last report alone
    assert "40.0 % of the pixels keep a label." in label_sentences(run)
    run.curves["truth_percent/miou_labels"] = curve(60, 49)
    assert label_sentences(run)[0] == "In the last report: the labels that the student is trained on reach 49.0 % mIoU."
    run.curves["truth_percent/miou_before"] = curve(50, 50)
    for after, verdict in ((48, "worse"), (50.25, "hardly changes"), (52, "better")):
        run.curves["truth_percent/miou_rectified"] = curve(60, after)
        first, *others = label_sentences(run)
        assert (
            verdict in first and f"mIoU 50.0 % before, {after:.1f} % after it ({points(after / 100 - 0.5)} p" in first
        )
        # With a threshold, the labels that are left are compared with nothing: the pixels differ.
        assert "40.0 % of the pixels keep a label; these labels reach 49.0 % mIoU." in others
    run.config["rectification"] = False
    assert label_sentences(run)[0] == "The labels are not rectified in this run. In the last report: mIoU 52.0 %."


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--runs: no run given"),
        (["nowhere"], "nowhere: no such folder"),
        (["a", "--runs=b"], "'a' and --runs=b"),
        (["a", "--amp=bf16"], "--amp has no effect"),
        (["a", "--worst=-1"], "--worst=-1: expected"),
    ],
)
def test_mistakes_are_one_line(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["experiments/report.py", *arguments]) == 2
    assert words in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
