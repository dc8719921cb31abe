"""Defaults, presets and flags; each value that cannot be used is one line."""

import math
from dataclasses import dataclass

import pytest

from proda.cli.launch import load_experiment
from proda.run.config import AdaptConfig, DataConfig, TrainConfig, parse_scales
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


def test_defaults_then_preset_then_flags():
    assert make_config(Config, {}, PRESETS).lr == 2.5e-4
    config = make_config(Config, {"preset": "synthia"}, PRESETS)
    assert (config.source, config.lr, config.preset) == ("synthia", 1e-3, "synthia")
    assert make_config(Config, {"preset": "synthia", "lr": 0.5}, PRESETS).lr == 0.5


def test_the_source_alone_picks_its_recipe():
    assert make_config(Config, {"source": "synthia"}, PRESETS).lr == 1e-3


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"lr": "fast"}, "--lr=fast: expected a number above 0 and of at most 1000"),
        ({"batch_size": 2.5}, "--batch_size=2.5: expected a whole number above 0"),
        ({"batch_size": True}, "--batch_size=True: expected a whole number above 0"),
        ({"iterations": "1e3"}, "--iterations=1e3: expected a whole number of at least 0"),
        ({"weights": "True"}, "--weights has no value: expected text"),
        ({"output": 7}, "--output=7: expected text"),
        ({"rectification": 1}, "--rectification=1: expected True or False"),
        ({"resume": "yes"}, "--resume=yes: expected True or False"),
        ({"preset": "gta"}, "--preset=gta: unknown preset; expected one of gta5, synthia"),
        ({"amp": "fp8"}, "--amp=fp8: expected one of 'off', 'bf16', 'fp16'"),
        ({"source": "photos"}, "--source=photos: expected one of 'gta5', 'synthia', or a file NAME.toml"),
        ({"num_classes": -1}, "--num_classes=-1: expected a whole number of at least 0"),
        ({"batch_size": 0}, "--batch_size=0: expected a whole number above 0"),
        ({"lr": -1.0}, "--lr=-1.0: expected a number above 0"),
        ({"lr": "nan"}, "--lr=nan: expected a finite number"),
        ({"lr": float("inf")}, "--lr=inf: expected a finite number"),
        ({"momentum": 5}, "--momentum=5: expected a number of at least 0 and below 1"),
        ({"seed": 2**40}, "--seed=1099511627776: expected a whole number from 0 to 2147483647"),
        ({"resume": True, "overwrite": True}, "--resume and --overwrite: one continues"),
    ],
)
def test_a_bad_flag_is_one_line_that_says_what_was_found_and_expected(flags, message):
    with pytest.raises(UserError) as error:
        make_config(Config, flags, PRESETS)
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("flag", "found"),
    [
        ("batchsize", "the nearest is --batch_size"),
        ("learning_rte", "the nearest is --lr"),  # a misspelt synonym
        ("gpus", "the nearest is --nproc_per_node"),
        ("batch", "the nearest is --batch_size"),
        ("dataset", "the nearest is --source"),
        ("output-dir", "the nearest is --output"),
        ("checkpoint", "the nearest is --weights"),
        ("learning-rate", "the nearest is --lr"),
        ("workers", "the nearest is --num_workers"),
        ("Weights", "the nearest is --weights"),
    ],
)
def test_an_unknown_flag_names_the_nearest_by_name_or_synonym(flag, found):
    with pytest.raises(UserError, match=f"unknown flag --{flag}; {found} "):
        make_config(Config, {flag: 1})


@pytest.mark.parametrize("flag", ["x", "colour", ""])
def test_an_unknown_flag_that_is_like_none_names_none(flag):
    with pytest.raises(UserError, match=rf"unknown flag --{flag} \(--help lists all\)"):
        make_config(Config, {flag: 1})


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


def test_text_stays_text_and_numbers_are_read_as_the_field_says():
    flags = {"output": "2026_11_24", "weights": "1.10", "lr": "1", "resume": "true", "seed": "0"}
    config = make_config(Config, flags)
    assert (config.output, config.weights, config.lr, config.resume) == ("2026_11_24", "1.10", 1.0, True)
    assert isinstance(config.lr, float) and type(config.seed) is int
    assert isinstance(make_config(Config, {"lr": 1}).lr, float)


def test_the_home_folder_is_expanded_in_paths_wherever_they_come_from(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    config = make_config(Config, {"output": "~/run", "preset": "mine"}, {"mine": {"data_root": "~/data"}})
    assert (config.output, config.data_root) == ("/home/me/run", "/home/me/data")
    assert make_config(Config, {"weights": "~/a.pt"}).weights == "~/a.pt"  # no path, as far as its type says


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
        for value in (
            "-1",
            "nan",
            "inf",
            "1e30",
            str(10**30),
            "",
            "x",
            "[1]",
            "1,2",
            "True",
            -1,
            True,
            1e30,
            [1],
            None,
        ):
            with pytest.raises(UserError, match=f"^--{name}(=.*| has no value): expected .*$"):
                make_config(config, {name: value})


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_text_is_a_choice_or_a_path_or_is_checked_elsewhere(experiment):
    # preset: make_config; backbone: build_network; stages, parts, scales and classes: what parses them
    elsewhere = {"preset", "backbone", "from_stage", "until", "parts", "scales", "runs", "thing_classes"}
    for name, option in option_types(load_experiment(experiment).Config).items():
        assert option.kind is not str or option.choices or option.is_path or name in elsewhere, name


NO_SENSE = [
    *[("stage1_denoise", name, value) for name, value in {"threshold": 2, "teacher_momentum": 5, "lr": 0}.items()],
    *[("stage1_denoise", name, 1) for name in ("momentum", "dropout", "threshold", "crop_width")],
    *[("stage1_denoise", name, 2) for name in ("weight_decay", "prototype_momentum")],
    *[("stage1_denoise", name, 10**8) for name in ("mean_width", "num_workers", "nproc_per_node", "prototype_passes")],
    *[("stage2_distill", "threshold", 1), ("pretrain", "temperature", 1e-9), ("pretrain", "smallest_view", 1e-9)],
]


@pytest.mark.parametrize(("experiment", "name", "value"), NO_SENSE)
def test_a_number_that_no_run_can_use_is_refused(experiment, name, value):
    with pytest.raises(UserError, match=f"--{name}="):
        make_config(load_experiment(experiment).Config, {name: value})


def test_every_synonym_leads_to_a_flag_of_an_experiment_that_lacks_it():
    configs = [option_types(load_experiment(experiment).Config) for experiment in EXPERIMENTS]
    for word, meanings in SYNONYMS.items():
        for meaning in meanings:
            assert any(meaning in known and word not in known for known in configs), f"{word} -> {meaning}"


def test_every_field_has_a_doc():
    docs = field_docs(Config)
    assert all(docs[name] for name in Config.__dataclass_fields__), docs


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


def test_a_description_file_may_be_the_source():
    assert make_config(DataConfig, {"source": "~/a.toml"}).source.endswith("/a.toml")


@dataclass
class Distillation(AdaptConfig):
    teacher: str = "a.pt"  # weights of the teacher


def test_a_renamed_flag_is_accepted_under_its_old_name_with_a_line_that_says_the_new_one(caplog):
    caplog.set_level("WARNING", logger="proda")
    config = make_config(Distillation, {"weights": "b.pt", "target_statistics": "True"})
    assert config.teacher == "b.pt" and config.adabn
    lines = sorted(record.getMessage() for record in caplog.records)
    assert lines == [
        "--target_statistics is now called --adabn; the next release will not accept the old name",
        "--weights is now called --teacher; the next release will not accept the old name",
    ]


def test_a_name_that_the_experiment_has_itself_is_no_old_one(caplog):
    assert make_config(Config, {"weights": "b.pt"}).weights == "b.pt" and not caplog.records
    with pytest.raises(UserError, match="unknown flag --consistency_weight"):  # nothing of its present name either
        make_config(Config, {"consistency_weight": 1})


def test_a_flag_under_both_names_is_refused():
    with pytest.raises(UserError, match="--weights and --teacher: weights is the old name of teacher; give teacher"):
        make_config(Distillation, {"weights": "b.pt", "teacher": "c.pt"})


def test_every_renamed_flag_leads_to_one_that_an_experiment_has():
    configs = [load_experiment(stage).Config for stage in STAGES]
    for old, new in RENAMED_FLAGS.items():
        found = [config for config in configs if new in option_types(config) and old not in option_types(config)]
        assert found, f"{old} -> {new}"
