from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset

from proda.data.labelled_files import Example
from proda.data.loaders import GlobalBatches, TrainingBatches, collate, evaluation_loader, to_device, training_batches
from proda.data.samples import EvaluationSamples, SampleIndex, SourceTraining, TargetTraining
from proda.method import IGNORE
from proda.method.views import StrongView, WeakView
from proda.utils.errors import MissingFileError, UserError

CROP = {"mean_width": 80, "crop_height": 16, "crop_width": 32}  # for images of 64 x 32


class Scenes(Dataset):
    """Images whose red is the column and whose green is the row, labelled by quadrant."""

    def __init__(self, count: int = 6, sizes=((64, 32),), labelled: bool = True) -> None:
        self.count, self.sizes, self.labelled = count, sizes, labelled

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example:
        width, height = self.sizes[index % len(self.sizes)]
        y, x = np.mgrid[:height, :width]
        pixels = np.stack([x * 255 // (width - 1), y * 255 // (height - 1), x * 0 + index], 2).astype(np.uint8)
        labels = (2 * (y >= height // 2) + (x >= width // 2)).astype(np.uint8)
        image = Image.fromarray(pixels)
        return Example(image, labels if self.labelled else None, f"scene_{index}", image.size)


class SoftStore:
    """Two channels that hold the column and the row, 0..1, at an eighth of the image."""

    def read(self, name: str) -> torch.Tensor:
        y, x = torch.meshgrid(torch.linspace(0, 1, 5), torch.linspace(0, 1, 9), indexing="ij")
        return torch.stack([x, y]).half()


class HardStore:
    """The quadrants, sure in the left half of the image only."""

    def __init__(self, confident: float = 0.96, size=(32, 64)) -> None:
        self.confident, self.size = confident, size

    def read(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        height, width = self.size
        x = torch.arange(width).expand(height, width)
        labels = torch.from_numpy(Scenes()[0].labels) if self.size == (32, 64) else torch.zeros(self.size).byte()
        return labels, torch.where(x < width // 2, self.confident, 0.5).half()


def batches(start: int = 0, iterations: int = 6, workers: int = 0, **processes):
    target = TargetTraining(Scenes(7), **CROP, full_image=True, strong=True, soft_labels=SoftStore())
    return training_batches(
        SourceTraining(Scenes(6), **CROP),
        target,
        batch_size=4,
        iterations=iterations,
        start_iteration=start,
        seed=3,
        num_workers=workers,
        **processes,
    )


def flat(batch) -> dict:
    """Tensors and lists of a nested batch by their path."""
    if isinstance(batch, dict):
        return {f"{key}.{path}": value for key, part in batch.items() for path, value in flat(part).items()}
    if hasattr(batch, "_fields"):
        return flat(batch._asdict())
    return {"": batch}


def same(one, two) -> bool:
    one, two = flat(one), flat(two)
    return one.keys() == two.keys() and all(
        torch.equal(one[k], two[k]) if torch.is_tensor(one[k]) else one[k] == two[k] for k in one
    )


@pytest.mark.parametrize("seed", range(3))
def test_labels_of_a_crop_lie_where_its_image_says(seed):
    sample = SourceTraining(Scenes(), **CROP)[SampleIndex(0, (seed,))]
    assert set(sample) == {"image", "labels", "name"} and sample["name"] == "scene_0"
    assert sample["image"].shape == (3, 16, 32) and sample["image"].dtype == sample["labels"].dtype == torch.uint8
    column, row = sample["image"][0].int(), sample["image"][1].int()
    clear = ((column - 127).abs() > 9) & ((row - 127).abs() > 9)  # away from the border of quadrants
    expected = 2 * (row > 127) + (column > 127)
    assert clear.float().mean() > 0.5 and (sample["labels"] == expected)[clear].all()


def test_a_source_without_labels_is_refused_by_name():
    with pytest.raises(ValueError, match="source example scene_1 has no label map"):
        SourceTraining(Scenes(labelled=False), **CROP)[SampleIndex(1, (0,))]


def test_a_target_sample_has_what_was_asked_for_and_never_the_labels_of_its_data_set():
    plain = TargetTraining(Scenes(), **CROP)[SampleIndex(0, (0,))]
    assert set(plain) == {"image", "name", "weak_view"}
    full = TargetTraining(
        Scenes(), **CROP, full_image=True, strong=True, soft_labels=SoftStore(), pseudo_labels=HardStore()
    )[SampleIndex(0, (0,))]
    extra = {"full_image", "strong_image", "strong_view", "soft_labels", "pseudo_labels"}
    assert set(full) == set(plain) | extra
    assert same(plain, {key: full[key] for key in plain})  # what else is asked for does not move the weak view
    assert full["full_image"].shape == (3, 32, 64) and full["strong_image"].shape == (3, 16, 32)
    assert full["soft_labels"].shape == (2, 4, 8) and full["pseudo_labels"].shape == (16, 32)
    assert isinstance(full["weak_view"], WeakView) and isinstance(full["strong_view"], StrongView)


@pytest.mark.parametrize("seed", range(3))
def test_soft_labels_of_a_weak_view_lie_where_its_image_says(seed):
    sample = TargetTraining(Scenes(), **CROP, soft_labels=SoftStore())[SampleIndex(0, (seed,))]
    rows, columns = torch.linspace(0, 15, 4).round().long(), torch.linspace(0, 31, 8).round().long()
    seen = sample["image"][:2][:, rows][:, :, columns] / 255  # corners aligned: first and last pixels are shared
    assert (sample["soft_labels"] - seen).abs().max() < 0.05


def test_the_threshold_is_exact_unless_the_released_rule_is_asked_for():
    exact = TargetTraining(Scenes(), **CROP, pseudo_labels=HardStore(0.9502), threshold=0.95)
    released = TargetTraining(
        Scenes(), **CROP, pseudo_labels=HardStore(0.9502), threshold=0.95, threshold_as_released=True
    )
    kept = [
        (data[SampleIndex(0, (s,))]["pseudo_labels"] != IGNORE).any() for data in (exact, released) for s in range(5)
    ]
    assert any(kept[:5]) and not any(kept[5:])
    for seed in range(5):  # the confident half alone has labels
        sample = exact[SampleIndex(0, (seed,))]
        column, labels = sample["image"][0].int(), sample["pseudo_labels"]
        assert (labels[column > 140] == IGNORE).all() and (labels[column < 115] < 4).all()


def test_stored_pseudo_labels_of_another_size_are_refused():
    data = TargetTraining(Scenes(), **CROP, pseudo_labels=HardStore(size=(16, 32)))
    with pytest.raises(ValueError, match=r"^stored pseudo labels of scene_0 are 32x16, expected 64x32$"):
        data[SampleIndex(0, (0,))]


def test_evaluation_samples_are_whole_images_with_labels_if_there_are_any():
    sample = EvaluationSamples(Scenes())[3]
    assert sample["image"].shape == (3, 32, 64) and sample["labels"].shape == (32, 64) and sample["name"] == "scene_3"
    assert sample["image"][0, 0, -1] == 255 and sample["image"][1, -1, 0] == 255
    assert set(EvaluationSamples(Scenes(labelled=False))[0]) == {"image", "name", "file_size"}


def test_an_epoch_shows_each_image_once_and_epochs_differ_in_order():
    sampler = GlobalBatches(9, 4, seed=0, iterations=40)
    order = [[s.index for s in batch] for batch in sampler]
    epochs = [order[i] + order[i + 1] for i in range(0, 40, 2)]  # 9 // 4 batches, the ninth image waits
    assert all(len(set(epoch)) == 8 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 20
    assert set().union(*epochs) == set(range(9))


def test_processes_share_the_global_batches_of_one():
    whole = list(GlobalBatches(10, 4, seed=5, iterations=7))
    parts = [list(GlobalBatches(10, 4, seed=5, iterations=7, rank=r, world_size=4)) for r in range(4)]
    assert [[sample for part in parts for sample in part[i]] for i in range(7)] == whole


def test_no_two_samples_share_a_seed():
    seeds = [s.seed for n in (0, 1) for batch in GlobalBatches(4, 2, seed=(0, n), iterations=9) for s in batch]
    assert len({np.random.default_rng(seed).random() for seed in seeds}) == len(seeds) == 36
    one, two = (next(iter(GlobalBatches(50, 4, seed=seed, iterations=3))) for seed in (0, 1))
    assert [sample.index for sample in one] != [sample.index for sample in two]


def test_a_batch_that_processes_cannot_share_is_refused():
    with pytest.raises(UserError, match=r"^--batch_size=6 cannot be split evenly over 4 processes$"):
        TrainingBatches(range(10), range(10), batch_size=6, world_size=4)


def test_source_and_target_draw_apart_and_either_may_be_missing():
    first = next(iter(batches()))
    assert set(first) == {"source", "target"} and len(first["target"]["name"]) == 4
    assert first["source"]["image"].shape == (4, 3, 16, 32) and first["source"]["image"].is_contiguous()
    assert all(field.shape == (4,) for field in first["target"]["weak_view"])
    assert first["target"]["strong_view"].operations.shape == (4, 2)
    for batch in batches():
        assert batch["source"]["name"] != batch["target"]["name"]
        assert not torch.equal(batch["source"]["image"], batch["target"]["image"])
    loader = training_batches(SourceTraining(Scenes(), **CROP), None, batch_size=2, iterations=1)
    assert [set(batch) for batch in loader] == [{"source"}]


def test_a_resumed_run_sees_the_batches_that_were_to_come():
    assert all(map(same, list(batches())[4:], batches(start=4))) and len(batches(start=4)) == 2


def test_workers_change_nothing():
    assert all(map(same, batches(), batches(workers=2)))


def test_batches_of_two_processes_together_are_those_of_one():
    parts = [list(batches(rank=rank, world_size=2)) for rank in range(2)]
    for i, whole in enumerate(batches()):
        for path, value in flat(whole).items():
            one, two = (flat(part[i])[path] for part in parts)
            assert torch.equal(torch.cat([one, two]), value) if torch.is_tensor(value) else one + two == value


@pytest.mark.parametrize("world_size", [1, 3, 7])
def test_evaluation_shows_each_image_once_over_all_processes(world_size):
    names = [
        name
        for rank in range(world_size)
        for batch in evaluation_loader(EvaluationSamples(Scenes(5)), rank=rank, world_size=world_size)
        for name in batch["name"]
    ]
    assert sorted(names) == [f"scene_{i}" for i in range(5)]


def test_images_of_two_sizes_in_one_batch_are_refused_by_name():
    data = TargetTraining(Scenes(2, sizes=((64, 32), (72, 36))), **CROP, full_image=True)
    samples = [{"target": data[SampleIndex(i, (0,))]} for i in range(2)]
    with pytest.raises(ValueError) as caught:
        collate(samples)
    assert str(caught.value).startswith("found images of 64x32 (scene_0) and 72x36 (scene_1); ")


def test_images_of_one_size_are_not_blamed_for_a_failure_of_another_cause(monkeypatch):
    def fail(_):
        raise RuntimeError("unable to allocate shared memory")

    monkeypatch.setattr("proda.data.loaders.default_collate", fail)
    data = TargetTraining(Scenes(2), **CROP, full_image=True)
    with pytest.raises(RuntimeError, match="unable to allocate shared memory"):
        collate([{"target": data[SampleIndex(i, (0,))]} for i in range(2)])


class Broken(Scenes):
    def __init__(self, kind: type[Exception]) -> None:
        super().__init__()
        self.kind = kind

    def __getitem__(self, index: int) -> Example:
        raise self.kind(f"{Path('data/scene.png')}: not a complete image (cut short)")


@pytest.mark.parametrize(("workers", "kind"), [(0, UserError), (1, ValueError), (1, UserError), (1, MissingFileError)])
def test_an_error_about_a_file_stays_one_line_whoever_reads_it(workers, kind):
    loader = evaluation_loader(EvaluationSamples(Broken(kind)), num_workers=workers)
    with pytest.raises(kind) as caught:
        list(loader)
    assert type(caught.value) is kind and str(caught.value) == "data/scene.png: not a complete image (cut short)"


def test_to_device_moves_tensors_wherever_they_are_and_keeps_the_rest():
    batch = next(iter(batches()))
    moved = to_device(batch, "meta")
    assert isinstance(moved["target"]["weak_view"], WeakView)
    tensors = [value for value in flat(moved).values() if torch.is_tensor(value)]
    assert len(tensors) > 10 and all(tensor.device.type == "meta" for tensor in tensors)
    assert moved["source"]["name"] == batch["source"]["name"]


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), (torch.device("cpu"), True), ("cuda:1", False)])
def test_values_that_go_to_the_cpu_are_waited_for(device, waits, monkeypatch):
    """A copy from a GPU that is not waited for leaves values in the CPU's memory that are not there yet."""
    asked = []
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, device, *, non_blocking: asked.append(non_blocking))
    to_device({"image": torch.zeros(1)}, device)
    assert asked == [not waits]
