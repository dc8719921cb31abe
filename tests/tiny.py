"""The smallest network and batches on which every engine runs, shared by the tests of engines and handlers."""

from typing import Any

import torch
from ignite.engine import Engine, Events
from torch import nn

from proda.engines.adversarial import AdversarialOptions, adversarial_trainer
from proda.engines.denoise import DenoiseOptions, denoise_trainer
from proda.engines.distill import DistillOptions, distill_trainer
from proda.engines.events import ProdaEvents, Trainer
from proda.engines.online import OnlineOptions, online_trainer
from proda.engines.optimization import Precision, StudentOptions
from proda.engines.supervised import supervised_trainer
from proda.method import IGNORE
from proda.method.views import Operation, StrongView, WeakView
from proda.models.build import build_network
from proda.models.discriminator import Discriminator
from proda.models.network import SegmentationNetwork

CPU = torch.device("cpu")
B, K = 2, 5  # images of a batch, classes
D = 32  # features of the network
H, W = 32, 64  # of a view
FULL = (48, 96)  # of a whole target image
PRECISION = Precision(CPU)
STAGES = ("supervised", "warmup", "stage1", "stage2", "online")  # of :func:`trainer`


def network(seed: int = 0, **options: Any) -> SegmentationNetwork:
    torch.manual_seed(seed)
    return build_network("tiny", K, **options)


def sgd(model: nn.Module, lr: float = 0.01) -> torch.optim.SGD:
    return torch.optim.SGD(model.parameters(), lr=lr)


def trainer(
    stage: str,
    student: nn.Module | None = None,
    teacher: nn.Module | None = None,
    *,
    precision: Precision = PRECISION,
    lr: float = 0.01,
    discriminator: Discriminator | None = None,
    prototypes: torch.Tensor | None = None,
    labeller: nn.Module | None = None,
    **options: Any,
) -> Trainer:
    """The trainer of a stage, with the options of its engine; the networks of student and teacher differ."""
    student, teacher = student or network(), teacher or network(1)
    optimizer = sgd(student, lr)
    if stage == "supervised":
        return supervised_trainer(student, optimizer, precision, StudentOptions(**options))
    if stage == "warmup":
        discriminator = discriminator or Discriminator(K, width=4)
        adam = torch.optim.Adam(discriminator.parameters(), lr=1e-3)
        return adversarial_trainer(student, discriminator, optimizer, adam, precision, AdversarialOptions(**options))
    if stage == "stage1":
        prototypes = torch.randn(K, D) if prototypes is None else prototypes
        return denoise_trainer(student, teacher, prototypes, optimizer, precision, DenoiseOptions(**options), labeller)
    if stage == "stage2":
        return distill_trainer(student, teacher, optimizer, precision, DistillOptions(**options))
    return online_trainer(student, teacher, optimizer, precision, OnlineOptions(**options))


def pictures(*size: int) -> torch.Tensor:
    return torch.randint(0, 256, (B, 3, *size), dtype=torch.uint8)


def batch() -> dict[str, Any]:
    """Everything that any stage reads; the crop of the weak view starts 8 pixels down and 16 to the right."""
    labels = torch.randint(0, K, (B, H, W), dtype=torch.uint8)
    labels[:, :4] = IGNORE
    same = torch.tensor([1, 1])
    weak = WeakView(48 * same, 96 * same, 8 * same, 16 * same, H * same, W * same, torch.tensor([False, True]))
    operations = torch.tensor([[Operation.TRANSLATE_X, Operation.NONE], [Operation.NONE, Operation.NONE]])
    strong = StrongView(torch.tensor([False, True]), operations, torch.tensor([[8.0, 0.0], [0.0, 0.0]]), cutout())
    target = {"image": pictures(H, W), "strong_image": pictures(H, W), "full_image": pictures(*FULL)}
    target |= {"weak_view": weak, "strong_view": strong, "name": ["a", "b"]}
    target |= {"soft_labels": torch.randn(B, K, H // 4, W // 4).softmax(1), "pseudo_labels": labels.clone()}
    return {"source": {"image": pictures(H, W), "labels": labels}, "target": target}


def cutout() -> torch.Tensor:
    return torch.tensor([[-1, -1, -1, -1], [8, 8, 23, 23]])


class Spy:
    """Which events fired, in order, and the keys of the output at each."""

    def __init__(self, trainer: Engine) -> None:
        self.names: list[str] = []
        self.keys: dict[str, set[str]] = {}
        for event in (Events.ITERATION_STARTED, *ProdaEvents, Events.ITERATION_COMPLETED):
            trainer.add_event_handler(event, self.note, event)

    def note(self, engine: Engine, event: Any) -> None:
        self.names.append(event.name)
        self.keys[event.name] = set(engine.state.output or {})


def assert_detached(output: dict[str, Any]) -> None:
    """Whoever keeps the output of an iteration must not keep its graph."""
    for name, value in output.items():
        assert isinstance(value, torch.Tensor), name
        assert value.grad_fn is None and not value.requires_grad, name


def shapes(output: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in output.items()}
