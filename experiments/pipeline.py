"""Runs every stage, from ImageNet weights to the final table, with one command.

    python run.py experiments/pipeline.py --source=gta5 --simclr=r101_1x_sk0.pth
    python run.py experiments/pipeline.py --preset=synthia_released --simclr=r101_1x_sk0.pth --nproc_per_node=4
    python run.py experiments/pipeline.py --source=my_simulator.toml --target=my_photos.toml --stage2_init=imagenet

Each stage writes to OUTPUT/STAGE and records its inputs there in config.json. If you run the same command again, stages
that are up to date are skipped, and an interrupted stage is resumed. At the end OUTPUT/report.html shows the results
(experiments/report.py).
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import ignite.distributed as idist

from proda.cli.launch import load_experiment
from proda.models.build import build_network
from proda.run.config import DataConfig
from proda.run.data import Data
from proda.run.job import device_of, read_summary
from proda.run.networks import fill_backbone
from proda.settings.options import LengthFactor, NonNegativeInt, PathText, PixelsOrZero, PositiveInt
from proda.settings.presets import EVALUATION_PRESETS, NO_TARGET_LOSS, STREETS, scaled
from proda.settings.reading import make_config
from proda.studies.tables import CONTROL, control_sentence, stage_table
from proda.studies.up_to_date import print_once, run_if_outdated
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import save_json

STAGES = ("warmup", "stage1_denoise", "stage2_distill", "stage3_distill")
# Streets needs no downloads: the source-only model replaces ImageNet weights, and the stage-1 model replaces SimCLR
# weights. It is small enough to train the oracle and the control of stage 1 for comparison, too.
STREETS_STAGES = ("source_only", "warmup", CONTROL, *STAGES[1:], "oracle")
PASSED_ON = (
    *("preset", "source", "target", "num_classes", "backbone", "head", "val_batch_size", "seed"),
    *("device", "num_workers"),
    *("skip_bad", "labelled_only", "as_released"),
    *("amp", "compile", "deterministic", "data_root", "batch_size", "epochs", "checkpoint_every"),
    *("mean_width", "crop_width", "crop_height"),
)


@dataclass
class Config(DataConfig):
    # -- Stages
    from_stage: str = ""  # first stage to run; the results of earlier stages are used as they are
    until: str = ""  # last stage to run
    # -- Data
    batch_size: PositiveInt = 4  # images of each domain in a batch, over all processes
    mean_width: PixelsOrZero = 0  # mean width in pixels to which images are resized; 0: fits the target's images
    crop_width: PixelsOrZero = 0  # width in pixels of the crops taken from them; 0: fits the target's images
    crop_height: PixelsOrZero = 0  # height of the crops in pixels; 0: fits the target's images
    # -- Network
    init_file: PathText = ""  # ImageNet weights that the warm-up starts from; if empty, torchvision's
    simclr: PathText = ""  # SimCLRv2 r101 1x weights, converted to PyTorch, for the student of stage 2
    stage2_init: Literal["simclr", "imagenet", "random"] = "simclr"  # initial weights of the student of stage 2
    # -- Length
    epochs: PositiveInt = 84  # length of each stage: passes over the target training images
    iterations: NonNegativeInt = 0  # length of each stage in iterations; 0: use --epochs
    scale: LengthFactor = 1.0  # with --preset=streets and no --iterations: factor for the length of each stage
    # -- Output
    overwrite: bool = False  # rerun stages whose inputs have changed
    checkpoint_every: PositiveInt = 1000  # iterations between checkpoints

    def problems(self) -> Iterator[str]:
        """One line for each invalid combination of flags."""
        yield from super().problems()
        if self.scale != 1 and self.preset != "streets":
            yield "--scale is for --preset=streets; elsewhere --epochs or --iterations set the length"
        if self.preset == "streets":
            for name in ("init_file", "simclr", "stage2_init", "epochs"):
                if getattr(self, name) != getattr(Config, name):
                    yield (
                        f"--{name} has no effect with --preset=streets, in which each stage starts from the one before "
                        "and --scale or --iterations set the length"
                    )


PRESETS = {
    **EVALUATION_PRESETS,
    "streets": {field.name: STREETS[field.name] for field in fields(Config) if field.name in STREETS},
}


def run(local_rank: int, config: Config) -> dict:
    summary = run_stages(config)
    report(config)
    return summary


def run_stages(config: Config) -> dict:
    """Runs the stages, writes ``summary.json`` and prints the table; returns the content of the file."""
    folder, todo = Path(config.output), chosen(config)
    if "stage2_distill" in todo and config.preset != "streets":
        check_stage2_init(config)
    if config.init_file and not Path(config.init_file).is_file():
        raise MissingFileError(f"--init_file={config.init_file}: no such file; expected ImageNet weights")
    check_data(config, todo)
    check_initial_weights(config, todo)
    for number, stage in enumerate(todo, 1):
        print_once(f"\n[{number}/{len(todo)}] {stage}")
        run_if_outdated(experiment_file(stage), flags(config, stage), overwrite=config.overwrite)
    there = [stage for stage in STREETS_STAGES if (folder / stage / "summary.json").is_file()]
    summary = {"stages": {stage: read_summary(folder / stage) for stage in there}}
    if idist.get_rank() == 0:
        save_json(summary, folder / "summary.json")
    lines = [stage_table(summary["stages"]), control_sentence(summary["stages"])]
    lines.append(f"{folder / 'summary.json'}   tensorboard --logdir {folder}")
    print_once("".join(f"\n{line}\n" for line in lines if line))
    return summary


def report(config: Config) -> None:
    """Writes ``report.html`` in rank 0. The results are on disk, so an error here loses none of them."""
    if idist.get_rank() == 0:
        from proda.report.page import write_report  # not needed before, and --help should not wait for it

        file, device = Path(config.output) / "report.html", device_of(config)
        print(write_report([config.output], file, device=device, num_workers=config.num_workers), flush=True)
    idist.barrier()


def chosen(config: Config) -> list[str]:
    """The stages from ``--from_stage`` to ``--until``."""
    stages = STREETS_STAGES if config.preset == "streets" else STAGES
    ends = []
    for flag, default in (("from_stage", stages[0]), ("until", stages[-1])):
        name = getattr(config, flag) or default
        found = [stage for stage in stages if name in (stage, stage.split("_")[0])]
        if not found:
            raise UserError(f"--{flag}={name}: no such stage; expected one of {', '.join(stages)}")
        ends.append(stages.index(found[0]))
    if ends[0] > ends[1]:
        raise UserError(f"--from_stage={config.from_stage} comes after --until={config.until}: nothing to do")
    return list(stages[ends[0] : ends[1] + 1])


def check_data(config: Config, stages: list[str]) -> None:
    """Raises UserError now if a later stage could not train on the data; that stage may start only days later."""
    stage1 = stage_config(config, "stage1_denoise")  # whose demands on the images are the highest
    data = Data(stage1)
    data.training_batches(data.source_crops(), data.target_views(full_image=True))
    data.validation_batches()
    if "oracle" in stages:
        try:
            data.oracle_crops()
        except UserError as error:
            raise UserError(f"{error} (by the oracle; --until=stage3 leaves it out)") from None


def check_stage2_init(config: Config) -> None:
    """Raises UserError now if stage 2 lacks its initial weights; that stage may start only days later."""
    if config.stage2_init == "simclr" and not Path(config.simclr).is_file():
        raise MissingFileError(
            f"--simclr={config.simclr}: no such file; stage 2 needs the converted SimCLRv2 r101 1x weights "
            "(alternatively, set --stage2_init=imagenet or --until=stage1)"
        )


def check_initial_weights(config: Config, stages: list[str]) -> None:
    """Raises UserError now if a file of initial weights does not fit the backbone of its stage."""
    if config.preset == "streets":
        return  # each stage starts from the one before
    for stage in ("warmup", "stage2_distill"):
        values = stage_config(config, stage)
        if stage in stages and values.init_file:
            fill_backbone(build_network(values.backbone, num_classes=1, head=values.head), values)


def stage_config(config: Config, stage: str) -> Any:
    """The settings of a stage."""
    module = load_experiment(experiment_file(stage))
    return make_config(module.Config, flags(config, stage), module.PRESETS)


def experiment_file(stage: str) -> str:
    file = {"oracle": "source_only", CONTROL: "stage1_denoise"}.get(stage, stage)
    return f"experiments/{file}.py"


def flags(config: Config, stage: str) -> dict:
    """The flags of a stage. Its weights come from the previous stage; its preset determines their file name."""
    module, folder = load_experiment(experiment_file(stage)), Path(config.output)
    values = {name: getattr(config, name) for name in PASSED_ON} | {"output": str(folder / stage)}
    if config.iterations:
        values["iterations"] = config.iterations
    elif config.preset == "streets":
        values |= scaled(module.PRESETS["streets"], config.scale)
    if stage == "warmup" and config.head == "daformer":
        values["freeze_bn"] = False  # the batch norm of a fresh head has to learn
    preset = make_config(module.Config, values, module.PRESETS)
    if stage == CONTROL:
        values |= {**NO_TARGET_LOSS, "weights": str(folder / "warmup" / "last.pt")}
    elif stage in STAGES[1:]:
        flag = "weights" if stage == "stage1_denoise" else "teacher"
        before = folder / STAGES[STAGES.index(stage) - 1] / Path(getattr(preset, flag)).name
        values[flag] = str(before)
    if stage == "oracle":
        values["train_on"] = "target"
    elif stage == "stage3_distill" or (stage == "stage2_distill" and config.preset == "streets"):
        values["init_file"] = str(before)
        if config.preset == "streets":
            values["label_with"] = str(folder / "warmup" / "last.pt")
    elif stage == "warmup":
        start = folder / "source_only" / "last.pt"
        values["init_file"] = str(start) if config.preset == "streets" else config.init_file
    elif stage == "stage2_distill":
        values["init"] = config.stage2_init
        values["bn_pretrain"] = config.stage2_init == "simclr"  # needed only for the scale of self-supervised features
        values["init_file"] = {"simclr": config.simclr, "imagenet": config.init_file}.get(config.stage2_init, "")
    return values
