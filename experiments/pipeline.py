"""Runs every stage, from ImageNet weights to the final table, with one command.

    python run.py experiments/pipeline.py --source=gta5 --simclr=r101_1x_sk0.pth
    python run.py experiments/pipeline.py --preset=synthia_released --simclr=r101_1x_sk0.pth --nproc_per_node=4
    python run.py experiments/pipeline.py --preset=camvid
    python run.py experiments/pipeline.py --source=my_simulator.toml --target=my_photos.toml
    python run.py experiments/pipeline.py --preset=streets --warmup.lr=0.02 --stage1.temperature=3    # of one stage

Each stage writes to OUTPUT/STAGE and records its inputs there in config.json. If you run the same command again, stages
that are up to date are skipped, and an interrupted stage is resumed. At the end OUTPUT/report.html shows the results
(experiments/report.py), and OUTPUT/panel.png the predictions of every stage, if there are labelled validation images.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import ignite.distributed as idist

from proda.cli.launch import load_experiment
from proda.models.build import build_network
from proda.run.config import DataConfig
from proda.run.data import Data
from proda.run.job import device_of, read_summary
from proda.run.networks import fill_backbone
from proda.run.record import RECORD_FILE, run_record
from proda.settings.options import Bounds, LengthFactor, NonNegativeInt, PathText, PixelsOrZero, PositiveInt, StageFlags
from proda.settings.presets import (
    CAMVID,
    CAMVID_ORACLE,
    DEMONSTRATIONS,
    EVALUATION_PRESETS,
    NO_TARGET_LOSS,
    STREETS,
    scaled,
)
from proda.settings.reading import make_config, read_flags
from proda.studies.tables import CONTROL, control_sentence, stage_table
from proda.studies.up_to_date import print_once, run_if_outdated
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import save_json

STAGES = ("warmup", "stage1_denoise", "stage2_distill", "stage3_distill")
# The demonstrations are small enough to train a source-only model, which the warm-up starts from, the oracle and the
# control of stage 1, too. Streets needs no downloads: its stage 2 starts from the stage-1 model.
DEMONSTRATION_STAGES = ("source_only", "warmup", CONTROL, *STAGES[1:], "oracle")
PASSED_ON = (
    *("preset", "source", "target", "num_classes", "backbone", "head", "val_batch_size", "seed"),
    *("device", "num_workers"),
    *("skip_bad", "labelled_only", "as_released"),
    *("amp", "compile", "deterministic", "data_root", "batch_size", "epochs", "checkpoint_every"),
    *("mean_width", "crop_width", "crop_height"),
)

# Preset -> why flags have no effect with it, and which.
WITHOUT_EFFECT = {
    "streets": ("each stage starts from the one before", ("init_file", "simclr", "stage2_init", "epochs")),
    "camvid": ("no stage starts from SimCLR weights", ("simclr", "epochs")),
}
# Flags that stages have from the pipeline unless they have them of their own. They may differ from stage to stage.
OF_ONE_STAGE = (
    *("batch_size", "val_batch_size", "num_workers", "amp", "compile", "epochs", "iterations", "val_every"),
    *("checkpoint_every", "mean_width", "crop_width", "crop_height", "freeze_bn"),
)
# Flags that no stage may have of its own -> what to use instead.
INSTEAD = {
    "resume": "run the same command again, which resumes the stage",
    "plan": "use --plan with the stage's own command",
}

Stage2Init = Literal["", "simclr", "imagenet", "random"]


@dataclass
class Config(DataConfig):
    # -- Stages
    from_stage: str = ""  # first stage to run; the results of earlier stages are used as they are
    until: str = ""  # last stage to run
    stage_flags: StageFlags | None = None  # a flag of one stage, as --stage1.lr=0.1; the control has those of stage 1
    # -- Data
    batch_size: PositiveInt = 4  # images of each domain in a batch, over all processes
    mean_width: PixelsOrZero = 0  # mean width in pixels to which images are resized; 0: fits the target's images
    crop_width: PixelsOrZero = 0  # width in pixels of the crops taken from them; 0: fits the target's images
    crop_height: PixelsOrZero = 0  # height of the crops in pixels; 0: fits the target's images
    # -- Network
    init_file: PathText = ""  # ImageNet weights that the warm-up starts from; if empty, torchvision's
    simclr: PathText = ""  # SimCLRv2 r101 1x weights, converted to PyTorch, for the student of stage 2
    stage2_init: Stage2Init = ""  # start of stage 2; if empty, simclr for cityscapes and with --simclr, else imagenet
    # -- Length
    epochs: PositiveInt = 84  # length of each stage: passes over the target training images
    iterations: NonNegativeInt = 0  # length of each stage in iterations; 0: use --epochs
    scale: LengthFactor = 1.0  # presets streets and camvid without --iterations: factor for the length of each stage
    # -- Output
    overwrite: bool = False  # rerun stages whose inputs have changed
    checkpoint_every: PositiveInt = 1000  # iterations between checkpoints
    panel_images: Annotated[int, Bounds(1, 100)] = 4  # rows of panel.png

    @property
    def stage2_student(self) -> str:
        """What stage 2 starts from: by default SimCLRv2 weights for the published target and with ``--simclr``."""
        return self.stage2_init or ("simclr" if self.simclr or self.target == "cityscapes" else "imagenet")

    def problems(self) -> Iterator[str]:
        """One line for each invalid combination of flags."""
        yield from super().problems()
        if self.scale != 1 and self.preset not in DEMONSTRATIONS:
            yield "--scale is for the presets streets and camvid; elsewhere --epochs or --iterations set the length"
        start, names = WITHOUT_EFFECT.get(self.preset, ("", ()))
        for name in names:
            if getattr(self, name) != getattr(Config, name):
                yield (
                    f"--{name} has no effect with --preset={self.preset}, in which {start} and --scale or --iterations "
                    "set the length"
                )
        yield from stage_flag_problems(self)

    def unused(self, names: Iterable[str]) -> Iterator[str]:
        """One line for each of these flags of a stage that is not run. A preset or a file may have such flags."""
        run = chosen(self)
        for name in names:
            stage = stage_called(name.partition(".")[0], all_stages(self))
            if stage and stage not in run and not (stage == "stage1_denoise" and CONTROL in run):
                yield f"--{name} has no effect: the stages to run are {', '.join(run)}"


PRESETS = {
    **EVALUATION_PRESETS,
    "streets": {field.name: STREETS[field.name] for field in fields(Config) if field.name in STREETS},
    "camvid": {field.name: CAMVID[field.name] for field in fields(Config) if field.name in CAMVID},
}


def run(local_rank: int, config: Config) -> dict:
    summary = run_stages(config)
    report(config, list(summary["stages"]))
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
    there = [stage for stage in DEMONSTRATION_STAGES if (folder / stage / "summary.json").is_file()]
    summary = {"stages": {stage: read_summary(folder / stage) for stage in there}}
    if idist.get_rank() == 0:
        save_json(summary, folder / "summary.json")
        save_json(run_record(config, {}), folder / RECORD_FILE)
    lines = [stage_table(summary["stages"]), control_sentence(summary["stages"])]
    lines.append(f"{folder / 'summary.json'}   tensorboard --logdir {folder}")
    print_once("".join(f"\n{line}\n" for line in lines if line))
    return summary


def report(config: Config, stages: list[str]) -> None:
    """Writes ``panel.png`` and ``report.html`` in rank 0. The results are on disk: an error here loses none of them."""
    if idist.get_rank() == 0:
        from proda.report.page import write_report  # not needed before, and --help should not wait for them
        from proda.report.panel import draw_panel

        file, device = Path(config.output) / "report.html", device_of(config)
        if (panel := draw_panel(config, stages, config.panel_images)) is not None:
            panel.save(file.with_name("panel.png"), optimize=True)
            print(file.with_name("panel.png"))
        print(write_report([config.output], file, device=device, num_workers=config.num_workers), flush=True)
    idist.barrier()


def all_stages(config: Config) -> tuple[str, ...]:
    return DEMONSTRATION_STAGES if config.preset in DEMONSTRATIONS else STAGES


def stage_called(name: str, stages: Iterable[str]) -> str:
    """The stage with this name or short name (``stage1``); empty if there is none."""
    return next((stage for stage in stages if name in (stage, stage.split("_")[0])), "")


def chosen(config: Config) -> list[str]:
    """The stages from ``--from_stage`` to ``--until``."""
    stages = all_stages(config)
    ends = []
    for flag, default in (("from_stage", stages[0]), ("until", stages[-1])):
        name = getattr(config, flag) or default
        stage = stage_called(name, stages)
        if not stage:
            raise UserError(f"--{flag}={name}: no such stage; expected one of {', '.join(stages)}")
        ends.append(stages.index(stage))
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
            Data(stage_config(config, "oracle"), data.domains).oracle_crops()
        except UserError as error:
            raise UserError(f"{error} (by the oracle; --until=stage3 leaves it out)") from None
    for stage in stages if config.stage_flags else ():  # without these flags, stages have the views of stage 1
        if stage not in ("stage1_denoise", "oracle"):
            data = Data(stage_config(config, stage), data.domains)
            try:
                data.training_batches(data.source_crops(), None if stage == "source_only" else data.target_views())
            except UserError as error:
                raise UserError(f"{stage}: {error}") from None


def check_stage2_init(config: Config) -> None:
    """Raises UserError now if stage 2 lacks its initial weights; that stage may start only days later."""
    if config.stage2_student == "simclr" and not Path(config.simclr).is_file():
        raise MissingFileError(
            f"--simclr={config.simclr}: no such file; stage 2 needs the converted SimCLRv2 r101 1x weights "
            "(alternatively, set --stage2_init=imagenet or --until=stage1)"
        )


def check_initial_weights(config: Config, stages: list[str]) -> None:
    """Raises UserError now if a file of initial weights does not fit the backbone of its stage."""
    given = [file for file in (config.init_file, config.simclr) if file]
    for stage in ("source_only", "warmup", "stage2_distill", "oracle"):
        values = stage_config(config, stage) if stage in stages else None
        if values is not None and values.init_file in given:
            fill_backbone(build_network(values.backbone, num_classes=1, head=values.head), values)


def stage_config(config: Config, stage: str) -> Any:
    """The settings of a stage."""
    module = load_experiment(experiment_file(stage))
    return make_config(module.Config, flags(config, stage), module.PRESETS)


def experiment_file(stage: str) -> str:
    file = {"oracle": "source_only", CONTROL: "stage1_denoise"}.get(stage, stage)
    return f"experiments/{file}.py"


def flags(config: Config, stage: str) -> dict:
    """The flags of a stage: those that the pipeline sets, then its own."""
    return pipeline_flags(config, stage) | own_flags(config, stage)


def own_flags(config: Config, stage: str) -> dict[str, Any]:
    """The flags of this stage alone. The control has those of stage 1, too: only its losses are to differ."""
    found: dict[str, Any] = {}
    if stage == CONTROL:
        found = {name: x for name, x in own_flags(config, "stage1_denoise").items() if name not in NO_TARGET_LOSS}
    for name, value in (config.stage_flags or {}).items():
        prefix, _, flag = name.partition(".")
        if stage_called(prefix, [stage]):
            found[flag] = value
    return found


def stage_flag_problems(config: Config) -> Iterator[str]:
    """One line for each flag of one stage that does not exist, has a wrong value, or is set by the pipeline."""
    stages, problems = all_stages(config), []
    for flag, value in (config.stage_flags or {}).items():
        prefix, _, name = flag.partition(".")
        if not (stage := stage_called(prefix, stages)):
            problems.append(f"--{flag}: no stage {prefix!r}; expected one of {', '.join(stages)}")
        elif instead := set_by_pipeline(config, stage, name):
            problems.append(f"--{flag}: the pipeline sets this; {instead}")
        else:
            try:
                read_flags(load_experiment(experiment_file(stage)).Config, {name: value}, f"{prefix}.")
            except UserError as error:
                problems.append(str(error))
    yield from problems
    for stage in () if problems else [stage for stage in stages if own_flags(config, stage)]:
        try:
            stage_config(config, stage)
        except UserError as error:  # flags that exclude each other
            yield f"{stage}: {error}"


def set_by_pipeline(config: Config, stage: str, name: str) -> str:
    """What to use instead of a flag that a stage may not have of its own; empty if it may."""
    if name in INSTEAD:
        return INSTEAD[name]
    values = pipeline_flags(config, stage)
    known = {field.name for field in fields(config)}
    if name in OF_ONE_STAGE or name not in known | values.keys():
        return ""
    value = Path(str(values.get(name)))
    if value.parent.parent == Path(config.output) and value.parent.name in all_stages(config):
        model = f"OUTPUT/{value.parent.name}/{value.name}"
        return f"put another model into {model}, and begin with --from_stage={stage}"
    if name == "init_file":
        return "use --init_file, or --simclr for stage 2"
    if name in known:
        return f"use --{name}, which is for all stages"
    return "use --stage2_init" if name in ("init", "bn_pretrain") else f"{name}={value} is what makes it the {stage}"


def pipeline_flags(config: Config, stage: str) -> dict:
    """The flags that the pipeline sets. Weights come from the previous stage; the preset determines their file name."""
    module, folder = load_experiment(experiment_file(stage)), Path(config.output)
    values = {name: getattr(config, name) for name in PASSED_ON} | {"output": str(folder / stage)}
    if config.iterations:
        values["iterations"] = config.iterations
    elif config.preset in DEMONSTRATIONS:
        longer = CAMVID_ORACLE if (stage, config.preset) == ("oracle", "camvid") else {}
        values |= scaled(module.PRESETS[config.preset] | longer, config.scale)
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
    if stage == "warmup" and config.preset in DEMONSTRATIONS:
        values["init_file"] = str(folder / "source_only" / "last.pt")
    elif stage in ("source_only", "warmup", "oracle"):
        values["init_file"] = config.init_file
    elif stage == "stage3_distill" or (stage == "stage2_distill" and config.preset == "streets"):
        values["init_file"] = str(before)
    elif stage == "stage2_distill":
        values["init"] = config.stage2_student
        values["bn_pretrain"] = config.stage2_student == "simclr"  # for the scale of SimCLR's features
        values["init_file"] = {"simclr": config.simclr, "imagenet": config.init_file}.get(config.stage2_student, "")
    if getattr(preset, "label_with", ""):
        values["label_with"] = str(folder / "warmup" / "last.pt")
    return values
