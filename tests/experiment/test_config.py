"""Flags, presets and their errors."""

from dataclasses import dataclass

import pytest

from proda.experiment.config import TrainConfig, field_docs, help_text, make_config
from proda.utils.errors import UserError


@dataclass
class Config(TrainConfig):
    weights: str = "a.pt"  # where to start
    rectification: bool = True  # denoise


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
        ({"batchsize": 4}, "unknown flag --batchsize; the nearest is --batch_size"),
        ({"lr": "fast"}, "--lr='fast': expected float, found str"),
        ({"batch_size": 2.5}, "--batch_size=2.5: expected int, found float"),
        ({"batch_size": True}, "expected int, found bool"),
        ({"weights": True}, "--weights=True: expected str, found bool"),
        ({"rectification": 1}, "--rectification=1: expected bool, found int"),
        ({"preset": "gta"}, "--preset=gta: no such recipe; expected one of gta5, synthia"),
        ({"amp": "fp8"}, "--amp=fp8: expected one of 'off', 'bf16', 'fp16'"),
        ({"num_classes": 12}, "--num_classes=12: expected one of"),
        ({"batch_size": 0}, "--batch_size=0: must be above 0"),
        ({"lr": -1.0}, "--lr=-1.0: must not be negative"),
    ],
)
def test_a_bad_flag_is_one_line_that_says_what_was_found_and_expected(flags, message):
    with pytest.raises(UserError) as error:
        make_config(Config, flags, PRESETS)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_an_integer_is_taken_for_a_float_and_a_number_for_a_name():
    config = make_config(Config, {"lr": 1, "output": 7})
    assert config.lr == 1.0 and isinstance(config.lr, float) and config.output == "7"


def test_every_field_has_a_doc_and_help_shows_flag_default_and_doc():
    docs = field_docs(Config)
    assert all(docs[name] for name in Config.__dataclass_fields__), docs
    text = help_text(Config, "What it does.", PRESETS)
    assert text.startswith("What it does.") and "gta5, synthia" in text
    line = next(line for line in text.splitlines() if "--weights=" in line)
    assert "--weights=a.pt" in line and "where to start" in line


def test_a_doc_may_hold_a_hash_and_a_string_default_too():
    @dataclass
    class Odd:
        color: str = "#fff"  # the #1 colour

    assert field_docs(Odd) == {"color": "the #1 colour"}
