"""The ablation on the smallest Streets, and its report."""

import json

import pytest

from experiments import ablation
from proda.experiment import domains
from proda.experiment.launch import main
from proda.experiment.tables import compare, comparison_page
from tests import small_runs


def read(path) -> dict:
    return json.loads(path.read_text())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_runs.write_data(tmp_path_factory.mktemp("streets"), num_val=2)


def page(found: dict) -> str:
    titles = {row: title for row, (title, *_) in ablation.ROWS.items()}
    return comparison_page(found, titles, control=ablation.CONTROL, note=ablation.NOTE)


def command(data, output, *flags: str) -> int:
    common = [f"--data_root={data}", f"--output={output}", "--scale=0.007", "--device=cpu"]
    return main(["experiments/ablation.py", *common, *flags])


def test_it_runs_every_row_and_continues_after_an_interruption(data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(domains, "write_streets", lambda *_, **__: None)  # the tiny Streets are there
    assert command(data, tmp_path, "--seeds=1") == 0
    rows = read(tmp_path / "summary.json")["rows"]
    assert list(rows) == list(ablation.ROWS)
    table = (tmp_path / "ablation.md").read_text()
    assert all(f"| {title} " in table for title, *_ in ablation.ROWS.values())
    configs = {row: read(tmp_path / "seed_0" / row / "config.json") for row in rows}
    assert {name: configs["self_training"][name] for name in ablation.CONVENTIONAL} == ablation.CONVENTIONAL
    assert configs["no_target_loss"]["ce_weight"] == configs["no_target_loss"]["rce_weight"] == 0
    assert configs["symmetric"]["rce_weight"] > 0 and not configs["symmetric"]["rectification"]
    assert configs["fixed_prototypes"]["rectification"] and configs["fixed_prototypes"]["prototype_momentum"] == 0
    assert configs["moving_prototypes"]["prototype_momentum"] > 0 == configs["moving_prototypes"]["structure_weight"]
    assert configs["structure"]["structure_weight"] > 0
    assert configs["distillation"]["teacher"] == str(tmp_path / "seed_0/structure/last.pt")

    (tmp_path / "seed_0/second_distillation/summary.json").unlink()  # as if it had been stopped in the last row
    capsys.readouterr()
    assert command(data, tmp_path, "--seeds=1") == 0
    out = capsys.readouterr().out
    assert out.count("up to date, skipped") == len(rows) - 1 and "resumed from" in out
    assert read(tmp_path / "summary.json")["rows"] == rows

    assert command(data, tmp_path, "--seeds=1", "--scale=0.01") == 2
    error = capsys.readouterr().err
    assert "source_only holds a run with different inputs (--iterations was " in error and "--overwrite" in error


def test_a_row_that_falls_is_reported_with_its_seeds():
    iou = {"road": 0.5, "rider": None}
    scores = {"source_only": [0.3, 0.4], "warmup": [0.4, 0.5], "self_training": [0.45, 0.43]}
    scores |= {ablation.CONTROL: [0.9, 0.9]}  # above all others, but not compared with any
    runs = {row: [{"miou": s, "iou": iou} for s in scores.get(row, [])] for row in ablation.ROWS}
    found = compare(runs, control=ablation.CONTROL)
    assert found["rows"]["warmup"]["miou"] == pytest.approx(0.45)
    assert found["rows"]["warmup"]["deviation"] == pytest.approx(0.05 * 2**0.5)
    assert found["rows"]["warmup"]["iou"] == {"road": 0.5}
    (fall,) = found["other_order_than_paper"]
    assert (fall["row"], fall["rising"], fall["seeds"]) == ("self_training", 1, 2)
    assert fall["change"] == pytest.approx(-0.01)
    text = page(found)
    assert "* conventional self-training: -1.0 compared with warm-up, better in 1 of 2 seeds" in text
    assert "45.0 |       7.1 |" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| conventional self-training")]
    assert "-1.0" in row


def test_rows_that_rise_are_in_the_papers_order():
    runs = {row: [{"miou": k / 10, "iou": {}}] for k, row in enumerate(ablation.ROWS)}
    assert "Each row improves on the one above, as in the paper." in page(compare(runs, control=ablation.CONTROL))
