"""Networks and their optimizer, as the flags of an experiment specify them."""

import warnings
from typing import Any

import ignite.distributed as idist
import torch
from torch import nn

from proda.data.labels import LabelSpace
from proda.engines.optimization import Precision, StudentOptions
from proda.handlers.teacher import EMATeacher
from proda.models import weights
from proda.models.build import build_network, is_file, recorded_name
from proda.models.model_info import ModelInfo
from proda.models.network import SegmentationNetwork, freeze_batch_norm, parameter_groups
from proda.models.pretrained import load_imagenet, load_simclr
from proda.run.config import DataConfig, InitConfig, TrainConfig
from proda.utils.errors import UserError

MOMENTUM = 0.9  # of SGD


class Networks:
    """The networks of a run, on the device of this process.

    ``made`` holds those that were asked for: name ("student" or a flag) -> network.
    """

    def __init__(self, config: DataConfig, classes: LabelSpace, precision: Precision) -> None:
        self.config, self.classes, self.precision = config, classes, precision
        self.made: dict[str, nn.Module] = {}

    @property
    def device(self) -> torch.device:
        return self.precision.device

    def initial(self, *, bn_pretrain: bool = False) -> SegmentationNetwork:
        """The student with the initial weights that ``--init`` and ``--init_file`` select.

        Raises:
            UserError: the file does not fit the network.
            MissingFileError: ``--init_file`` does not exist.
        """
        config: Any = self.config
        if config.init == "weights":
            return self.load("init_file", name="student")
        options: dict[str, Any] = {"head": config.head, "bn_pretrain": bn_pretrain, "dropout": config.dropout}
        network = build_network(config.backbone, len(self.classes.names), **options)
        fill_backbone(network, config)
        return self._ready(network, "student")

    def load(
        self, flag: str = "weights", *, name: str = "", file: weights.Weights | None = None
    ) -> SegmentationNetwork:
        """The network with the weights in the file that ``--flag`` names, with the extra batch norm if it contains one.

        ``file`` is the content of that file if it has been read already; ``name``: key in ``made``, or else the flag.

        Raises:
            UserError: the file does not fit ``--backbone``, ``--head`` or the classes.
            MissingFileError: the file does not exist.
        """
        source = file or getattr(self.config, flag)
        return self._loaded(source, self.config.backbone, self.config.head, flag, name or flag)

    def frozen(self, flag: str) -> SegmentationNetwork:
        """A network that only predicts, with the weights in the file that ``--flag`` names.

        The file says its backbone and its head; ``--backbone`` and ``--head`` are the student's, and apply to
        files that do not name theirs.

        Raises:
            UserError: the file does not fit the classes, or holds a network of your own that is not ``--backbone``.
            MissingFileError: the file does not exist.
        """
        file = weights.read_weights(getattr(self.config, flag), flag=flag)
        backbone, head = architecture(file.info, self.config)
        if is_file(file.info.backbone) and not backbone:
            raise UserError(
                f"{file.path}: found weights of {file.info.backbone}, a network of your own; its student has to have "
                f"the same --backbone, found --backbone={self.config.backbone}"
            )
        return self._loaded(file, backbone, head, flag, flag)

    def mean_teacher(self, student: SegmentationNetwork, momentum: float, *, start_as_mean: bool = False) -> EMATeacher:
        """A moving average of the student; see ``EMATeacher``."""
        teacher = EMATeacher(student, momentum, start_as_mean=start_as_mean)
        compile_network(self.config, teacher.ema_model)  # a copy of a compiled network is not compiled
        return teacher

    def place(self, name: str, network: nn.Module) -> nn.Module:
        """Another network of the stage, such as a discriminator, on the device."""
        self.made[name] = network.to(self.device)
        return self.made[name]

    def _loaded(self, source: Any, backbone: str, head: str, flag: str, name: str) -> SegmentationNetwork:
        network = weights.load_network(
            source,
            backbone=backbone,
            head=head,
            class_names=self.classes.names,
            dropout=self.config.dropout if isinstance(self.config, TrainConfig) else 0.0,
            flag=flag,
        )
        return self._ready(network, name)

    def _ready(self, network: SegmentationNetwork, name: str) -> SegmentationNetwork:
        """The network on the device, laid out in memory and compiled as it will compute."""
        network.checkpoint_activations = isinstance(self.config, TrainConfig) and self.config.checkpoint_activations
        compile_network(self.config, network)
        self.made[name] = network = self._laid_out(network)
        return network

    def _laid_out(self, network: SegmentationNetwork) -> SegmentationNetwork:
        return network.to(self.device).to(memory_format=torch.channels_last)


def fill_backbone(network: SegmentationNetwork, config: InitConfig) -> None:
    """Loads what ``--init`` selects; "random" leaves the network as it is."""
    if config.init == "imagenet":
        network.pretrained = load_imagenet(network, config.init_file or None)
    elif config.init == "simclr":
        if not config.init_file:
            raise UserError("--init=simclr needs --init_file: the converted SimCLRv2 r101 1x weights")
        network.pretrained = load_simclr(network, config.init_file)


def architecture(info: ModelInfo, config: DataConfig) -> tuple[str, str]:
    """Backbone and head of a network that is described by ``info``, and by ``config`` where that says nothing.

    A network of your own (``NAME.py``) is executed only from the path in ``--backbone``, whatever a file says.
    """
    if not info.backbone or info.backbone == recorded_name(config.backbone):
        return config.backbone, info.head or config.head
    return ("" if is_file(info.backbone) else info.backbone), info.head


def compile_network(config: DataConfig, network: nn.Module) -> None:
    """Makes the network's forward pass a compiled one with ``--compile``; copies of it are not compiled.

    The network stays the same object with the same state dict. Call it before the network is wrapped.
    """
    if config.compile:
        network.compile(dynamic=False)


def make_optimizer(config: TrainConfig, network: SegmentationNetwork) -> torch.optim.Optimizer:
    """The optimizer of ``--optimizer``, with a learning rate ``--head_lr_factor`` times as high for the head."""
    repeat = config.as_released and config.head_lr_factor != 1
    groups = parameter_groups(
        network,
        config.lr,
        head_factor=config.head_lr_factor,
        repeat_backbone=repeat,
        spare_norms=config.optimizer == "adamw",
    )
    # One kernel for the whole step. It would hide from OPTIMIZER_STEPPED that loss scaling skipped a step.
    on_gpu = next(network.parameters()).device.type == "cuda"
    fused = True if on_gpu and config.amp != "fp16" and not repeat else None
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, weight_decay=config.weight_decay, fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=MOMENTUM, weight_decay=config.weight_decay, fused=fused)


def synchronizes_batch_norm(config: StudentOptions, device: torch.device) -> bool:
    """Whether batch statistics are those of all processes. PyTorch's synchronized batch norm needs a GPU."""
    return not config.freeze_bn and device.type == "cuda"


def parallel(config: StudentOptions, network: nn.Module) -> nn.Module:
    """The network; with several processes it is wrapped to average gradients over them (DDP)."""
    if config.freeze_bn:
        freeze_batch_norm(network)  # before DDP, which expects a gradient for every trainable parameter
    if idist.get_world_size() == 1:
        return network
    sync_bn = synchronizes_batch_norm(config, next(network.parameters()).device)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers`")  # older torch does not know its new name
        # Broadcasting buffers would overwrite batch-norm statistics between two forward passes of one backward pass.
        return idist.auto_model(network, sync_bn=sync_bn, broadcast_buffers=False)
