"""From samples to batches: the order of the samples, and the processes that load them.

Every random number of a sample comes from a generator seeded with (seed, domain, iteration, position in the global
batch), and the order of an epoch from (seed, domain, epoch). So the batches of an iteration are the same on any number
of processes and workers and after a resume at any iteration, and no state has to be saved.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset, default_collate

from proda.data.samples import SampleIndex
from proda.data.workers import Loader, tensors
from proda.utils.errors import UserError

# First number of every seed. NumPy takes (1, 2) and (1, 2, 0) for the same seed, so the kinds must not share it.
_ORDER, _VIEWS = 1, 2
_DOMAINS = ("source", "target")  # their numbers in seeds are 0 and 1
SAME_SIZE_NEEDED = "whole images of one batch must have one size (own data: size = [width, height] in the description)"


class GlobalBatches:
    """Batch sampler: this process's share of the global batches of iterations ``start_iteration``..``iterations``-1.

    Epochs are permutations of all samples, without the incomplete batch at the end of each (as in the released code).
    Process ``rank`` of ``world_size`` takes one contiguous part of each global batch. Yields lists of ``SampleIndex``.

    Args:
        global_batch_size: divisible by ``world_size``, and at most ``num_samples``.
        seed: one or more non-negative numbers; those of two samplers must differ for independent draws.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        *,
        seed: int | tuple[int, ...],
        iterations: int,
        start_iteration: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.seed = (seed,) if isinstance(seed, int) else tuple(seed)
        self.iterations = iterations
        self.start_iteration = start_iteration
        self.rank = rank
        self.world_size = world_size

    @property
    def batches_per_epoch(self) -> int:
        return self.num_samples // self.global_batch_size

    def __len__(self) -> int:
        return max(0, self.iterations - self.start_iteration)

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        share = self.global_batch_size // self.world_size
        epoch = None
        for iteration in range(self.start_iteration, self.iterations):
            if epoch != iteration // self.batches_per_epoch:
                epoch = iteration // self.batches_per_epoch
                order = np.random.default_rng((_ORDER, *self.seed, epoch)).permutation(self.num_samples)
            first = iteration % self.batches_per_epoch * self.global_batch_size
            positions = range(self.rank * share, (self.rank + 1) * share)
            yield [SampleIndex(int(order[first + p]), (_VIEWS, *self.seed, iteration, p)) for p in positions]


class TrainingBatches:
    """The batches of a whole training run, and its length.

    ``epoch_length``: iterations of one pass over the target images (the source's where there is no target); the
    incomplete last batch is dropped. ``iterations``: of the run. Each batch is ``{"source": ..., "target": ...}``.

    Args:
        source: a ``SourceTraining``, or None; as with ``target``, batches then have no such key.
        target: a ``TargetTraining``, or None.
        batch_size: images of each domain in one global batch; a process gets its share.
        iterations: length of the run; 0 for ``epochs`` passes.
        options: ``num_workers`` and ``pin_memory`` of a DataLoader.

    Raises UserError if ``batch_size`` cannot be split over the processes, or exceeds a data set.
    """

    def __init__(
        self,
        source: Any | None,
        target: Any | None,
        *,
        batch_size: int,
        epochs: int = 1,
        iterations: int = 0,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        **options: Any,
    ) -> None:
        if batch_size % world_size:
            raise UserError(f"--batch_size={batch_size} cannot be split evenly over {world_size} processes")
        self.domains = {name: data for name, data in zip(_DOMAINS, (source, target), strict=True) if data is not None}
        for name, dataset in self.domains.items():
            if len(dataset) < batch_size:
                raise UserError(f"--batch_size={batch_size} exceeds the {len(dataset)} training images of the {name}")
        self.target, self.batch_size = target, batch_size
        self.epoch_length = len(self.domains["target" if target is not None else "source"]) // batch_size
        self.iterations = iterations or epochs * self.epoch_length
        self.seed, self.rank, self.world_size, self.options = seed, rank, world_size, options

    @property
    def images_per_iteration(self) -> int:
        """Images of both domains in one global iteration."""
        return self.batch_size * len(self.domains)

    def loader(self, start: int = 0) -> Loader:
        """Batches from iteration ``start`` to the end of the run, in one pass; every pass is the same."""
        samplers = {
            name: GlobalBatches(
                len(dataset),
                self.batch_size,
                seed=(self.seed, _DOMAINS.index(name)),
                iterations=self.iterations,
                start_iteration=start,
                rank=self.rank,
                world_size=self.world_size,
            )
            for name, dataset in self.domains.items()
        }
        return Loader(
            PairedDataset(self.domains), batch_sampler=PairedBatches(samplers), collate_fn=collate, **self.options
        )


def training_batches(source: Any | None, target: Any | None, *, start_iteration: int = 0, **options: Any) -> Loader:
    """The batches of :class:`TrainingBatches`, whose ``options`` these are, from ``start_iteration`` on."""
    return TrainingBatches(source, target, **options).loader(start_iteration)


def evaluation_loader(dataset: Dataset, *, rank: int = 0, world_size: int = 1, **options: Any) -> Loader:
    """Each sample once over all processes, in order; process ``rank`` takes every ``world_size``-th from its own on.

    No sample is repeated to make shares equal, so that sums over processes are exact; shares differ by one at most.
    ``options``: ``batch_size``, ``num_workers`` and ``pin_memory`` of a DataLoader.
    """
    share = Subset(dataset, range(rank, len(dataset), world_size))  # type: ignore[arg-type]
    return Loader(share, **{"collate_fn": collate, **options})


def collate(samples: list[dict[str, Any]]) -> dict[str, Any]:
    """``default_collate``, which keeps dicts and NamedTuples, with a clear error if images differ in size."""
    try:
        return default_collate(samples)
    except RuntimeError as error:
        examples = {_size(sample): sample.get("target", sample)["name"] for sample in samples}
        if len(examples) < 2:  # the cause is another, such as a full /dev/shm
            raise
        found = " and ".join(f"{size} ({name})" for size, name in sorted(examples.items()))
        raise UserError(f"found images of {found}; {SAME_SIZE_NEEDED}") from error


def to_device(batch: Any, device: torch.device | str) -> Any:
    """Moves every tensor in dicts and NamedTuples; the rest stays.

    To a GPU it does so without waiting, where memory is pinned. To the CPU it waits, since the values may be read at
    once.
    """
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=torch.device(device).type != "cpu")
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(to_device(value, device) for value in batch))
    return batch


def prefetched(batches: Iterable[Any], device: torch.device) -> Iterable[Any]:
    """The batches on ``device``; on a GPU, the next one is copied while the program computes with the last one."""
    return batches if device.type == "cpu" else _Prefetched(batches, device)


class _Prefetched:
    """Copies on a stream of its own. Memory has to be pinned, or the copies wait for the GPU."""

    def __init__(self, batches: Iterable[Any], device: torch.device) -> None:
        self.batches, self.device = batches, device

    def __iter__(self) -> Iterator[Any]:
        copies, batches = torch.cuda.Stream(self.device), iter(self.batches)

        def copy_next() -> Any:
            with torch.cuda.stream(copies):
                return to_device(next(batches, None), self.device)

        batch = copy_next()
        while batch is not None:
            computing = torch.cuda.current_stream(self.device)
            computing.wait_stream(copies)
            for tensor in tensors(batch):
                tensor.record_stream(computing)  # so that its memory is not reused while the computation needs it
            yield batch  # the caller queues its work and comes back while the GPU is busy with it
            batch = copy_next()


class PairedDataset(Dataset):
    """One sample of each domain at once, so that one set of workers serves both evenly."""

    def __init__(self, domains: dict[str, Dataset]) -> None:
        self.domains = domains

    def __getitem__(self, samples: dict[str, SampleIndex]) -> dict[str, dict[str, Any]]:
        return {key: self.domains[key][sample] for key, sample in samples.items()}


class PairedBatches:
    """The samplers of the domains, step by step: lists of {domain: SampleIndex}."""

    def __init__(self, samplers: dict[str, GlobalBatches]) -> None:
        self.samplers = samplers

    def __len__(self) -> int:
        return min(map(len, self.samplers.values()))

    def __iter__(self) -> Iterator[list[dict[str, SampleIndex]]]:
        for batches in zip(*self.samplers.values(), strict=True):
            yield [dict(zip(self.samplers, samples, strict=True)) for samples in zip(*batches, strict=True)]


def _size(sample: dict[str, Any]) -> str:
    """Size of the image that is no crop, for the message about sizes that differ."""
    item = sample.get("target", sample)
    image = item.get("full_image", item["image"])
    return f"{image.shape[2]}x{image.shape[1]}"
