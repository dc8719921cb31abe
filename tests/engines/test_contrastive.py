"""One iteration of pretraining, on one process and on two."""

import copy

import ignite.distributed as idist
import pytest
import torch

from proda.engines.contrastive import contrastive_evaluator, contrastive_trainer, gather
from proda.engines.options import ContrastiveOptions
from proda.method.contrastive import nt_xent
from proda.models.contrastive import ContrastiveNetwork
from tests import tiny
from tests.tiny import PRECISION, Spy, assert_detached


def network(seed: int = 0) -> ContrastiveNetwork:
    backbone = tiny.network(seed)
    return ContrastiveNetwork(backbone, hidden=16, dimensions=8)


def pairs(number: int = 2) -> dict[str, torch.Tensor]:
    views = torch.randint(0, 256, (number, 2, 3, 32, 48), dtype=torch.uint8)
    overlap = torch.tensor([[0.0, 0.0, 0.75, 1.0], [0.25, 0.0, 1.0, 1.0]]).expand(number, 2, 4)
    return {"views": views, "overlap": overlap, "flipped": torch.tensor([[False, True]]).expand(number, 2)}


def batch() -> dict[str, dict[str, torch.Tensor]]:
    return {"source": pairs(), "target": pairs()}


def trainer_of(student: ContrastiveNetwork, lr: float = 0.0, **options):
    trained = [parameter for parameter in student.parameters() if parameter.requires_grad]
    return contrastive_trainer(student, torch.optim.SGD(trained, lr), PRECISION, ContrastiveOptions(**options))


def test_the_output_has_both_losses_over_both_domains():
    student, data = network(), batch()
    out = trainer_of(copy.deepcopy(student), temperature=0.3, region_weight=0.25).run([data]).output
    inputs = [torch.cat([data["source"][key], data["target"][key]]) for key in ("views", "overlap", "flipped")]
    found = student(inputs[0].float() / 255, *inputs[1:])
    assert found.images.shape == (2, 4, 8)
    torch.testing.assert_close(out["loss_image"], 0.75 * nt_xent(found.images, 0.3).loss)
    torch.testing.assert_close(out["loss_region"], 0.25 * nt_xent(found.regions.flatten(1, 2), 0.3).loss)
    torch.testing.assert_close(out["loss"], out["loss_image"] + out["loss_region"])
    assert 0 <= out["image_accuracy"] <= 1 and 0 <= out["region_accuracy"] <= 1
    assert_detached(out)


def test_the_events_of_an_iteration():
    trainer = trainer_of(network())
    spy = Spy(trainer)
    trainer.run([batch()])
    assert spy.names == [
        "ITERATION_STARTED",
        "LOSSES_READY",
        "BACKWARD_DONE",
        "OPTIMIZER_STEPPED",
        "ITERATION_COMPLETED",
    ]


def test_without_regions_it_is_simclr_of_whole_views():
    student = network()
    out = trainer_of(student, region_weight=0.0).run([batch()]).output
    assert out["loss"] == out["loss_image"] > 0 == out["loss_region"]
    assert student.region_projection[0].weight.grad.abs().max() == 0
    assert student.network.conv1.weight.grad.abs().max() > 0


def test_training_on_a_batch_makes_its_partners_recognisable():
    student, data = network(), batch()
    losses = []
    trainer = trainer_of(student, lr=0.1)
    for _ in range(15):
        losses.append(trainer.run([data]).output["loss"].item())
    assert losses[-1] < 0.5 * losses[0]
    assert trainer.state.output["image_accuracy"] == 1


def test_the_evaluator_scores_all_images_as_one_batch_whatever_their_batches():
    student, data = network().train(), [pairs(1) for _ in range(5)]
    evaluator = contrastive_evaluator(student, PRECISION, ContrastiveOptions())
    one = dict(evaluator.run(data).metrics["contrastive"])
    together = {key: torch.cat([part[key] for part in data]) for key in data[0]}
    other = evaluator.run([together]).metrics["contrastive"]
    assert one == pytest.approx(other, rel=1e-4)
    assert set(one) == {"contrastive_loss", "image_accuracy", "region_accuracy", "alignment", "uniformity"}
    assert student.training


# Two processes


def each_process(_: int, parts: list[tuple[torch.Tensor, torch.Tensor]], folder: str) -> None:
    rank = idist.get_rank()
    own = [level.clone().requires_grad_() for level in parts[rank]]
    loss = torch.zeros(())
    for level, gathered in zip(own, gather(*own), strict=True):
        first = rank * level.shape[1]
        assert torch.equal(gathered[:, first : first + level.shape[1]], level)
        loss = loss + nt_xent(level, 0.2, all_embeddings=gathered, first=first).loss
    loss.backward()
    torch.save({"loss": loss.detach(), "gradients": [level.grad for level in own]}, f"{folder}/{rank}.pt")


def test_two_processes_have_the_loss_and_the_gradient_of_one(tmp_path):
    """The mean of the losses and, as DDP divides by the number of processes, half of the gradients."""
    images, regions = torch.randn(2, 4, 8), torch.randn(2, 12, 8)
    parts = [(images[:, :2], regions[:, :6]), (images[:, 2:], regions[:, 6:])]
    idist.spawn("gloo", each_process, (parts, str(tmp_path)), nproc_per_node=2)
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    whole = [level.clone().requires_grad_() for level in (images, regions)]
    loss = sum(nt_xent(level, 0.2).loss for level in whole)
    loss.backward()
    torch.testing.assert_close((found[0]["loss"] + found[1]["loss"]) / 2, loss.detach())
    for number, level in enumerate(whole):
        gradient = torch.cat([part["gradients"][number] for part in found], dim=1) / 2
        torch.testing.assert_close(gradient, level.grad)
