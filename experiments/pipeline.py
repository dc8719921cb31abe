"""From ImageNet weights through every stage to the final table: one command.

    python run.py experiments/pipeline.py --source=gta5 --simclr=r101_1x_sk0.pth
    python run.py experiments/pipeline.py --preset=synthia_released --simclr=r101_1x_sk0.pth --nproc_per_node=4
    python run.py experiments/pipeline.py --source=my_simulator.toml --target=my_photos.toml --stage2_init=imagenet

The same command again skips every stage whose output is up to date and resumes the one that was cut short. Each stage
is in OUTPUT/STAGE, and what it depends on in its inputs.json.
"""

from dataclasses import dataclass, fields
from pathlib import Path

import ignite.distributed as idist

from proda.experiment.config import SOURCES, STREETS, DataConfig, make_config, pick
from proda.experiment.job import read_summary
from proda.experiment.launch import load_experiment
from proda.experiment.tables import stage_table
from proda.experiment.up_to_date import print_once, run_if_outdated
from proda.utils.files import save_json

STAGES = ("warmup", "stage1_denoise", "stage2_distill", "stage3_distill")
# Streets has no downloads: a network trained on its source stands in for ImageNet weights, stage 1's for SimCLR's. It
# is small enough to train the oracle too, a yardstick.
STREETS_STAGES = ("source_only", *STAGES, "oracle")
PASSED_ON = (
    *("preset", "source", "target", "num_classes", "backbone", "val_batch_size", "seed", "device", "num_workers"),
    *("amp", "deterministic", "data_root", "batch_size", "epochs", "mean_width", "crop_width", "crop_height"),
    "checkpoint_every",
)


@dataclass
class Config(DataConfig):
    from_stage: str = ""  # first stage to do; those before it are taken as they are
    until: str = ""  # last stage to do
    init_file: str = ""  # ImageNet weights that the warm-up starts from; torchvision's own if empty
    simclr: str = ""  # SimCLRv2 r101 1x weights, converted to PyTorch, that the student of stage 2 starts from
    stage2_init: str = "simclr"  # where that student starts: simclr, or imagenet or random where there is no such file
    overwrite: bool = False  # do stages of other inputs anew
    batch_size: int = 4  # global batch of each domain, split over the processes
    epochs: int = 84  # passes of each stage over the target training images
    iterations: int = 0  # length of each stage in iterations instead, if above 0
    mean_width: int = 2200  # a view is the image resized to 0.5..1.5 times this width, then cropped
    crop_width: int = 896  # pixels
    crop_height: int = 512  # pixels
    checkpoint_every: int = 1000  # iterations between full checkpoints


PRESETS = {
    **SOURCES,
    "streets": {field.name: STREETS[field.name] for field in fields(Config) if field.name in STREETS},
}


def run(local_rank: int, config: Config) -> dict:
    folder, todo = Path(config.output), chosen(config)
    if "stage2_distill" in todo and config.preset != "streets":
        check_stage2_init(config)
    if config.init_file and not Path(config.init_file).is_file():
        raise FileNotFoundError(f"--init_file={config.init_file}: no such file; expected ImageNet weights")
    for number, stage in enumerate(todo, 1):
        print_once(f"\n[{number}/{len(todo)}] {stage}")
        run_if_outdated(experiment_file(stage), flags(config, stage), overwrite=config.overwrite)
    there = [stage for stage in STREETS_STAGES if (folder / stage / "summary.json").is_file()]
    summary = {"stages": {stage: read_summary(folder / stage) for stage in there}}
    if idist.get_rank() == 0:
        save_json(summary, folder / "summary.json")
    print_once(f"\n{stage_table(summary['stages'])}\n\n{folder / 'summary.json'}   tensorboard --logdir {folder}")
    return summary


def chosen(config: Config) -> list[str]:
    """The stages from ``--from_stage`` to ``--until``."""
    stages = STREETS_STAGES if config.preset == "streets" else STAGES
    ends = []
    for flag, default in (("from_stage", stages[0]), ("until", stages[-1])):
        name = getattr(config, flag) or default
        found = [stage for stage in stages if name in (stage, stage.split("_")[0])]
        if not found:
            raise ValueError(f"--{flag}={name}: no such stage; expected one of {', '.join(stages)}")
        ends.append(stages.index(found[0]))
    if ends[0] > ends[1]:
        raise ValueError(f"--from_stage={config.from_stage} comes after --until={config.until}: nothing to do")
    return list(stages[ends[0] : ends[1] + 1])


def check_stage2_init(config: Config) -> None:
    """Now, not after the days that the stages before it take."""
    if config.stage2_init not in ("simclr", "imagenet", "random"):
        raise ValueError(f"--stage2_init={config.stage2_init}: expected simclr, imagenet or random")
    if config.stage2_init == "simclr" and not Path(config.simclr).is_file():
        raise FileNotFoundError(
            f"--simclr={config.simclr}: no such file; stage 2 needs the converted SimCLRv2 r101 1x weights "
            "(or --stage2_init=imagenet, or --until=stage1)"
        )


def experiment_file(stage: str) -> str:
    return f"experiments/{'source_only' if stage == 'oracle' else stage}.py"


def flags(config: Config, stage: str) -> dict:
    """The command line of a stage. Its weights come from the stage before, under the file name its preset has."""
    module, folder = load_experiment(experiment_file(stage)), Path(config.output)
    values = pick(config, *PASSED_ON) | {"output": str(folder / stage)}
    if config.iterations:
        values["iterations"] = config.iterations
    preset = make_config(module.Config, values, module.PRESETS)
    if stage in STAGES[1:]:
        before = folder / STAGES[STAGES.index(stage) - 1] / Path(preset.weights).name
        values["weights"] = str(before)
    if stage == "oracle":
        values["train_on"] = "target"
    elif stage == "stage3_distill" or (stage == "stage2_distill" and config.preset == "streets"):
        values["init_file"] = str(before)
    elif stage == "warmup":
        start = folder / "source_only" / "last.pt"
        values["init_file"] = str(start) if config.preset == "streets" else config.init_file
    elif stage == "stage2_distill":
        values["init"] = config.stage2_init
        values["bn_pretrain"] = config.stage2_init == "simclr"  # it is for the scale of self-supervised features
        values["init_file"] = {"simclr": config.simclr, "imagenet": config.init_file}.get(config.stage2_init, "")
    return values
