"""Training on labels: the source-only lower bound and, on target labels, the oracle."""

from typing import Any

import torch
from ignite.engine import Engine
from torch import Tensor, nn

from proda.data.loaders import to_device
from proda.engines.events import ProdaEvents, proda_engine
from proda.engines.step import Precision, images, learn, mean_over_processes, move, resize
from proda.method import IGNORE
from proda.method.losses import cross_entropy


def source_backward(engine: Engine, student: nn.Module, source: dict[str, Any], precision: Precision) -> Tensor:
    """Cross entropy on the labelled batch at full crop resolution, and its gradients.

    Adds to ``engine.state.output``: ``loss_source`` scalar, ``source_logits`` [B, K, H, W] float32.
    Returns the upsampled logits, with their graph freed.
    """
    labels = source["labels"].long()
    with precision.autocast():
        logits = student(images(source)).logits
    logits = resize(logits, labels.shape[-2:])
    loss = cross_entropy(logits, labels, pixels=mean_over_processes((labels != IGNORE).sum()))
    precision.backward(loss)
    engine.state.output.update(loss_source=loss.detach(), source_logits=logits.detach())
    engine.fire_event(ProdaEvents.SOURCE_BACKWARD_DONE)
    return logits.detach()


def supervised_trainer(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    device: torch.device,
    *,
    freeze_bn: bool = False,
) -> Engine:
    """Batches: ``{"source": {"image", "labels"}}``. Output: ``loss``, ``loss_source``, ``source_logits``."""

    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        batch = to_device(batch, device)
        engine.state.batch, engine.state.output = batch, {}
        learn(student, freeze_bn=freeze_bn)
        optimizer.zero_grad(set_to_none=True)
        source_backward(engine, student, batch["source"], precision)
        engine.state.output.update(loss=engine.state.output["loss_source"])
        move(engine, student, optimizer, precision)
        return engine.state.output

    return proda_engine(step)
