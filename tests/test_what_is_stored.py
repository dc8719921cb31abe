"""The table of what is stored and what it depends on: used again, made again, or refused in one line.

A row stores something of a small world (own data, a weights file, flags) and takes it up again after a column has
changed one thing of that world. Nothing is trained: what decides is called as the experiments call it.
"""

import contextlib
import json
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from PIL import Image
from torch import nn

from experiments import source_only, stage1_denoise, stage2_distill
from proda.engines.events import Trainer
from proda.handlers.checkpoints import Checkpoints
from proda.handlers.prototypes import prepare_prototypes
from proda.handlers.pseudo_labels import PseudoLabels
from proda.models.build import build_network
from proda.models.weights import save_weights
from proda.run import job as job_module
from proda.run.domains import Domains
from proda.run.job import Job
from proda.run.networks import load_network
from proda.streets import files as streets
from proda.streets import write_streets
from proda.studies import up_to_date
from proda.utils.errors import UserError
from proda.utils.files import sha256
from tests.small_runs import ROOT
from tests.tiny import CPU, PRECISION

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
EXPERIMENT = str(ROOT / "experiments/stage1_denoise.py")

# used: taken as it is. made: deleted and made again. refused: one line that says what differs. -: no such flag.
TABLE = """
                           soft    hard    renewed prototypes checkpoint config  oracle  model   teacher inputs  summary again
nothing                    used    used    used    used       used       used    used    used    used    used    used    used
weights: other content     refused refused used    refused    refused    refused -       used    used    refused refused made
weights: another place     used    used    used    used       used       used    -       used    used    used    used    used
target images replaced     refused refused refused refused    refused    refused refused used    used    refused refused made
a target image more        refused refused refused refused    refused    refused refused used    used    refused refused made
a target image fewer       refused refused refused refused    refused    refused refused used    used    refused refused made
target labels changed      used    used    used    used       used       used    refused used    used    used    used    used
source images replaced     used    used    used    used       refused    refused refused used    used    refused refused made
source labels changed      used    used    used    used       refused    refused refused used    used    refused refused made
validation images replaced used    used    used    used       refused    refused refused used    used    refused refused made
validation labels changed  used    used    used    used       refused    refused refused used    used    refused refused made
description: a comment     used    used    used    used       used       used    used    used    used    used    used    used
description: a colour      used    used    used    used       used       used    used    used    used    used    used    used
description: the size      refused refused refused refused    refused    refused refused used    used    refused refused made
description: the ids       used    used    used    used       refused    refused refused used    used    refused refused made
description: another place used    used    used    used       used       used    used    used    used    refused refused made
classes in another order   refused refused refused refused    refused    refused refused refused refused refused refused made
a class more               refused refused refused refused    refused    refused refused refused refused refused refused made
--flip                     refused refused refused used       refused    refused -       used    used    refused refused made
--amp                      refused refused refused refused    refused    refused refused used    used    refused refused made
--prototype_passes         used    used    used    refused    refused    refused -       used    used    refused refused made
--skip_bad                 refused refused refused refused    refused    refused refused used    used    refused refused made
--seed                     used    used    used    used       refused    refused refused used    used    refused refused made
--lr                       used    used    used    used       refused    refused refused used    used    refused refused made
--backbone                 used    used    used    used       refused    refused refused refused refused refused refused made
--num_workers              used    used    used    used       used       used    used    used    used    used    used    used
other versions of packages used    used    used    used       used       used    used    used    used    used    used    used
stored by a newer proda    refused refused refused refused    refused    refused refused refused refused refused refused refused
"""  # noqa: E501 twelve columns

# What a refusal says of a column; of images alone where several things would be said.
SAID = {
    "labels": {
        "weights: other content": "weights: found SHA-256",
        "target images replaced": "image files: found others under the same names",
        "a target image more": "images: found 3, expected 4",
        "a target image fewer": "images: found 3, expected 2",
        "description: the size": r"size: found None, expected \[16, 8\]",
        "classes in another order": "class names: found 2, expected 2, first difference 'road' and 'car'",
        "a class more": "num_classes: found 2, expected 3",
        "--flip": "flip: found (True, expected False|None, expected True)",
        "--amp": "amp: found 'off', expected 'bf16'",
        "--skip_bad": "images: found 3, expected 2",
        "stored by a newer proda": "format: found 99, expected",
    },
    "renewed": {},  # whatever differs, they are deleted, and the student that wrote them is gone
    "prototypes": {
        "weights: other content": "prototypes computed from other weights",
        "target images": "prototypes computed from other images",
        "a target image": "prototypes computed from other images",
        "description: the size": "prototypes computed from other size",
        "classes in another order": "prototypes computed from other classes",
        "a class more": "prototypes computed from other classes",
        "--amp": "other amp: found off, expected bf16",
        "--prototype_passes": "other passes: found 1, expected 4",
        "--skip_bad": "prototypes computed from other images",
        "stored by a newer proda": "written by a newer version",
    },
    "model": {
        "classes in another order": "class 0 is 'road', expected 'car'",
        "a class more": "weights for 2 classes, expected 3 classes",
        "--backbone": "found weights of --backbone=tiny, expected --backbone=resnet50",
        "stored by a newer proda": "written by a newer version",
    },
    "run": {
        "weights: other content": "content of --weights",
        "target images": "target images changed",
        "a target image": "target images changed",
        "target labels": "target labels changed",
        "source images": "source images changed",
        "source labels": "source labels changed",
        "validation images": "validation images changed",
        "validation labels": "validation labels changed",
        "description: the size": "target description changed",
        "description: the ids": "source description changed",
        "description: another place": "--target was .*photos.toml, is .*moved.toml",
        "classes in another order": "classes changed",
        "a class more": "classes changed",
        "--amp": "--amp was off, is bf16",
        "--flip": "--flip was False, is True",
        "--prototype_passes": "--prototype_passes was 1, is 4",
        "--skip_bad": "--skip_bad was",
        "--seed": "--seed was 0, is 7",
        "--lr": "--lr was 0.0001, is 0.5",
        "--backbone": "--backbone was tiny, is resnet50",
        "stored by a newer proda": "written by a newer version|not a checkpoint",
    },
}


class World:
    """What the stored things depend on: data and weights in a folder, and flags; ``run`` is where they are stored."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run = folder, folder / "run"
        self.flags: dict[str, Any] = {
            "source": str(folder / "sim.toml"),
            "target": str(folder / "photos.toml"),
            "weights": str(folder / "weights.pt"),
            "output": str(self.run),
            "backbone": "tiny",
            "device": "cpu",
            "num_workers": 0,
        }
        for domain in ("sim", "photos", "val"):
            for name in "abc":
                self.write(domain, name, 1)
        (folder / "sim.toml").write_text(SIM)
        (folder / "photos.toml").write_text(PHOTOS)
        (folder / "weights.pt").write_bytes(b"warm-up")
        self.run.mkdir()

    def write(self, domain: str, name: str, value: int, parts: tuple[str, ...] = ("images", "labels")) -> None:
        """An image and its label map of one value, 1 or 2."""
        for part in parts:
            path = self.folder / domain / part / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((16, 32, 3) if part == "images" else (16, 32), value, np.uint8)).save(path)

    def rewrite(self, domain: str, part: str) -> None:
        for name in "abc":
            self.write(domain, name, 2, (part,))

    def edit(self, file: str, old: str, new: str) -> None:
        text = (self.folder / file).read_text()
        assert old in text
        (self.folder / file).write_text(text.replace(old, new))

    def move(self, flag: str, name: str) -> None:
        self.flags[flag] = str(Path(self.flags[flag]).rename(self.folder / name))

    def config(self, **flags: Any) -> stage1_denoise.Config:
        return stage1_denoise.Config(**{**self.flags, **flags})

    def skip(self) -> None:
        (self.folder / "bad.txt").write_text("train/b\n")
        self.flags["skip_bad"] = str(self.folder / "bad.txt")

    def fewer(self) -> None:
        for part in ("images", "labels"):
            (self.folder / "photos" / part / "c.png").unlink()


ORDER = '{ name = "road", ids = [1] }, { name = "car", ids = [2] }'
ORDER_REVERSED = '{ name = "car", ids = [2] }, { name = "road", ids = [1] }'
COLUMNS: dict[str, Callable[[World], Any]] = {
    "nothing": lambda world: None,
    "weights: other content": lambda world: (world.folder / "weights.pt").write_bytes(b"another"),
    "weights: another place": lambda world: world.move("weights", "moved.pt"),
    "target images replaced": lambda world: world.rewrite("photos", "images"),
    "a target image more": lambda world: world.write("photos", "d", 1),
    "a target image fewer": World.fewer,
    "target labels changed": lambda world: world.rewrite("photos", "labels"),
    "source images replaced": lambda world: world.rewrite("sim", "images"),
    "source labels changed": lambda world: world.rewrite("sim", "labels"),
    "validation images replaced": lambda world: world.rewrite("val", "images"),
    "validation labels changed": lambda world: world.rewrite("val", "labels"),
    "description: a comment": lambda world: world.edit("photos.toml", "[val]", "# no more than a remark\n[val]"),
    "description: a colour": lambda world: world.edit("sim.toml", '"road", ', '"road", color = [1, 2, 3], '),
    "description: the size": lambda world: world.edit("photos.toml", "[train]", "size = [16, 8]\n[train]"),
    "description: the ids": lambda world: world.edit("sim.toml", "ids = [2]", "ids = [2, 3]"),
    "description: another place": lambda world: world.move("target", "moved.toml"),
    "classes in another order": lambda world: world.edit("sim.toml", ORDER, ORDER_REVERSED),
    "a class more": lambda world: world.edit("sim.toml", ORDER, ORDER + ', { name = "sky", ids = [3] }'),
    "--flip": lambda world: world.flags.update(flip=True),
    "--amp": lambda world: world.flags.update(amp="bf16"),
    "--prototype_passes": lambda world: world.flags.update(prototype_passes=4),
    "--skip_bad": World.skip,
    "--seed": lambda world: world.flags.update(seed=7),
    "--lr": lambda world: world.flags.update(lr=0.5),
    "--backbone": lambda world: world.flags.update(backbone="resnet50"),
    "--num_workers": lambda world: world.flags.update(num_workers=3),
}


class Row:
    """Something stored. ``use`` returns "used" or "made", or raises; ``outdate`` makes it that of a newer proda."""

    said = "run"
    names = "run"  # part of the path that a refusal begins with or holds

    def __init__(self, world: World) -> None:
        self.world = world

    def store(self) -> None:
        raise NotImplementedError

    def use(self) -> str:
        raise NotImplementedError

    def outdate(self) -> None:
        raise NotImplementedError


class SoftLabels(Row):
    kind, said = "soft", "labels"

    def open(self) -> tuple[Domains, Any]:
        config = self.world.config()
        data = Domains(config)
        network: Any = SimpleNamespace(origin=sha256(self.world.flags["weights"]))
        settings = {"flip": not config.flip} if self.kind == "hard" else {"flip": True} if config.flip else {}
        return data, data.label_store(self.kind, self.world.run / "pseudo_labels", network, **settings)

    def write(self, store: Any, names: list[str]) -> None:
        for name in names:
            if self.kind == "soft":
                store.write(name, torch.full((2, 2, 4), 0.5))
            else:
                store.write(name, torch.zeros(16, 32, dtype=torch.uint8), torch.ones(16, 32))

    def store(self) -> None:
        data, store = self.open()
        self.write(store, data.target.names)

    def use(self) -> str:
        data, store = self.open()
        return "made" if store.missing(data.target.names) else "used"

    def outdate(self) -> None:
        change_json(self.world.run / "pseudo_labels/manifest.json", format=99)


class HardLabels(SoftLabels):
    kind = "hard"


class RenewedLabels(SoftLabels):
    """Of iteration 2, in a run that goes on from iteration 3; the first labels are left aside."""

    said = "renewed"

    def renewed(self) -> PseudoLabels:
        data, store = self.open()
        images: Any = None
        labels = PseudoLabels(store, nn.Identity(), images, PRECISION, data.classes.names)
        labels.attach(Trainer(lambda *_: {}), 1, labeller=nn.Identity(), folder=self.world.run)
        labels.load_state_dict({"renewed": {"iteration": 2, "weights": "a" * 64}})
        return labels

    def store(self) -> None:
        labels = self.renewed()
        labels._open_renewed()
        self.write(labels.store, list(labels.manifest.images))
        (self.world.run / "pseudo_labels/manifest.json").unlink()
        (self.world.run / "pseudo_labels/iteration_2").rename(self.world.folder / "kept")

    def use(self) -> str:
        labels = self.renewed()
        (self.world.folder / "kept").rename(self.world.run / "pseudo_labels/iteration_2")
        state = SimpleNamespace(iteration=3, epoch_length=2)
        engine: Any = SimpleNamespace(state=state, fire_event=lambda event: None)
        labels.prepare(engine)
        return "used"

    def outdate(self) -> None:
        change_json(self.world.folder / "kept/manifest.json", format=99)


class PrototypesFile(Row):
    said, names = "prototypes", "prototypes.pt"

    def use(self) -> str:
        file, data = self.world.run / "prototypes.pt", Domains(self.world.config())
        network = build_network("tiny", len(data.classes.names))
        network.origin = sha256(self.world.flags["weights"])
        before = file.read_bytes() if file.exists() else b""
        config = data.config
        batches = data.whole_target()
        prepare_prototypes(file, network, batches, PRECISION, config.prototype_passes, data.made_from(network))
        return "used" if file.read_bytes() == before else "made"

    def store(self) -> None:
        assert self.use() == "made"

    def outdate(self) -> None:
        change_tensors(self.world.run / "prototypes.pt", format=99)


class ConfigFile(Row):
    """The run in a folder, as its config.json tells it at --resume."""

    def config(self, **flags: Any) -> Any:
        return self.world.config(**flags)

    def open(self, **flags: Any) -> None:
        config = self.config(**flags)
        job = Job(config)
        try:
            job.open(data=Domains(config).fingerprints())
        finally:
            job.lock.release()

    def store(self) -> None:
        self.open()
        (self.world.run / "checkpoint_1.pt").write_text("x")

    def use(self) -> str:
        self.open(resume=True)
        return "used"

    def outdate(self) -> None:
        content = json.loads((self.world.run / "config.json").read_text())
        change_json(self.world.run / "config.json", run={**content["run"], "format": 99})


class Oracle(ConfigFile):
    """The same of a run that learns the target's labels."""

    def config(self, **flags: Any) -> Any:
        known = source_only.Config.__dataclass_fields__
        flags = {name: value for name, value in {**self.world.flags, **flags}.items() if name in known}
        return source_only.Config(**{"lr": 1e-4, **flags}, train_on="target")


class CheckpointFile(ConfigFile):
    names = "run"

    def trainer(self) -> tuple[Engine, Checkpoints]:
        trainer, checkpoints = Trainer(lambda *_: {}, network=nn.Linear(2, 2)), Checkpoints(self.world.run)
        checkpoints.attach(trainer, every=1)
        return trainer, checkpoints

    def store(self) -> None:
        self.open()
        self.trainer()[0].run([0], max_epochs=1)

    def use(self) -> str:
        self.open(resume=True)
        trainer, checkpoints = self.trainer()
        return "used" if checkpoints.resume(trainer) == 1 else "made"

    def outdate(self) -> None:
        change_tensors(self.world.run / "checkpoint_1.pt", format={"version": 99})


class Model(Row):
    """last.pt, best.pt, label_free.pt and teacher.pt are files of one kind: weights, and all that they depend on."""

    said, names = "model", "last.pt"

    def store(self) -> None:
        names = Domains(self.world.config()).classes.names
        save_weights(self.world.run / "last.pt", build_network("tiny", len(names)), class_names=names)

    def use(self) -> str:
        config = self.world.config(weights=str(self.world.run / "last.pt"))
        load_network(config, Domains(config).classes, CPU)
        return "used"

    def outdate(self) -> None:
        change_tensors(self.world.run / "last.pt", format=99)


class Teacher(Model):
    """The mean teacher of stage 1, given to stage 2 as its teacher."""

    names = "teacher.pt"

    def store(self) -> None:
        super().store()
        (self.world.run / "last.pt").rename(self.world.run / "teacher.pt")

    def use(self) -> str:
        known = stage2_distill.Config.__dataclass_fields__
        flags = {name: value for name, value in self.world.flags.items() if name in known}
        config = stage2_distill.Config(**flags, teacher=str(self.world.run / "teacher.pt"))
        load_network(config, Domains(config).classes, CPU, flag="teacher")
        return "used"

    def outdate(self) -> None:
        change_tensors(self.world.run / "teacher.pt", format=99)


class Inputs(Row):
    """inputs.json of a run that was cut short."""

    overwrite = False

    def __init__(self, world: World) -> None:
        super().__init__(world)
        self.resumed: list[bool] = []

    def start(self, experiment: str, flags: dict[str, Any]) -> None:
        self.resumed.append(flags["resume"])
        (self.world.run / "checkpoint_1.pt").write_text("x")
        self.end()

    def end(self) -> None:
        raise KeyboardInterrupt

    def complete(self) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(up_to_date, "start", self.start)
            up_to_date.run_if_outdated(EXPERIMENT, self.world.flags, overwrite=self.overwrite)

    def store(self) -> None:
        with contextlib.suppress(KeyboardInterrupt):
            self.complete()

    def use(self) -> str:
        self.store()
        return "used" if self.resumed[-1] else "made"

    def outdate(self) -> None:
        change_json(self.world.run / "inputs.json", version=99)


class Summary(Inputs):
    """summary.json of a complete run."""

    def end(self) -> None:
        (self.world.run / "summary.json").write_text("{}")

    def store(self) -> None:
        self.complete()

    def use(self) -> str:
        self.complete()
        return "used" if self.resumed == [False] else "made"


class Overwritten(Summary):
    """The same with ``--overwrite``: of what has changed nothing stays."""

    overwrite = True

    def start(self, experiment: str, flags: dict[str, Any]) -> None:
        assert not (self.world.run / "summary.json").exists()
        super().start(experiment, flags)


ROWS: dict[str, type[Row]] = {
    "soft": SoftLabels,
    "hard": HardLabels,
    "renewed": RenewedLabels,
    "prototypes": PrototypesFile,
    "checkpoint": CheckpointFile,
    "config": ConfigFile,
    "oracle": Oracle,
    "model": Model,
    "teacher": Teacher,
    "inputs": Inputs,
    "summary": Summary,
    "again": Overwritten,
}


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def change_tensors(path: Path, **changes: Any) -> None:
    torch.save({**torch.load(path, weights_only=True), **changes}, path)


def cells() -> Iterator[Any]:
    head, *lines = TABLE.strip().splitlines()
    for line in lines:
        column, values = line[:26].strip(), line[26:].split()
        for row, value in zip(head.split(), values, strict=True):
            if value != "-":
                yield pytest.param(row, column, value, id=f"{row}, {column}")


@pytest.mark.parametrize(("row", "column", "expected"), list(cells()))
def test_what_is_stored_is_used_made_again_or_refused(tmp_path, monkeypatch, row, column, expected):
    world = World(tmp_path)
    stored = ROWS[row](world)
    stored.store()
    if column == "stored by a newer proda":
        stored.outdate()
    elif column == "other versions of packages":
        monkeypatch.setattr(job_module, "version", lambda name: "99")
    else:
        COLUMNS[column](world)
    if expected != "refused":
        assert stored.use() == expected
        return
    with pytest.raises(UserError) as error:
        stored.use()
    line = str(error.value)
    assert "\n" not in line and stored.names in line
    said = SAID[stored.said]
    if stored.said == "renewed":
        assert "pseudo labels of iteration 2 are missing, and the networks of iteration 3 cannot write" in line
    else:
        best = max((start for start in said if column.startswith(start)), key=len)
        assert re.search(said[best], line), line


def test_prototypes_that_do_not_say_what_they_were_made_from_count_by_their_content(tmp_path):
    world = World(tmp_path)
    file = tmp_path / "released.pt"
    torch.save(torch.ones(2, 8), file)
    world.flags["prototypes"] = str(file)
    summary = Summary(world)
    summary.store()
    assert summary.use() == "used"
    world.flags["prototypes"] = str(file.rename(tmp_path / "moved.pt"))
    assert summary.use() == "used"
    torch.save(torch.zeros(2, 8), tmp_path / "moved.pt")
    with pytest.raises(UserError, match="content of --prototypes changed"):
        summary.use()


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ("nothing", ""),
        ("size", r"size \[16, 8\], not \[24, 12\]"),
        ("seed", "seed 0, not 1"),
        ("num_train", "num_train 1, not 2"),
        ("num_val", "num_val 1, not 2"),
        ("version", "version 4, not 99"),
        ("style", "style .*, not "),
        ("another image", ""),  # whoever reads the images compares them, as of any other data
        ("an image more", ""),
        ("an image fewer", ""),  # drawn again
        ("a label map fewer", ""),
    ],
)
def test_drawn_streets_are_used_again_or_refused(tmp_path, monkeypatch, change, refused):
    arguments = {"num_train": 1, "num_val": 1, "size": (16, 8), "seed": 0}
    write_streets(tmp_path, **arguments)
    image = tmp_path / "gta5/images/00001.png"
    if change in arguments:
        arguments[change] = (24, 12) if change == "size" else arguments[change] + 1
    elif change == "version":
        monkeypatch.setattr(streets, "VERSION", 99)
    elif change == "style":
        monkeypatch.setitem(streets.SOURCES, "gta5", streets.CAMERA)
    elif change == "another image":
        Image.new("RGB", (16, 8)).save(image)
    elif change == "an image more":
        shutil.copy(image, image.with_name("00002.png"))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    if change.endswith("fewer"):
        (image if "image" in change else tmp_path / "gta5/labels/00001.png").unlink()
    if refused:
        with pytest.raises(UserError, match=f"holds Streets of other settings .*{refused}"):
            write_streets(tmp_path, **arguments)
    else:
        write_streets(tmp_path, **arguments)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
