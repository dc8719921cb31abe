"""The code of docs/extending.md does what the page says, on the smallest network and batch."""

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ignite.engine import Engine, Events

from proda.cli.launch import main
from proda.data.own_data import read_description
from proda.engines.adversarial import adversarial_trainer
from proda.engines.denoise import DenoiseOptions, denoise_trainer
from proda.engines.distill import DistillOptions, distill_trainer
from proda.engines.events import ProdaEvents
from proda.engines.online import OnlineOptions, online_trainer
from proda.engines.supervised import supervised_trainer
from proda.handlers.prototypes import PrototypeEMA, Prototypes
from proda.models.build import build_network
from proda.models.discriminator import Discriminator
from proda.models.network import parameter_groups
from proda.models.weights import load_weights, save_weights
from proda.trained_model import load_model
from proda.utils.errors import UserError
from tests import small_runs, tiny
from tests.tiny import PRECISION, B, H, K, W

PAGE = (small_runs.ROOT / "docs/extending.md").read_text()
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^##+ ", PAGE, flags=re.MULTILINE)}


def block(section: str, language: str = "python") -> str:
    """The block of code in a section; there has to be one."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", SECTIONS[section], re.MULTILINE | re.DOTALL)
    return found


PROTOTYPES = Prototypes(K, 32)
PROTOTYPES.values.normal_()


def denoise(student=None, **options) -> Engine:
    student, settings = student or tiny.network(), DenoiseOptions(**options)
    return denoise_trainer(student, tiny.network(1), PROTOTYPES.values, tiny.sgd(student), PRECISION, settings)


def executed(section: str, **names) -> dict:
    """The names that a section's code defines, or finds."""
    # As a module of its own: dataclasses look there for what annotations mean.
    scope = {"__name__": __name__, **names}
    exec(compile(block(section), f"docs/extending.md: {section}", "exec"), scope)
    return scope


def test_every_block_of_the_page_is_tried_here():
    tried = {"A handler of your own", "A handler that remembers something", "A new loss", "A new benchmark"}
    tried |= {"A new backbone", "A network of your own", "A stage of your own", "A loss with a forward pass of its own"}
    assert {title for title, text in SECTIONS.items() if "```" in text} == tried


def test_a_handler_adds_to_the_summary():
    trainer = denoise()
    executed("A handler of your own", trainer=trainer)
    trainer.run([tiny.batch()] * 10)
    assert 0 < trainer.state.summary["changed_labels"] <= 1


def test_a_handler_that_remembers_goes_on_from_its_state():
    trainer = denoise()
    handler = executed("A handler that remembers something", trainer=trainer)["ShareOfChangedLabels"]
    trainer.run([tiny.batch()] * 2)
    part = trainer.state.remembered["share_of_changed_labels"]
    assert part.iterations == 2 and trainer.state.summary["share_of_changed_labels"] == part.total / 2
    resumed = handler()
    resumed.load_state_dict(part.state_dict())
    assert (resumed.total, resumed.iterations) == (part.total, 2)


def test_a_loss_is_part_of_the_sum_and_of_the_gradients():
    gradients, losses = [], []
    for with_entropy in (False, True):
        student = tiny.network(dropout=0.0)
        trainer = denoise(student)
        if with_entropy:
            executed("A new loss", trainer=trainer)
        torch.manual_seed(0)
        losses.append(trainer.run([tiny.batch()]).output)
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    assert losses[1]["loss_entropy"] > 0 and "loss_entropy" not in losses[0]
    torch.testing.assert_close(losses[1]["loss"], losses[0]["loss"] + losses[1]["loss_entropy"])
    assert not torch.allclose(*gradients)


README = re.findall(r"^```python\n(.*?)^```", (small_runs.ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("make", ["denoise_trainer", "distill_trainer", "online_trainer"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_with_its_own_forward_pass_is_part_of_the_sum_and_of_the_gradients(make, accumulate):
    gradients, losses = [], []
    for with_mirror in (False, True):
        student = tiny.network(dropout=0.0)
        trainer = trainers(student, accumulate=accumulate)[make]
        if with_mirror:
            executed("A loss with a forward pass of its own", trainer=trainer)
        torch.manual_seed(0)
        losses.append(trainer.run([tiny.batch()]).output)
        gradients.append(torch.cat([p.grad.flatten() for p in student.parameters() if p.grad is not None]))
    assert losses[1]["loss_mirrored"] > 0 and "loss_mirrored" not in losses[0]
    assert not torch.allclose(*gradients)
    terms = sum(value for name, value in losses[1].items() if name.startswith("loss_"))
    torch.testing.assert_close(losses[1]["loss"], terms)


def test_the_readme_shows_the_same_loss():
    assert block("A loss with a forward pass of its own") in README


def test_a_description_of_a_benchmark_is_read(tmp_path):
    file = tmp_path / "my_city.toml"
    file.write_text(block("A new benchmark", "toml"))
    description = read_description(file)
    assert description.space.names == ["road", "building", "sky"] and set(description.splits) == {"train", "val"}


@pytest.mark.parametrize(
    ("section", "head"), [("A new backbone", "daformer"), ("A new backbone", "deeplab"), ("A network of your own", "")]
)
def test_a_network_is_built_from_its_file_trained_saved_and_loaded(section, head, tmp_path):
    file, weights = tmp_path / "my_network.py", tmp_path / "last.pt"
    file.write_text(block(section))
    network = build_network(str(file), K, head=head or "daformer")
    assert (network.backbone, network.head) == ("my_network.py", head or "linear")
    groups = parameter_groups(network, 0.1)
    assert sum(len(group["params"]) for group in groups) == len(list(network.parameters()))
    supervised_trainer(network, tiny.sgd(network), PRECISION).run([tiny.batch()])
    save_weights(weights, network, class_names=[f"class {k}" for k in range(K)])
    expected = r"last.pt: found weights of a network of your own; give its code with --backbone=my_network.py$"
    with pytest.raises(UserError, match=expected):
        load_model(weights)
    found = load_model(weights, backbone=str(file))
    assert found.predict(torch.rand(3, H + 1, W + 3)).shape == (H + 1, W + 3)
    with pytest.raises(UserError, match=r"expected --backbone=other.py$"):
        load_model(weights, backbone="other.py")


def test_the_command_line_takes_the_file_of_a_backbone(tmp_path, capsys):
    file, data = tmp_path / "my_encoder.py", small_runs.write_data(tmp_path / "streets")
    file.write_text(block("A new backbone"))
    line = block("A new backbone", "bash").split()
    assert line[:3] == ["python", "run.py", "stage1_denoise"] and line[4] == "--head=daformer"
    chosen = {"backbone": file, "head": "daformer"}
    fresh = {"init": "random", "init_file": "", "freeze_bn": False}
    run = small_runs.flags("warmup", data, file, tmp_path / "run", iterations=1, **chosen | fresh)
    assert main(["experiments/warmup.py", *(f"--{name}={value}" for name, value in run.items())]) == 0
    stage = small_runs.flags(
        "stage1_denoise", data, tmp_path / "run/last.pt", tmp_path / "next", iterations=1, **chosen
    )
    assert main(["experiments/stage1_denoise.py", *(f"--{name}={value}" for name, value in stage.items())]) == 0
    other = small_runs.flags("stage2_distill", data, tmp_path / "next/last.pt", tmp_path / "other", init="random")
    other["init_file"] = ""
    assert main(["experiments/stage2_distill.py", *(f"--{name}={value}" for name, value in other.items())]) == 2
    line = "found weights of my_encoder.py, a network of your own; its student has to have the same --backbone"
    assert line in capsys.readouterr().err


@pytest.fixture
def my_stage(tmp_path) -> Path:
    file = tmp_path / "my_stage.py"
    file.write_text(block("A stage of your own"))
    return file


def command(file: Path, data: Path, weights: Path, **more: Any) -> list[str]:
    flags = small_runs.flags("warmup", data, weights, file.parent / "run", **more)
    return [str(file), *(f"--{name}={value}" for name, value in flags.items())]


def test_a_stage_of_your_own_shows_its_flags_and_a_plan_and_writes_nothing(my_stage, data, weights, capsys):
    for line in block("A stage of your own", "bash").splitlines():
        assert line.startswith("python run.py my_stage.py --")
    assert main([str(my_stage), "--help"]) == 0 and "--entropy_weight=0.01" in capsys.readouterr().out
    assert main(command(my_stage, data, weights, plan=True)) == 0
    assert "an iteration" in capsys.readouterr().out and not (my_stage.parent / "run").exists()


def test_a_stage_of_your_own_trains_clips_resumes_and_stops_on_nan(my_stage, data, weights, tmp_path, capsys):
    more = {"iterations": 2, "feature_distance": 0.1, "grad_clip": 1e-9, "weight_decay": 0, "adabn": False}
    assert main(command(my_stage, data, weights, **more)) == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["iterations"] == 2
    before, after = (load_weights(path).model for path in (weights, tmp_path / "run/last.pt"))
    key = "layer5.head.1.weight"
    assert (after[key] - before[key]).norm() < 1e-6  # the gradients were clipped to nearly nothing
    assert main(command(my_stage, data, weights, **more | {"iterations": 3, "resume": True})) == 0
    assert (
        main(
            command(
                my_stage,
                data,
                weights,
                **more | {"grad_clip": 0, "lr": 1000.0, "overwrite": True, "iterations": 30, "val_every": 30},
            )
        )
        == 2
    )
    assert capsys.readouterr().err.count("not a finite number") == 1


def test_a_stage_can_be_copied(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["copy", "stage1_denoise", "my_stage.py"]) == 0 and main(["my_stage.py", "--help"]) == 0
    assert "--structure_weight" in capsys.readouterr().out


def trainers(student=None, **options) -> dict[str, Engine]:
    student, critic = student or tiny.network(), Discriminator(K)
    optimizers = tiny.sgd(student), tiny.sgd(critic)
    return {
        "denoise_trainer": denoise(student, **options),
        "distill_trainer": distill_trainer(
            student, tiny.network(1), optimizers[0], PRECISION, DistillOptions(**options)
        ),
        "online_trainer": online_trainer(student, tiny.network(1), optimizers[0], PRECISION, OnlineOptions(**options)),
        "adversarial_trainer": adversarial_trainer(student, critic, *optimizers, PRECISION),
        "supervised_trainer": supervised_trainer(student, optimizers[0], PRECISION),
    }


@pytest.mark.parametrize("name", trainers())
def test_the_tables_say_which_events_fire_in_which_order_and_what_is_there(name):
    (section,) = [text for title, text in SECTIONS.items() if f"`{name}`" in title]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines() if line.startswith("| `")]
    documented = [event for row in rows for event in re.findall(r"`(?:Events\.)?([A-Z_]+)`", row[0])]
    trainer, seen = trainers()[name], SimpleNamespace(events=[], losses=set(), graph=set(), before={})
    events = [Events.ITERATION_STARTED, *ProdaEvents, Events.ITERATION_COMPLETED]

    def note(engine: Engine, event: str) -> None:
        seen.events.append(event)
        seen.before[event] = set(engine.state.output or {})
        if event == "LOSSES_READY":
            seen.losses, seen.graph = set(engine.state.losses), dict(engine.state.graph)

    for event in events:
        trainer.add_event_handler(event, note, event.name)
    if name == "denoise_trainer":
        PrototypeEMA(PROTOTYPES).attach(trainer)  # last, so that what it fires is noted after the event it listens to
    trainer.run([tiny.batch()])
    assert documented == [event for event in seen.events if event != "ITERATION_STARTED" or name == "denoise_trainer"]

    (ready,) = [row for row in rows if row[0] == "`LOSSES_READY`"]
    _, losses, graph = re.split(r"`losses`: |`graph`: ", ready[1])
    assert set(re.findall(r"`(\w+)`", losses)) == seen.losses
    sides = {"B": B, "K": K, "D": 32, "H": H, "W": W, "h": H // 4, "w": W // 4}
    described = dict(re.findall(r"`(\w+)` \[([^]]+)\]", graph))
    assert described.keys() == seen.graph.keys()
    for key, shape in described.items():
        found = seen.graph[key].shape
        assert [sides.get(side, size) for side, size in zip(shape.split(", "), found, strict=True)] == list(found)
    named = {word for row in rows for word in re.findall(r"`(\w+)`", row[2]) if word != "loss_NAME"}
    assert named <= seen.before["ITERATION_COMPLETED"]
    assert {f"loss_{term}" for term in seen.losses} <= seen.before["ITERATION_COMPLETED"]
    if name in ("denoise_trainer", "adversarial_trainer"):
        shown = set()
        for row in rows:
            shown |= {word for word in re.findall(r"`(\w+)`", row[2]) if word != "loss_NAME"}
            for event in re.findall(r"`([A-Z_]+)`", row[0]):
                assert shown <= seen.before[event], event
