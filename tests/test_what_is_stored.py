"""What is stored and what it depends on: stage x kind of flag, and changes of the data.

Nothing is trained: a stage is built on small data of one's own, and the records of what it would store are compared.
"""

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from proda.cli.launch import load_experiment
from proda.handlers.prototypes import InitialPrototypes
from proda.handlers.pseudo_labels import PseudoLabels
from proda.models.weights import save_prototypes
from proda.run.data import Data
from proda.run.domains import Domains
from proda.run.made_up import FreshNetworks
from proda.run.record import (
    RESUMABLE_FLAGS,
    UNCOMPARED_FLAGS,
    UNLOGGED_FLAGS,
    changes,
    changes_result,
    logged_changes,
    read_record,
    refuse_other_settings,
    run_record,
)
from proda.settings.options import option_types
from proda.settings.reading import field_groups
from proda.utils.errors import UserError
from proda.utils.files import save_json, sha256
from tests.small_runs import STAGES
from tests.tiny import PRECISION

CONFIGS = {stage: load_experiment(stage).Config for stage in STAGES}


def other(config: Any, flag: str) -> Any:
    """Another value of a flag than that of ``config``."""
    value, option = getattr(config, flag), option_types(type(config))[flag]
    if option.choices:
        return next(choice for choice in option.choices if choice != value)
    return value + 1 if option.kind is int else {str: "another", bool: not value, float: 0.123}[option.kind]


def flags_of(config: type) -> set[str]:
    return {field.name for field in fields(config)}


# Flags


def test_every_flag_is_of_one_kind():
    """Machine only, length, or result: a flag that is in neither set changes the result."""
    flags = {flag for config in CONFIGS.values() for flag in flags_of(config)}
    assert UNLOGGED_FLAGS <= UNCOMPARED_FLAGS < RESUMABLE_FLAGS <= flags
    length = {"iterations", "epochs", "schedule_iterations", "val_every"}
    place = {"pseudo_labels", "skip_bad"}  # the manifest is compared, and the images that are left
    assert length | place == RESUMABLE_FLAGS - UNCOMPARED_FLAGS
    # Of the flags about output and machine, these change the result.
    results = {"amp", "compile", "deterministic", "accumulate", "validate_teacher", "val_every"}
    for config in CONFIGS.values():
        groups = field_groups(config)
        aside = {*groups["Output"], *groups["Machine"]}
        assert aside - results == UNCOMPARED_FLAGS & flags_of(config) - {"preset", "data_root"}


@pytest.mark.parametrize("stage", STAGES)
def test_at_resume_a_flag_is_refused_or_applied_with_a_line_and_a_pipeline_repeats_what_has_another_result(stage):
    config = CONFIGS[stage](device="cpu")
    before = run_record(config, {})
    for flag in flags_of(CONFIGS[stage]):
        value = other(config, flag)
        now = run_record(replace(config, **{flag: value}), {})
        text = f"--{flag} was {getattr(config, flag)}, is {value}"
        assert changes(before, now)[flag] == text
        assert changes_result(before, now) == (flag not in UNCOMPARED_FLAGS)
        if flag in RESUMABLE_FLAGS:
            refuse_other_settings(before, now, Path("run"))
            assert (text in logged_changes(before, now)) == (flag not in UNLOGGED_FLAGS)
        else:
            with pytest.raises(UserError, match="^run: a run can only be resumed with its own settings .--" + flag):
                refuse_other_settings(before, now, Path("run"))


# Data and weights of a stage

SIM = """classes = [{ name = "road", ids = [1] }, { name = "car", ids = [2] }]
[train]
images = "sim/images"
labels = "sim/labels"
"""
PHOTOS = """[train]
images = "photos/images"
labels = "photos/labels"
[val]
images = "val/images"
labels = "val/labels"
"""


class FileNetworks(FreshNetworks):
    """Networks that say that they are those of a file, which need not hold weights."""

    def _fresh(self, name: str, **options: Any) -> Any:
        network = super()._fresh(name, **options)
        flag = "weights" if name == "student" and hasattr(self.config, "weights") else name
        network.origin = sha256(getattr(self.config, flag)) if hasattr(self.config, flag) else ""
        return network


class World:
    """Data and weights in a folder, and flags of a stage; ``run`` is where the stage stores things."""

    def __init__(self, folder: Path, stage: str) -> None:
        self.folder, self.run, self.stage = folder, folder / "run", stage
        self.flags: dict[str, Any] = {"source": "sim.toml", "target": "photos.toml", "output": "run"}
        self.flags |= {"backbone": "tiny", "device": "cpu", "num_workers": 0, "batch_size": 1}
        self.flags |= {"mean_width": 32, "crop_width": 12, "crop_height": 6}
        self.weights = "weights" if stage == "stage1_denoise" else "teacher"  # the flag
        self.flags[self.weights] = "weights.pt"
        for domain in ("sim", "photos", "val"):
            for name in "abc":
                self.write(domain, name, 1)
        (folder / "sim.toml").write_text(SIM)
        (folder / "photos.toml").write_text(PHOTOS)
        (folder / "weights.pt").write_bytes(b"warm-up")
        (folder / "bad.txt").write_text("train/b\n")
        self.run.mkdir()

    def write(self, domain: str, name: str, value: int, parts: tuple[str, ...] = ("images", "labels")) -> None:
        """An image and its label map of one value, 1 or 2."""
        for part in parts:
            path = self.folder / domain / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 32, 3) if part == "images" else (16, 32), value, np.uint8)).save(path)

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def move(self, flag: str, place: str) -> None:
        self.flags[flag] = str(Path(self.flags[flag]).rename(place))

    def config(self, **flags: Any) -> Any:
        return CONFIGS[self.stage](**{**self.flags, **flags})

    def stored(self, **flags: Any) -> tuple[PseudoLabels, InitialPrototypes | None, Any, dict[str, Any]]:
        """The labels and prototypes that the stage would use, its settings and its record."""
        config = self.config(**flags)
        data = Data(config)
        networks = FileNetworks(config, data.classes, PRECISION, device="meta")
        stage = load_experiment(self.stage).build(config, data, networks)
        assert stage.labels is not None
        return stage.labels, stage.prototypes, config, run_record(config, data.domains.fingerprints())

    def store(self) -> None:
        labels, prototypes, _, record = self.stored()
        labels.store.open()
        save_json(record, self.run / "config.json")
        if prototypes is not None:
            values = torch.ones(prototypes.prototypes.values.shape), torch.zeros(2)
            save_prototypes(prototypes.file, *values, made_from=prototypes.made_from)

    def refusals(self) -> dict[str, str]:
        """What the stage is refused with now: by its labels, its prototypes, and the record of its run."""
        labels, prototypes, config, record = self.stored()
        uses: dict[str, Callable[[], Any]] = {"labels": labels.store.check}
        uses["prototypes"] = prototypes.check if prototypes is not None else lambda: None
        uses["run"] = lambda: refuse_other_settings(read_record(self.run, config), record, self.run)
        found = {}
        for name, use in uses.items():
            try:
                use()
                found[name] = ""
            except UserError as error:
                found[name] = str(error)
                assert "\n" not in found[name]
        return found


@pytest.fixture
def world(request, tmp_path, monkeypatch) -> World:
    monkeypatch.chdir(tmp_path)
    return World(tmp_path, request.param)


of_stages_with_labels = pytest.mark.parametrize("world", ["stage1_denoise", "stage2_distill"], indirect=True)


@of_stages_with_labels
def test_labels_and_prototypes_depend_on_these_flags_alone(world):
    values = {"source_width": 40, "batch_size": 2, "skip_bad": "bad.txt", "label_with": "weights.pt", "scales": "1,0.5"}
    values |= {"backbone": "resnet50", "head": "daformer"}
    elsewhere = {"source", "target", "num_classes", "data_root", "weights", "teacher", "output"}  # below
    elsewhere |= {"online_soft_labels"}  # with it, none are stored
    labels, prototypes, config, _ = world.stored()
    made_from, of_labels, of_prototypes = prototypes and prototypes.made_from, set(), set()
    for flag in flags_of(type(config)) - elsewhere:
        now, then, _, _ = world.stored(**{flag: values.get(flag, other(config, flag))})
        of_labels |= {flag} if now.manifest != labels.manifest else set()
        of_prototypes |= {flag} if then is not None and then.made_from != made_from else set()
    if world.stage == "stage1_denoise":
        assert (of_labels, of_prototypes) == ({"amp", "skip_bad"}, {"amp", "skip_bad", "as_released"})
    else:
        assert of_labels == {"amp", "skip_bad", "flip", "scales", "label_with"}


def edited(file: str, old: str, new: str) -> Callable[[World], Any]:
    return lambda world: world.edit(file, old, new)


def rewritten(domain: str, part: str) -> Callable[[World], Any]:
    return lambda world: [world.write(domain, name, 2, (part,)) for name in "abc"]


def newer(world: World) -> None:
    manifest = world.run / "pseudo_labels/manifest.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))
    if (file := world.run / "prototypes.pt").exists():
        torch.save({**torch.load(file, weights_only=True), "format": 99}, file)


ROAD, CAR = '{ name = "road", ids = [1] }', '{ name = "car", ids = [2] }'
MORE = 'ids = [2] }, { name = "sky", ids = [3] }'
SIZE, NEWER, WEIGHTS = "size: found None, expected [32, 16]", "written by a newer version", "weights: found SHA-256"
ORDER = ": found 2, expected 2, first difference 'road' and 'car'"
# Change -> how it is made, and the words of the refusals of labels, prototypes and run; empty: it is used.
CHANGES: dict[str, tuple[Callable[[World], Any], str, str, str]] = {
    "nothing": (lambda world: None, "", "", ""),
    "weights": (lambda world: Path("weights.pt").write_bytes(b"another"), WEIGHTS, WEIGHTS, "the content of --"),
    "place of the weights": (lambda world: world.move(world.weights, "moved.pt"), "", "", ""),
    "target images": (rewritten("photos", "images"), "fingerprint: found", "images: found", "target images changed"),
    "an image more": (
        lambda world: world.write("photos", "d", 1),
        *("images: found 3, expected 4", "images: found", "target images changed"),
    ),
    "target labels": (rewritten("photos", "labels"), "", "", ""),
    "source images": (rewritten("sim", "images"), "", "", "source images changed"),
    "source labels": (rewritten("sim", "labels"), "", "", "source labels changed"),
    "validation images": (rewritten("val", "images"), "", "", "validation images changed"),
    "validation labels": (rewritten("val", "labels"), "", "", "validation labels changed"),
    "a comment": (edited("photos.toml", "[val]", "# a remark\n[val]"), "", "", ""),
    "a color": (edited("sim.toml", '"road", ', '"road", color = [1, 2, 3], '), "", "", ""),
    "the size": (edited("photos.toml", PHOTOS, f"size = [32, 16]\n{PHOTOS}"), SIZE, SIZE, "target description changed"),
    "the ids": (edited("sim.toml", "ids = [2]", "ids = [2, 3]"), "", "", "source description changed"),
    "place of a description": (lambda world: world.move("target", "moved.toml"), "", "", ""),
    "order of classes": (
        edited("sim.toml", f"{ROAD}, {CAR}", f"{CAR}, {ROAD}"),
        *(f"class_names{ORDER}", f"classes{ORDER}", "classes changed"),
    ),
    "a class more": (
        edited("sim.toml", "ids = [2] }", MORE),
        *("num_classes: found 2, expected 3", "classes: found 2, expected 3", "classes changed"),
    ),
    "written by a newer version": (newer, NEWER, NEWER, ""),
}


@of_stages_with_labels
@pytest.mark.parametrize("change", CHANGES)
def test_what_is_stored_is_used_or_refused_in_one_line(world, change):
    apply, *words = CHANGES[change]
    world.store()
    apply(world)
    found = world.refusals()
    if world.stage != "stage1_denoise":
        words[1] = ""
    for text, (name, line) in zip(words, found.items(), strict=True):
        assert text in line and bool(text) == bool(line), f"{name}: {line}"
        assert not line or name == "run" or {"labels": "manifest.json", "prototypes": "prototypes.pt"}[name] in line


@of_stages_with_labels
@pytest.mark.parametrize(
    ("flags", "overwrite", "remedy"),
    [
        ({}, False, "delete the folder"),
        ({"overwrite": True}, True, "delete the folder"),
        ({"resume": True}, False, "restore them, or set another --output"),  # what it has trained on stays
        ({"overwrite": True, "pseudo_labels": "shared"}, False, "delete the folder or set another --pseudo_labels"),
        ({"resume": True, "pseudo_labels": "shared"}, False, "delete the folder or set another --pseudo_labels"),
    ],
)
def test_a_run_overwrites_the_labels_of_its_own_folder_alone(world, flags, overwrite, remedy):
    store = world.stored(**flags)[0].store
    assert store.folder == Path(flags.get("pseudo_labels", "run/pseudo_labels"))
    assert store.overwrite == overwrite and remedy in store.remedy


@pytest.mark.parametrize(("train_on", "changed"), [("source", False), ("target", True)])
def test_only_a_run_that_learns_the_labels_of_the_target_depends_on_them(tmp_path, monkeypatch, train_on, changed):
    monkeypatch.chdir(tmp_path)
    world = World(tmp_path, "stage1_denoise")
    config = CONFIGS["source_only"](source="sim.toml", target="photos.toml", train_on=train_on)
    before = run_record(config, Domains(config).fingerprints())
    rewritten("photos", "labels")(world)
    found = changes(before, run_record(config, Domains(config).fingerprints()))
    assert found == ({"target labels": "target labels changed"} if changed else {})
