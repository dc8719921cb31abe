"""Pretraining: contrastive learning of a backbone on images without labels.

The method is SimCLR (arXiv:2002.05709), whose weights the paper's stage 2 starts from, at two levels: whole views, and
regions of the part of the scene that both views show. SimCLR alone learns one vector for an image, and pictures of
streets hardly differ in that: nearly all show a road, cars and houses. Segmentation needs features that tell the places
of a picture apart. The second level is that of ReSim (arXiv:2103.12902) and of PixContrast (arXiv:2011.10043): a
region's partner is the same place in the other view, known from the crops, and all other regions of the batch are
negatives, those of the same image among them. The two losses are weighted as in DenseCL (arXiv:2011.09157). Unlike
these three, there is no second network with a moving average and no queue, because regions provide enough negatives
in a small batch.
"""

from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from proda.data.loaders import to_device
from proda.engines.events import proda_engine
from proda.engines.optimization import Precision
from proda.engines.options import ContrastiveOptions
from proda.engines.supervised import student_of, student_update
from proda.method.contrastive import nt_xent
from proda.method.tensors import to_float
from proda.metrics import ContrastiveScores
from proda.models.contrastive import ContrastiveNetwork, Embeddings


def contrastive_trainer(
    student: nn.Module,
    optimizer: torch.optim.Optimizer,
    precision: Precision,
    options: ContrastiveOptions | None = None,
) -> Engine:
    """The trainer of pretraining. ``student`` is a ``ContrastiveNetwork``, in a DDP wrapper if there are processes.

    Batches: ``{"source": {"views", "overlap", "flipped"}, "target": {...}}``, as ``ViewPairs`` makes them. Both domains
    are one set of N pairs of this process. With several processes, those of all are candidates.

    Output: ``loss`` and its parts ``loss_image``, ``loss_region`` (weighted); ``image_accuracy`` and
    ``region_accuracy``, shares of this process's embeddings that find their partner: scalars.
    ``engine.state.graph`` at ``LOSSES_READY``: ``images`` [2, N, D] and ``regions`` [2, N, R, D], embeddings of this
    process.
    """
    options = options or ContrastiveOptions()
    update = student_update(student, optimizer, precision, options)

    def step(engine: Engine, batch: dict[str, Any]) -> dict[str, Any]:
        engine.state.batch = batch = to_device(batch, precision.device)
        out: dict[str, Tensor] = {}
        engine.state.output = out
        update.start(engine)

        with precision.autocast():
            found: Embeddings = student(*network_inputs(batch))
        levels = {"image": found.images, "region": found.regions.flatten(1, 2)}
        weights = {"image": 1 - options.region_weight, "region": options.region_weight}
        losses = {}
        for (name, embeddings), gathered in zip(levels.items(), gather(*levels.values()), strict=True):
            place = idist.get_rank() * embeddings.shape[1]
            contrast = nt_xent(embeddings, options.temperature, all_embeddings=gathered, first=place)
            losses[name] = weights[name] * contrast.loss
            out[f"{name}_accuracy"] = contrast.accuracy
        update.backward(engine, losses, found._asdict())
        update.step(engine)
        return out

    return proda_engine(step, student=student_of(student), optimizer=optimizer, precision=precision)


def contrastive_evaluator(network: ContrastiveNetwork, precision: Precision, options: ContrastiveOptions) -> Engine:
    """The evaluator of pretraining.

    Batches: as ``ViewPairs`` makes them. Output: ``Embeddings`` of the network in evaluation mode. Its metric is
    ``contrastive``, see ``ContrastiveScores``. Afterwards the network returns to its previous mode.
    """

    @torch.no_grad()
    def step(engine: Engine, batch: dict[str, Any]) -> Embeddings:
        training = network.training
        network.eval()
        try:
            with precision.autocast():
                return network(*network_inputs({"pairs": to_device(batch, precision.device)}))
        finally:
            network.train(training)

    evaluator = Engine(step)
    ContrastiveScores(options.temperature, device=precision.device).attach(evaluator, "contrastive")
    return evaluator


def network_inputs(batch: dict[str, dict[str, Any]]) -> tuple[Tensor, Tensor, Tensor]:
    """``views`` float [N, 2, 3, H, W] in 0..1, ``overlap`` [N, 2, 4] and ``flipped`` [N, 2] of all domains together."""
    views, overlap, flipped = (
        torch.cat([pairs[key] for pairs in batch.values()]) for key in ("views", "overlap", "flipped")
    )
    return to_float(views), overlap, flipped


def gather(*levels: Tensor) -> tuple[Tensor, ...]:
    """The embeddings of all processes, [2, M, D] for each [2, N, D], with gradients; in the order of the ranks."""
    processes = idist.get_world_size()
    if processes == 1:
        return levels
    sizes = [level.shape[1] for level in levels]
    every = _Gather.apply(torch.cat(levels, dim=1))  # all levels in one exchange: [P, 2, sum of N, D]
    return tuple(level.transpose(0, 1).flatten(1, 2) for level in every.split(sizes, dim=2))


class _Gather(torch.autograd.Function):
    """Gathers a tensor of all processes, [P, ...]; its gradient is the sum of all processes' gradients for it.

    DDP divides the gradients of parameters by the number of processes, so the mean of the processes' losses is what is
    differentiated. (torch.distributed.nn.functional.all_gather does the same, and is deprecated.)
    """

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return idist.all_gather(tensor.contiguous()).unflatten(0, (-1, len(tensor)))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return idist.all_reduce(gradient.clone())[idist.get_rank()]
