"""Defaults, presets and flags; each value that cannot be used is one line."""

import math
from dataclasses import dataclass

import pytest

from proda.cli.launch import load_experiment
from proda.run.config import AdaptConfig, MeanTeacherConfig, TrainConfig, parse_scales
from proda.settings.options import Options, option_types
from proda.settings.reading import GROUPS, RENAMED_FLAGS, SYNONYMS, field_docs, field_groups, make_config
from proda.utils.errors import UserError
from tests.small_runs import ROOT, STAGES


@dataclass
class Config(TrainConfig):
    weights: str = "a.pt"  # where to start
    rectification: bool = True  # denoise


EXPERIMENTS = sorted(path.stem for path in ROOT.glob("experiments/[a-z]*.py"))
PRESETS = {"gta5": {}, "synthia": {"source": "synthia", "lr": 1e-3}}


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, {"lr": 2.5e-4, "preset": ""}),
        ({"preset": "synthia"}, {"source": "synthia", "lr": 1e-3, "preset": "synthia"}),
        ({"preset": "synthia", "lr": "0.5"}, {"source": "synthia", "lr": 0.5}),
        ({"source": "synthia"}, {"lr": 1e-3, "preset": "synthia"}),  # the source alone selects its recipe
        ({"output": "2026_11_24", "weights": "1.10", "resume": "true"}, {"output": "2026_11_24", "weights": "1.10"}),
        ({"lr": "1", "seed": "0"}, {"lr": 1.0, "seed": 0}),
        ({"lr": 1}, {"lr": 1.0}),
        # the home folder is expanded where the type of a field says that it is a path
        ({"output": "~/run", "weights": "~/a.pt"}, {"output": "/home/me/run", "weights": "~/a.pt"}),
        ({"preset": "home"}, {"data_root": "/home/me/data"}),
        ({"source": "~/a.toml", "target": "b.toml"}, {"source": "/home/me/a.toml"}),
    ],
)
def test_defaults_then_preset_then_flags(flags, expected, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = make_config(Config, flags, {**PRESETS, "home": {"data_root": "~/data"}})
    for name, value in expected.items():
        assert getattr(config, name) == value and type(getattr(config, name)) is type(value), name


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lr": "fast"}, "--lr=fast: expected a number above 0 and of at most 1000"),
        ({"weights": "True"}, "--weights has no value: expected text"),
        ({"resume": "yes"}, "--resume=yes: expected True or False"),
        ({"preset": "gta"}, "--preset=gta: unknown preset; expected one of gta5, synthia"),
        ({"amp": "fp8"}, "--amp=fp8: expected one of 'off', 'bf16', 'fp16'"),
        ({"source": "photos"}, "--source=photos: expected one of 'gta5', 'synthia', 'scenes', or a file NAME.toml"),
        ({"batch_size": 0}, "--batch_size=0: expected a whole number above 0"),
        ({"lr": "nan"}, "--lr=nan: expected a finite number"),
        ({"dropout": 1}, "--dropout=1: expected a number of at least 0 and below 1"),
        ({"seed": 2**40}, "--seed=1099511627776: expected a whole number from 0 to 2147483647"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite: one continues"),
        # all of them
        ({"resume": True, "overwrite": True, "thing_classes": "car"}, "; --thing_classes has no effect without"),
        ({"as_released": True, "optimizer": "adamw"}, "--as_released: the released code has --optimizer=sgd"),
    ],
)
def test_a_bad_flag_is_one_line_that_says_what_was_found_and_expected(flags, message):
    with pytest.raises(UserError) as error:
        make_config(Config, flags, PRESETS)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flag", "found"),
    [
        ("batchsize", "; the nearest is --batch_size"),
        ("learning_rte", "; the nearest is --lr"),  # a misspelt synonym
        ("gpus", "; the nearest is --nproc_per_node"),
        ("output-dir", "; the nearest is --output"),
        ("Weights", "; the nearest is --weights"),
        *(("x", ""), ("colour", ""), ("", "")),
    ],
)
def test_an_unknown_flag_names_the_nearest_by_name_or_synonym(flag, found):
    with pytest.raises(UserError) as error:
        make_config(Config, {flag: 1})
    assert str(error.value) == f"unknown flag --{flag}{found} (--help lists all)"


@pytest.mark.parametrize(
    ("preset", "message"),
    [
        ({"learning_rate": 1.0}, "preset mine: learning_rate: Config has no such field; the nearest is lr"),
        ({"lr": -1}, "preset mine: lr=-1: expected a number above 0 and of at most 1000"),
        ({"resume": "yes"}, "preset mine: resume=yes: expected True or False"),
    ],
)
def test_a_wrong_preset_names_file_and_preset(preset, message):
    with pytest.raises(UserError) as error:
        make_config(Config, {"preset": "mine"}, {"mine": preset})
    assert str(error.value) == f"{__file__}: {message}"


def test_a_wrong_default_names_file_and_field():
    @dataclass
    class Wrong(TrainConfig):
        epochs: int = "many"  # passes

    with pytest.raises(UserError) as error:
        make_config(Wrong, {})
    assert str(error.value) == f"{__file__}: Wrong.epochs=many: expected a whole number above 0"


def test_rules_of_several_fields_hold_whatever_the_order_of_inheritance():
    @dataclass
    class EngineOptions(Options):
        teacher_mode: str = "train"  # of the teacher
        freeze_bn: bool = False  # of the student

        def problems(self):
            yield from super().problems()
            if self.teacher_mode == "none":
                yield "no teacher"

    @dataclass
    class Both(EngineOptions, AdaptConfig):
        pass

    with pytest.raises(UserError, match="no teacher"):
        make_config(Both, {"teacher_mode": "none"})
    with pytest.raises(UserError, match="--adabn has no effect with --freeze_bn"):
        make_config(Both, {"adabn": True, "freeze_bn": True})
    assert list(EngineOptions().problems()) == []


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_number_is_bounded_on_both_sides_and_nonsense_is_one_line(experiment):
    config = load_experiment(experiment).Config
    for name, option in option_types(config).items():
        if option.kind not in (int, float) or option.choices:
            continue
        bounds = option.bounds
        assert math.isfinite(max(bounds.low, bounds.above)) and math.isfinite(min(bounds.high, bounds.below)), name
        nonsense = ("-1", "nan", "inf", "1e30", str(10**30), "", "x", "[1]", "1,2", "True", -1, True, 1e30, [1], None)
        for value in nonsense:
            with pytest.raises(UserError, match=f"^--{name}(=.*| has no value): expected .*$"):
                make_config(config, {name: value})


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_text_is_a_choice_or_a_path_or_is_checked_elsewhere(experiment):
    # preset: make_config; backbone: build_network; stages, parts, scales and classes: what parses them
    elsewhere = {"preset", "backbone", "from_stage", "until", "parts", "scales", "runs", "thing_classes"}
    for name, option in option_types(load_experiment(experiment).Config).items():
        assert option.kind is not str or option.choices or option.is_path or name in elsewhere, name


@pytest.mark.parametrize(
    ("experiment", "name", "value"),
    [
        ("stage1_denoise", "threshold", 2),
        ("stage1_denoise", "teacher_momentum", 5),
        ("stage1_denoise", "lr", 0),
        ("stage1_denoise", "crop_width", 1),
        ("stage1_denoise", "prototype_momentum", 2),
        ("stage1_denoise", "mean_width", 10**8),
        ("stage1_denoise", "nproc_per_node", 10**8),
        ("stage2_distill", "threshold", 1),
        ("stage2_distill", "threshold", 0.955),
    ],
)
def test_a_number_that_no_run_can_use_is_refused(experiment, name, value):
    with pytest.raises(UserError, match=f"--{name}="):
        make_config(load_experiment(experiment).Config, {name: value})


def test_every_synonym_leads_to_the_flag_that_it_means_where_an_experiment_lacks_it():
    configs = [load_experiment(experiment).Config for experiment in EXPERIMENTS]
    for flag, words in SYNONYMS.items():
        for word in words.split():
            asked = [config for config in configs if flag in option_types(config) and word not in option_types(config)]
            assert any(f"; the nearest is --{flag} " in unknown(config, word) for config in asked), f"{word} -> {flag}"


def unknown(config: type, flag: str) -> str:
    with pytest.raises(UserError) as error:
        make_config(config, {flag: 1})
    return str(error.value)


def test_a_doc_may_hold_a_hash_and_a_string_default_too():
    @dataclass
    class Odd:
        color: str = "#fff"  # the #1 colour
        street: str = "Nürnberger Straße"  # in Zürich

    assert field_docs(Odd) == {"color": "the #1 colour", "street": "in Zürich"}


def test_a_comment_line_is_the_group_of_the_fields_below_it():
    @dataclass
    class Base:
        # -- Network
        depth: int = 1  # layers
        # an ordinary comment
        width: int = 1  # channels

    @dataclass
    class Derived(Base):
        first: int = 0  # of its own
        width: int = 2  # again
        # -- My method
        weight: float = 0.1  # of a loss
        # -- Data
        depth: int = 2  # moved

    groups = {"This experiment": ["first"], "My method": ["weight"], "Data": ["depth"], "Network": ["width"]}
    assert field_groups(Derived) == groups
    assert list(field_groups(Derived)) == ["This experiment", "My method", "Data", "Network"]
    assert field_docs(Derived)["width"] == "again"


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_flag_of_our_experiments_has_a_group(experiment):
    config = load_experiment(experiment).Config
    groups = field_groups(config)
    assert set(groups) <= set(GROUPS)
    assert sorted(name for names in groups.values() for name in names) == sorted(config.__dataclass_fields__)


def test_scales_are_numbers_separated_by_commas():
    assert parse_scales("0.75, 1,1.25") == (0.75, 1.0, 1.25)
    for wrong in ("", "a", "0", "1,20", "nan"):
        with pytest.raises(UserError, match=f"--scales={wrong}: expected numbers from 0.1 to 10"):
            parse_scales(wrong)


def test_a_renamed_flag_is_accepted_under_its_old_name_with_a_line_that_says_the_new_one(caplog, monkeypatch):
    caplog.set_level("WARNING", logger="proda")
    config = make_config(MeanTeacherConfig, {"judge_teacher": "True", "watch_every": 3})
    assert config.validate_teacher and config.label_report_every == 3
    assert sorted(caplog.messages) == [
        "--judge_teacher is now called --validate_teacher; the next release will not accept the old name",
        "--watch_every is now called --label_report_every; the next release will not accept the old name",
    ]
    caplog.clear()
    monkeypatch.setenv("RANK", "1")
    make_config(MeanTeacherConfig, {"judge_teacher": "True"})
    assert not caplog.messages
    with pytest.raises(UserError, match="judge_teacher is the old name of validate_teacher; give validate_teacher"):
        make_config(MeanTeacherConfig, {"judge_teacher": True, "validate_teacher": True})


def test_a_name_that_an_experiment_has_itself_is_no_old_one_and_neither_is_one_without_a_present_name(caplog):
    @dataclass
    class Own(MeanTeacherConfig):
        watch_every: int = 1  # of its own

    config = make_config(Own, {"watch_every": 7})
    assert (config.watch_every, config.label_report_every) == (7, 25) and not caplog.messages
    with pytest.raises(UserError, match="unknown flag --judge_teacher"):
        make_config(Config, {"judge_teacher": True})


def test_every_renamed_flag_leads_to_one_that_an_experiment_has():
    configs = [load_experiment(stage).Config for stage in STAGES]
    for old, new in RENAMED_FLAGS.items():
        found = [config for config in configs if new in option_types(config) and old not in option_types(config)]
        assert found, f"{old} -> {new}"
