"""The command line: flags as text, those of an earlier run, and ``--help``."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from proda.cli.flags import help_text, parse_flags, with_recorded
from proda.run.config import MeanTeacherConfig, TrainConfig
from proda.settings.options import PositiveFraction
from proda.utils.errors import UserError


@dataclass
class Config(TrainConfig):
    weights: str = "a.pt"  # where to start
    name_of_some_length: str = "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxx"  # with a long default
    share: PositiveFraction = 0.5  # of it


def test_flags_are_text_as_it_was_written():
    arguments = ["--lr=1e-3", "--batch-size", "8", "--resume", "--output=1.10", "--seed=2026_11_24", "--scales=1,2"]
    expected = {"lr": "1e-3", "batch_size": "8", "resume": "True", "output": "1.10", "seed": "2026_11_24"}
    assert parse_flags(arguments) == {**expected, "scales": "1,2"}
    assert parse_flags(["--noresume", "--output=[x", "--name='a'", "--path=~/a=b"]) == {
        **{"resume": "False", "output": "[x", "name": "'a'", "path": "~/a=b"}
    }


@pytest.mark.parametrize("arguments", [["lr=0.1"], ["--lr=0.1", "stray"], ["x", "--", "--trace"]])
def test_what_is_no_flag_is_one_line(arguments, capsys):
    with pytest.raises(UserError, match="expected flags of the form --name=value"):
        parse_flags(arguments)
    assert capsys.readouterr() == ("", "")


def test_words_are_the_value_of_the_flag_that_takes_them():
    assert parse_flags(["a", "--worst=3", "b/c"], "runs") == {"runs": "a,b/c", "worst": "3"}
    assert parse_flags(["--worst=3"], "runs") == {"worst": "3"}
    for arguments in (["a", "--runs=b"], ["--x", "1", "-", "a"], ["a", "-", "0"]):
        with pytest.raises(UserError):
            parse_flags(arguments, "runs")


def test_help_shows_flag_default_doc_choices_and_range(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    text = help_text(Config, "What it does.", {"gta5": {}, "synthia": {}})
    assert text.startswith("What it does.") and "gta5, synthia" in text
    lines = {line.split("=")[0].strip(): line for line in text.splitlines() if "=" in line}
    assert "--weights=a.pt" in lines["--weights"] and "where to start" in lines["--weights"]
    assert lines["--amp"].endswith("mixed precision (off, bf16, fp16)")
    assert lines["--dropout"].endswith("before the classifier (0 to below 1)")
    assert lines["--share"].endswith("of it (above 0, up to 1)") and lines["--seed"].endswith("dropout")
    assert "PRODA_TRACEBACK=1" in "".join(text.splitlines()[-2:])


@pytest.mark.parametrize("columns", [60, 100, 120])
def test_help_is_aligned_and_as_wide_as_the_terminal(columns, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(columns))
    text = help_text(Config, "What it does.", {f"preset_{i}": {} for i in range(20)})
    assert max(map(len, text.splitlines())) <= columns
    flags = [line for line in text.splitlines() if line.startswith("  --")]
    beside = [line for line in flags if " " in line.strip()]
    assert len(flags) == len(Config.__dataclass_fields__)
    assert len({len(line) - len(line.split(maxsplit=1)[1]) for line in beside}) == 1
    assert set(flags) - set(beside) == {f"  --name_of_some_length={'x' * 30}"}  # its comment is below


def test_help_has_the_flags_in_groups():
    text = help_text(Config, "")
    heads = [line for line in text.splitlines() if line and line[0].isupper()]
    assert heads[:4] == ["This experiment", "Recipe", "Data", "Network"] and "Machine" in heads
    assert text.index("\nLength\n") < text.index("--epochs=") < text.index("\nOptimization\n") < text.index("--lr=")


def test_a_config_gives_flags_which_single_flags_override(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "config.json").write_text('{"seed": 1, "lr": 0.5, "output": "x", "resume": true, "run": {}}')
    assert with_recorded({"config": "~/config.json", "lr": "1"}, Config) == {"seed": 1, "lr": "1"}
    assert with_recorded({"lr": "1"}, Config) == {"lr": "1"}
    (tmp_path / "own.json").write_text('{"lr": 0.5}')  # not of a run, so a preset may set the other values
    given = {"config": "~/own.json", "preset": "synthia"}
    assert with_recorded(given, Config) == {"lr": 0.5, "preset": "synthia"}


def test_a_config_of_an_older_run_may_have_old_names_which_flags_of_either_name_override(tmp_path, caplog):
    caplog.set_level("WARNING", logger="proda")
    file = tmp_path / "config.json"
    file.write_text('{"judge_teacher": true, "lr": 0.5}')
    assert with_recorded({"config": str(file)}, MeanTeacherConfig) == {"validate_teacher": True, "lr": 0.5}
    assert caplog.messages[0].startswith(f"--config={file}: --judge_teacher is now called --validate_teacher; ")
    for name in ("validate_teacher", "judge_teacher"):
        assert with_recorded({"config": str(file), name: "False"}, MeanTeacherConfig) == {
            "validate_teacher": "False",
            "lr": 0.5,
        }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"config": "nothing.json"}, "--config=nothing.json: no such file; expected the config.json of a run"),
        ({"config": ""}, "--config=: no such file"),
        ({"config": "other.json"}, "--config=other.json: gan is not a flag of this experiment"),
        ({"config": "fits.json", "preset": "gta5"}, "--preset=gta5 and --config=fits.json"),
        ({"config": "text.json"}, "--config=text.json: expected the config.json of a run"),
        ({"config": "list.json"}, "--config=list.json: expected the config.json of a run"),
    ],
)
def test_a_config_that_cannot_be_used_is_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    contents = {"other": '{"gan": "lsgan", "run": {}}', "fits": '{"seed": 1, "run": {}}', "text": "no", "list": "[1]"}
    for name, content in contents.items():
        Path(f"{name}.json").write_text(content)
    with pytest.raises(UserError) as error:
        with_recorded(flags, Config)
    assert str(error.value).startswith(message)
