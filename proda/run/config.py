"""The fields of ``Config`` that experiments share. The defaults are the published values."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Literal

from proda.engines.optimization import MeanTeacherOptions, StudentOptions
from proda.settings.options import (
    SCALES,
    Bounds,
    Fraction,
    FractionBelowOne,
    LearningRate,
    NonNegativeFloat,
    NonNegativeInt,
    Options,
    PathText,
    PixelsOrZero,
    PositiveFraction,
    PositiveInt,
    ProcessCount,
)
from proda.utils.errors import UserError

HeadName = Literal["", "deeplab", "daformer", "light"]  # empty: that of the weights file, where there is one
InitKind = Literal["imagenet", "simclr", "random", "weights"]
BENCHMARKS = {"source": ("gta5", "synthia", "scenes"), "target": ("cityscapes", "camvid")}


@dataclass
class RunConfig(Options):
    """Fields of every experiment."""

    # -- Recipe
    preset: str = ""  # recipe: one of the presets listed above; other flags override its values
    seed: Annotated[int, Bounds(0, 2**31 - 1)] = 0  # seed of initial weights, data order, augmentation and dropout
    # -- Output
    output: PathText = ""  # output folder of the run; runs/<experiment> if empty
    # -- Machine
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda if available, else cpu
    num_workers: ProcessCount = 4  # data loading processes per training process; 0: no extra processes
    amp: Literal["off", "bf16", "fp16"] = "off"  # mixed precision
    compile: bool = False  # compile networks and losses with torch.compile (for GPUs; each image size is compiled anew)
    deterministic: bool = False  # use only deterministic algorithms, which are slower on a GPU
    nproc_per_node: ProcessCount = 0  # processes to start on this machine; 0: use the current process
    backend: Literal["", "nccl", "gloo"] = ""  # communication between processes; depends on the device if empty


@dataclass
class DataConfig(RunConfig):
    """Fields of every experiment that reads images."""

    # -- Recipe
    as_released: bool = False  # compute as the released code does where it departs from the paper (docs/fidelity.md)
    # -- Data
    data_root: PathText = ""  # folder with cityscapes/, gta5/, camvid/ ...; if empty, $PRODA_DATA or else data/
    source: PathText = "gta5"  # labelled synthetic domain: gta5, synthia, scenes, or a description file NAME.toml
    target: PathText = "cityscapes"  # unlabelled domain: cityscapes, camvid, or a description file (docs/own_data.md)
    num_classes: NonNegativeInt = 0  # 19, 16 or 13; 0: 19 for gta5, 16 for synthia, all classes of a description file
    skip_bad: PathText = ""  # file that lists images to skip, such as bad_files.txt written by check_data
    labelled_only: bool = False  # skip source images without a label map
    # -- Network
    backbone: str = "resnet101"  # resnet101, convnext_tiny, timm:NAME, a file NAME.py ... (docs/networks.md)
    head: HeadName = "deeplab"  # head of the network: ProDA's on DeepLab's, DAFormer's, or a light one for encoders
    # -- Machine
    val_batch_size: PositiveInt = 1  # images per evaluation step and process

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        for name, known in BENCHMARKS.items():
            value = getattr(self, name)
            if value not in (*known, getattr(type(self), name)) and not value.endswith(".toml"):
                yield f"--{name}={value}: expected one of {', '.join(map(repr, known))}, or a file NAME.toml"


@dataclass
class UseConfig(DataConfig):
    """Fields of every experiment that uses a trained network as its weights file describes it."""

    # -- Network
    weights: PathText = ""  # file of the network; it also says which backbone and which classes the network has
    source: PathText = ""  # gta5, synthia or a description file, whose classes the network has to have; may be empty
    backbone: str = ""  # backbone that the network has to have; may be empty, except for one of your own (NAME.py)
    head: HeadName = ""  # head that the network has to have; may be empty


@dataclass
class TrainConfig(StudentOptions, DataConfig):
    """Fields of every training stage."""

    # -- Data
    batch_size: PositiveInt = 4  # global batch size per domain in images, split over the processes
    mean_width: PixelsOrZero = 0  # mean width in pixels to which images are resized; 0: fits the target's images
    source_width: NonNegativeInt = 0  # mean width of the source's images in pixels; 0: --mean_width
    width_jitter: FractionBelowOne = 0.5  # relative range of the random resize: 0.5 is 0.5 to 1.5 times the mean width
    crop_width: PixelsOrZero = 0  # width in pixels of the crops taken from them; 0: fits the target's images
    crop_height: PixelsOrZero = 0  # height of the crops in pixels; 0: fits the target's images
    # -- Network
    dropout: FractionBelowOne = 0.1  # channel dropout before the classifier
    # -- Length
    epochs: PositiveInt = 84  # passes over the target training images
    iterations: NonNegativeInt = 0  # length of training in iterations; 0: use --epochs
    # -- Optimization
    lr: LearningRate = 2.5e-4  # learning rate of the backbone at the start of training
    head_lr_factor: NonNegativeFloat = 10.0  # ratio of the learning rates of head and backbone; 1: one parameter group
    optimizer: Literal["sgd", "adamw"] = "sgd"  # sgd with momentum 0.9; adamw decays no weights of norms and embeddings
    weight_decay: Fraction = 2e-4  # weight decay; AdamW's is 0.01 in most recipes
    warmup_iterations: NonNegativeInt = 0  # linear warm-up of the learning rate
    decay_power: Annotated[float, Bounds(0, 10)] = 0.9  # power of the polynomial decay of the learning rate
    schedule_iterations: NonNegativeInt = 0  # iteration at which the learning rate reaches zero; 0: the last iteration
    grad_clip: NonNegativeFloat = 0.0  # maximum gradient norm; 0: no clipping
    # -- Successors
    rare_class_sampling: bool = False  # draw source images with rare classes more often (docs/successors.md)
    feature_distance: NonNegativeFloat = 0.0  # weight of the distance to the initial backbone's features; 0: none
    thing_classes: str = ""  # classes that --feature_distance covers, separated by commas; if empty, objects
    # -- Output
    resume: bool = False  # continue from the last good checkpoint in the output folder
    overwrite: bool = False  # delete the files of an earlier run in the output folder
    val_every: PositiveInt = 1000  # iterations between validations
    checkpoint_every: PositiveInt = 1000  # iterations between full checkpoints
    log_every: PositiveInt = 50  # iterations between scalars written to TensorBoard
    plan: bool = False  # print the memory, disk space and time that the run will take, and end; nothing is written
    # -- Machine
    checkpoint_activations: bool = False  # keep less in memory: compute the backbone's stages again in backward passes

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.resume and self.overwrite:
            yield "--resume and --overwrite: one continues the run in the output folder, the other deletes it"
        if self.thing_classes and not self.feature_distance:
            yield "--thing_classes has no effect without --feature_distance"
        if self.as_released and self.optimizer != "sgd":
            yield "--as_released: the released code has --optimizer=sgd"


@dataclass
class AdaptConfig(TrainConfig):
    """Fields of every training stage that sees both domains."""

    # -- Network
    adabn: bool = False  # recompute batch-norm statistics on target images before each validation (AdaBN)

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.adabn and self.freeze_bn:
            yield "--adabn has no effect with --freeze_bn; set --freeze_bn=False or remove --adabn"


@dataclass
class PseudoLabelConfig(AdaptConfig):
    """Fields of every training stage that trains on pseudo labels of the target."""

    # -- Successors
    class_mix: bool = False  # paste classes of the source onto the target images that the student is trained on
    color_augmentation: bool = False  # change the colors of these target images, and blur them
    masked_consistency: NonNegativeFloat = 0.0  # weight of the loss on masked target images; 0: none
    # -- Output
    label_report_every: NonNegativeInt = 25  # iterations between label reports (docs/watching.md); 0: none


@dataclass
class MeanTeacherConfig(MeanTeacherOptions, PseudoLabelConfig):
    """Fields of every training stage whose teacher is the moving average of the student."""

    # -- Method
    teacher_momentum: PositiveFraction = 0.001  # weight of the student in the teacher's moving average
    # -- Output
    validate_teacher: bool = False  # validate the mean teacher as well as the student, and keep it as teacher.pt

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.adabn and self.teacher_mode == "eval":
            yield (
                "--teacher_mode=eval with --adabn: the teacher would normalize by statistics that are recomputed only "
                "at validations; choose one of the two"
            )


@dataclass
class InitConfig(TrainConfig):
    """Fields of every training stage that may start from pretrained weights."""

    # -- Network
    init: InitKind = "imagenet"  # initial weights: imagenet, simclr, random, or weights (all from --init_file)
    init_file: PathText = ""  # weights file for --init; if empty, torchvision or timm downloads its ImageNet weights

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        if self.head == "daformer" and self.freeze_bn and self.init != "weights":
            yield "--freeze_bn with --head=daformer: the batch norm of a fresh head has to learn; set --freeze_bn=False"


def parse_scales(text: str, flag: str = "scales") -> tuple[float, ...]:
    """Parses image scales separated by commas, each from 0.1 to 10. A UserError names the flag."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or not all(SCALES[0] <= value <= SCALES[1] for value in values):
        raise UserError(f"--{flag}={text}: expected numbers from {SCALES[0]} to {SCALES[1]}, separated by commas")
    return values
