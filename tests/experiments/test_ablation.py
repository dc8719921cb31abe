"""The ablation: its rows, and a table of two seeds on the smallest Streets that two commands run in parts."""

import json
import re
import shutil
from contextlib import contextmanager
from statistics import fmean

import pytest

from experiments import ablation, pipeline
from proda.cli.launch import load_experiment, main
from proda.run import domains
from proda.run.record import weights_flags
from proda.settings.reading import make_config
from proda.studies.results import ResultTable, read_results
from proda.studies.rows import ROWS_OF, TABLES
from tests import small_runs


def config(**flags):
    return make_config(ablation.Config, {"output": "o"} | flags, ablation.PRESETS)


def resolved(row: str, **flags):
    """The settings of the run of a row, seed 0."""
    module = load_experiment(ablation.experiment_file(config(**flags), row))
    return make_config(module.Config, ablation.flags(config(**flags), row, 0), module.PRESETS)


@pytest.mark.parametrize("row", ROWS_OF["streets"])
@pytest.mark.parametrize("preset", ROWS_OF)
def test_every_row_has_flags_of_its_experiment_and_runs_after_those_it_builds_on(preset, row):
    found = resolved(row, preset=preset)
    assert found.output == f"o/seed_0/{row}" and found.preset == preset
    assert all(path.startswith("o/seed_0/") for path in weights_flags(found).values())  # none of the preset
    tables = (config(preset=preset, table=name) for name in TABLES)
    rows = next(rows for rows in map(ablation.needed_rows, tables) if row in rows)
    for flag, model in ROWS_OF[preset][row].start.items():
        assert rows.index(model.split("/")[0]) < rows.index(row)
        assert getattr(found, flag) == f"o/seed_0/{model}"


def test_the_parts_differ_in_what_their_names_say():
    control, conventional, symmetric = map(resolved, ("control", "self_training", "symmetric"))
    assert control.ce_weight == control.rce_weight == control.mrkld_weight == 0 and not control.needs_teacher
    assert conventional.ce_weight > 0 == conventional.rce_weight == conventional.mrkld_weight
    assert conventional.threshold > 0 and not conventional.needs_teacher
    assert symmetric.rce_weight > 0 < symmetric.mrkld_weight and not symmetric.needs_teacher
    fixed, moving, structure = map(resolved, ("fixed_prototypes", "moving_prototypes", "structure"))
    assert fixed.rectification and fixed.prototype_momentum == fixed.structure_weight == 0
    assert moving.prototype_momentum > 0 == moving.structure_weight < structure.structure_weight
    source, oracle = resolved("source_only"), resolved("oracle")
    assert (source.train_on, oracle.train_on) == ("source", "target") and source.iterations == oracle.iterations


def test_the_source_may_be_trained_for_longer():
    def iterations(row: str, **flags) -> int:
        return resolved(row, **flags).iterations

    for row in ("source_only", "oracle"):
        assert iterations(row, source_length=2.0) == 2 * iterations(row)
        assert iterations(row, source_length=2.0, scale=0.5) == iterations(row)
    assert resolved("source_only", source_length=2.0).val_every == resolved("source_only").val_every
    assert iterations("warmup", source_length=2.0) == iterations("warmup")
    assert "--source_length=2.0" in ablation.command(config(source_length=2.0), [0])
    assert "--source_length" not in ablation.command(config(), [0])


@pytest.mark.parametrize("preset", ROWS_OF)
def test_the_pipeline_has_the_same_runs(preset):
    rows = dict(zip(pipeline.DEMONSTRATION_STAGES, TABLES["quickstart"].rows, strict=True))
    quickstart = make_config(pipeline.Config, {"preset": preset, "output": "o"}, pipeline.PRESETS)
    for stage, row in rows.items():
        module = load_experiment(pipeline.experiment_file(stage))
        found = vars(make_config(module.Config, pipeline.flags(quickstart, stage), module.PRESETS))
        other = vars(resolved(row, preset=preset))
        files = {name for run in (found, other) for name in run if str(run[name]).startswith("o/")}
        assert {n: v for n, v in found.items() if n not in files} == {n: v for n, v in other.items() if n not in files}
        assert pipeline.experiment_file(stage) == ablation.experiment_file(config(), row)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return small_runs.write_data(tmp_path_factory.mktemp("streets"), num_val=2)


@contextmanager
def few_rows():
    """Two rows of the table of parts, on a tiny Streets that is there."""
    rows = {row: TABLES["parts"].rows[row] for row in ("source_only", "warmup")}
    differences = [pair for pair in TABLES["quickstart"].differences if pair.row == "warmup"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(domains, "write_streets", lambda *_, **__: None)
        patch.setattr(ablation, "TABLES", {**TABLES, "parts": ResultTable(rows, differences)})
        yield


def command(data, output, *flags: str) -> int:
    common = [f"--data_root={data}", f"--output={output}", "--scale=0.003", "--device=cpu"]
    return main(["experiments/ablation.py", *common, *flags])


@pytest.fixture(scope="module")
def made(data, tmp_path_factory):
    """Both rows of seeds 0 and 1, made by two commands."""
    folder = tmp_path_factory.mktemp("ablation")
    with few_rows():
        assert command(data, folder, "--seeds=1", "--seed=1") == 0
        assert read_results(folder / "ablation.json").seeds == [1]
        assert command(data, folder, "--seeds=1") == 0
    return folder


@pytest.fixture
def done(made, tmp_path):
    with few_rows():
        yield shutil.copytree(made, tmp_path / "copy")


def test_seeds_may_run_in_parts_and_the_results_cover_those_that_are_complete(done, data, capsys):
    found = read_results(done / "ablation.json")
    assert found.seeds == [0, 1] and found.table == "parts"
    scores = {
        row: [json.loads((done / f"seed_{seed}/{row}/summary.json").read_text())["miou"] for seed in (0, 1)]
        for row in ("source_only", "warmup")
    }
    assert found.rows == scores
    for row, classes in found.iou.items():
        known = [[score for score in seed if score is not None] for seed in zip(*classes.values(), strict=True)]
        assert len(classes) == 13 and list(map(fmean, known)) == pytest.approx(scores[row])
    assert found.command == "python run.py experiments/ablation.py --scale=0.003 --seeds=2"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", found.date) and re.fullmatch(r"[0-9a-f]{40}|unknown.*", found.commit)
    page = (done / "ablation.md").read_text()
    assert "| warm-up" in page and "95 % interval" in page and "Not complete" not in page

    (done / "seed_1/warmup/summary.json").unlink()  # as if it had been stopped in the last row
    assert command(data, done, "--seeds=1") == 0
    said = (done / "ablation.md").read_text()
    assert "Not complete yet, with these settings:\n\n* seed 1, 1 of 2 rows: source_only" in said
    assert read_results(done / "ablation.json").seeds == [0] and said in capsys.readouterr().out
    assert command(data, done, "--dry", "--seeds=2") == 0
    out = capsys.readouterr().out
    assert out.count("done  ") == 3 and "3 of 4 runs are done" in out and out.count("to run  python run.py ") == 1
    assert command(data, done, "--seeds=2") == 0
    out = capsys.readouterr().out
    assert out.count("up to date, skipped") == 3 and "resumed from" in out
    assert read_results(done / "ablation.json").rows == scores

    assert command(data, done, "--seeds=1", "--scale=0.005") == 2
    error = capsys.readouterr().err
    assert "source_only holds a run with different inputs (--iterations was " in error and "--overwrite" in error
    assert read_results(done / "ablation.json").rows == scores


def test_a_run_that_finishes_while_results_are_written_is_in_them(done, data, monkeypatch):
    late, whole, collected = done / "seed_1/warmup/summary.json", read_results(done / "ablation.json"), []
    text, before = late.read_text(), ablation.collect
    late.unlink()

    def finishing(config):
        collected.append(before(config))
        late.write_text(text)
        return collected[-1]

    monkeypatch.setattr(ablation, "collect", finishing)
    flags = {"output": str(done), "data_root": str(data), "scale": 0.003, "device": "cpu"}
    report = ablation.write_report(config(**flags))
    assert collected[0][0].seeds == [0] and report["results"] == whole == read_results(done / "ablation.json")


def test_flags_of_data_and_machine_reach_every_run():
    given = {"compile": True, "deterministic": True, "skip_bad": "bad.txt", "labelled_only": True, "target": "my.toml"}
    for row in ablation.needed_rows(config(table="quickstart")):
        found = resolved(row, **given)
        assert {name: getattr(found, name) for name in given} == given


def test_a_dry_run_writes_nothing(tmp_path, capsys):
    assert (
        main(["experiments/ablation.py", "--dry", f"--output={tmp_path / 'o'}", "--table=successors", "--seeds=2"]) == 0
    )
    out = capsys.readouterr().out
    assert (
        out.count("to run") == 2 * len(ablation.needed_rows(config(table="successors")))
        and "0 of 30 runs are done" in out
    )
    assert not list(tmp_path.iterdir())
