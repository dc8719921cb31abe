"""The command that exports a network."""

import json
import re

import numpy as np
import pytest
import torch
from PIL import Image

from proda.cli.launch import main
from proda.data.labels import class_names
from proda.export import verification
from proda.run.job import read_summary
from proda.run.record import git_commit
from proda.trained_model import load_model
from tests import small_runs

EXPORT = str(small_runs.ROOT / "experiments/export.py")


def export(weights, output, *flags: str) -> int:
    return main([EXPORT, f"--weights={weights}", f"--output={output}", "--device=cpu", *flags])


def names(folder) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_the_code_of_the_page_runs_on_exported_files(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "last.pt").write_bytes(weights.read_bytes())
    assert export("last.pt", "runs/export", "--latency=False") == 0
    assert export("last.pt", "runs/export", "--latency=False", "--format=pt2") == 0
    out = capsys.readouterr().out
    assert out.count("verification against the network") == 2
    assert out.count("x 97: largest difference") == 2
    assert names(tmp_path / "runs/export") == {"config.json", "train.log", "summary.json", "last.onnx", "last.pt2"}

    picture = np.random.default_rng(0).integers(0, 256, (41, 67, 3), dtype=np.uint8)
    Image.fromarray(picture).save("photo.jpg")
    page = (small_runs.ROOT / "docs/predict.md").read_text()
    section = page.split("\n## Export\n")[1].split("\n## ")[0]
    in_onnx, in_pt2 = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    scope: dict = {}
    exec(in_onnx, scope)
    expected = load_model(weights, "cpu").predict("photo.jpg")
    assert np.array_equal(scope["labels"], expected) and len(np.unique(expected)) > 1
    assert scope["class_names"] == class_names(13)
    said = scope["metadata"]
    exec(in_pt2, scope)
    assert np.array_equal(scope["logits"].argmax(1)[0].numpy(), expected)
    assert scope["metadata"]["git_commit"] == said["git_commit"] == git_commit()
    assert json.loads(said["class_ids"]) == scope["metadata"]["class_ids"] == load_model(weights).class_ids.tolist()
    assert said.keys() == scope["metadata"].keys()
    listed = set(re.findall(r"`(\w+)`", "".join(re.findall(r"^\| (`.*?) \|", section.split("| metadata |")[1], re.M))))
    assert said.keys() <= listed  # the page describes every entry


def test_labels_in_half_precision_and_a_table_of_latencies(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no_compiler_of_this_name")
    assert export(weights, tmp_path, "--format=pt2", "--result=labels", "--fp16", "--height=24") == 0
    file = tmp_path / "before_labels_fp16.pt2"
    program = torch.export.load(file).module()
    assert all(p.dtype == torch.float16 for p in program.parameters() if p.is_floating_point())
    labels = program(torch.rand(2, 3, 37, 50))
    assert labels.dtype == torch.uint8 and labels.shape == (2, 37, 50)
    summary = read_summary(tmp_path)
    assert summary["file"] == str(file) and 0 <= summary["largest_difference"] < 0.05
    latency = summary["latency"]
    assert (latency["width"], latency["height"]) == (48, 24)
    assert latency["milliseconds"].pop("PyTorch, torch.compile, float16") is None
    assert set(latency["milliseconds"]) == {"PyTorch, eager", "PyTorch, eager, float16", f"torch.export, {file.name}"}
    assert all(value > 0 for value in latency["milliseconds"].values())
    out = capsys.readouterr().out
    assert "| runtime " in out and "not measured: torch.compile needs a C++ compiler" in out


def test_a_verification_that_fails_leaves_no_file(weights, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(verification.BOUNDS, torch.float32, -1.0)
    assert export(weights, tmp_path, "--format=pt2") == 2
    error = capsys.readouterr().err
    assert (
        error.startswith("error: the exported file differs from the network by more than -1") and "\n" not in error[:-1]
    )
    assert names(tmp_path) <= {"config.json", "train.log", ".lock"}


def test_what_cannot_be_exported_is_refused_before_anything_is_written(weights, tmp_path, monkeypatch, capsys):
    (tmp_path / "text.pt").write_text("no weights")
    output = tmp_path / "out"
    for file, message in (
        ("text.pt", "text.pt: cannot be read"),
        ("nowhere.pt", "nowhere.pt: no such file"),
    ):
        assert export(tmp_path / file, output) == 2
        assert message in capsys.readouterr().err
    assert export(weights, output, "--format=tflite") == 2
    assert "--format=tflite: expected one of 'onnx', 'pt2'" in capsys.readouterr().err
    assert export(weights, output, "--amp=fp16") == 2
    assert "--fp16 exports in float16" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    assert export(weights, output) == 2
    assert 'needs onnxruntime, which is not installed: pip install -e ".[export]"' in capsys.readouterr().err
    assert not output.exists()


@pytest.mark.slow  # compiles
def test_the_table_has_compiled_pytorch(weights, tmp_path):
    assert export(weights, tmp_path, "--format=pt2", "--height=24") == 0
    assert read_summary(tmp_path)["latency"]["milliseconds"]["PyTorch, torch.compile"] > 0
