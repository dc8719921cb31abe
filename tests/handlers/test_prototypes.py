"""Computing and updating the prototypes."""

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.prototypes import InitialPrototypes, PrototypeEMA, Prototypes, initial_prototypes
from proda.models.network import Segmentation
from proda.utils.errors import MissingFileError, UserError
from tests import tiny
from tests.tiny import PRECISION


def trainer_of(means: list, present: list) -> Engine:
    """A trainer whose iterations fire the optimizer's step, with these class means of the teacher."""

    def step(engine: Engine, _batch: None) -> dict:
        engine.state.output = {"class_means": torch.tensor(means), "class_present": torch.tensor(present)}
        engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)
        return engine.state.output

    return Trainer(step)


@pytest.mark.parametrize(
    ("momentum", "means", "present", "expected"),
    [
        ({"momentum": 0.5}, [[[1.0]] * 3], [[True, False, True]], [0.75, 0.0, 0.75]),  # 1 - 0.5**2; one class is absent
        ({"momentum": 0.5}, [[[1.0]], [[2.0]]], [[True], [True]], [1.5625]),  # the images one after the other
        ({}, [[[1.0]]], [[True]], [1 - 0.9999**2]),  # the paper's lambda = 0.9999
        ({"momentum": 0.0}, [[[1.0]]], [[True]], [0.0]),
    ],
)
def test_two_iterations_move_the_prototypes_in_place(momentum, means, present, expected):
    engine, prototypes, seen = trainer_of(means, present), Prototypes(len(expected), 1), []
    values = prototypes.values
    PrototypeEMA(prototypes, **momentum).attach(engine)
    engine.add_event_handler(ProdaEvents.PROTOTYPES_UPDATED, lambda: seen.append(values.clone()))
    engine.run([None, None])
    assert values.flatten().tolist() == pytest.approx(expected, rel=1e-5)
    assert len(seen) == (0 if 0.0 in momentum.values() else 2)  # with a momentum of 0 they are fixed, and remembered
    assert engine.state.remembered == {"prototypes": prototypes}
    assert prototypes.counts.tolist() == [bool(seen) * 2 * sum(column) for column in zip(*present, strict=True)]


def test_counts_end_at_3000_so_that_later_means_keep_their_weight_as_in_the_released_code():
    prototypes, there = Prototypes(1, 1), torch.tensor([[True]])
    prototypes.load_state_dict({"prototypes": torch.tensor([[1.0]]), "counts": torch.tensor([2999.0])})
    for expected in (1 + 1 / 3000, 1 + 1 / 3000 + (1 - 1 / 3000) / 3001):  # the mean of 3000, then a step of 1 / 3001
        prototypes.update(torch.tensor([[[2.0]]]), there, momentum=None)
        assert prototypes.counts.tolist() == [3000]
        assert prototypes.values.item() == pytest.approx(expected, abs=2e-7)
    before = prototypes.values.item()
    prototypes.update(torch.tensor([[[2.0]]]), there, momentum=None)
    assert prototypes.values.item() - before == pytest.approx((2 - before) / 3001, abs=2e-7)


def test_an_engine_without_class_means_is_an_error_instead_of_prototypes_that_never_move():
    def step(engine: Engine, _batch: None) -> dict:
        engine.state.output = {}
        engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)
        return {}

    engine = Trainer(step)
    PrototypeEMA(Prototypes(3, 2)).attach(engine)
    with pytest.raises(KeyError, match="class_means"):
        engine.run([None])


def test_state_is_loaded_in_place_and_another_shape_is_refused():
    prototypes = Prototypes(2, 3)
    values = prototypes.values
    prototypes.load_state_dict({"prototypes": torch.ones(2, 3), "counts": torch.tensor([4.0, 5.0])})
    assert values.sum() == 6 and prototypes.counts.tolist() == [4, 5]
    with pytest.raises(ValueError, match=r"shape \(2, 4\), expected \[classes, features\] = \(2, 3\)"):
        prototypes.load_state_dict({"prototypes": torch.ones(2, 4)})


class HalfAndHalf(nn.Module):
    """Class 0 on the left, 1 on the right; the feature of a pixel is the image's mean brightness plus its class."""

    def forward(self, image: torch.Tensor) -> Segmentation:
        right = (torch.arange(8) >= 4).float().expand(len(image), 1, 8, 8)
        features = image.mean((1, 2, 3)).reshape(-1, 1, 1, 1) + right
        return Segmentation(torch.cat([1 - right, right, -torch.ones_like(right)], dim=1), features)


def batches(*brightness: int) -> list[dict]:
    return [{"image": torch.full((1, 3, 8, 8), value, dtype=torch.uint8)} for value in brightness]


@pytest.mark.parametrize("passes", [1, 3])
def test_initial_prototypes_are_the_means_over_all_images(passes):
    prototypes = Prototypes(3, 1)
    initial_prototypes(prototypes, HalfAndHalf().train(), batches(51, 102, 153), PRECISION, passes=passes)
    torch.testing.assert_close(prototypes.values[:2], torch.tensor([[0.4], [1.4]]))
    assert prototypes.values[2] == 0 and prototypes.counts.tolist() == [3 * passes, 3 * passes, 0]


def whole_images() -> list[dict]:
    return [{"image": tiny.pictures(*tiny.FULL)}]


MADE_FROM = {"weights": "a" * 64, "images": "b" * 64, "classes": ["road", "sky"], "amp": "off", "size": None}


def initial(file, network=None, batches=(), passes=1, **changed) -> Prototypes:
    """The prototypes at the start of a run, after the check before it."""
    prototypes = Prototypes(tiny.K, tiny.D)
    made_from, trainer = MADE_FROM | changed, Trainer(lambda *_: {})
    handler = InitialPrototypes(
        prototypes, network or tiny.network(), batches, PRECISION, file, made_from, passes=passes
    )
    handler.attach(trainer)
    handler.check()
    trainer.run([None])
    return prototypes


def test_prototypes_are_computed_once_and_then_read(tmp_path):
    file, network, size = tmp_path / "prototypes.pt", tiny.network(), (64, 32)  # as a description has it: a tuple
    computed = initial(file, network, whole_images(), size=size)
    network.register_forward_hook(lambda *_: pytest.fail("computed again"))
    read = initial(file, network, size=size)
    assert torch.equal(read.values, computed.values) and read.values.any()
    assert not read.counts.any() and not computed.counts.any()


def test_a_resumed_run_has_its_prototypes_from_its_checkpoint(tmp_path):
    prototypes, trainer = Prototypes(tiny.K, tiny.D), Trainer(lambda *_: {})
    prototypes.values.fill_(9.0)
    prototypes.counts.fill_(2.0)
    InitialPrototypes(prototypes, tiny.network(), [], PRECISION, tmp_path / "p.pt", MADE_FROM).attach(trainer)
    trainer.load_state_dict({"epoch_length": 2, "max_epochs": 1, "iteration": 1})
    trainer.run([None] * 2)
    assert (prototypes.values == 9).all() and (prototypes.counts == 2).all() and not (tmp_path / "p.pt").exists()


def test_the_first_process_says_whether_prototypes_are_there(tmp_path, monkeypatch):
    """Another one that computed them, because it does not see the file yet, would wait for the first one forever."""
    monkeypatch.setattr("proda.handlers.prototypes.idist.broadcast", lambda seen, *, src: 1)
    with pytest.raises(MissingFileError, match=r"prototypes\.pt"):
        initial(tmp_path / "prototypes.pt", batches=whole_images())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": "c" * 64}, "weights: found SHA-256 aaaaaaaaaaaa, expected SHA-256 cccccccccccc;"),
        ({"classes": ["sky", "road"]}, "classes: found 2, expected 2, first difference 'road' and 'sky';"),
        ({"size": [64, 32]}, "size: found None, expected [64, 32];"),
        ({"passes": 4}, "passes: found 1, expected 4;"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_prototypes_of_other_inputs_are_refused_in_one_line(tmp_path, changed, said):
    file = tmp_path / "prototypes.pt"
    initial(file, batches=whole_images())
    with pytest.raises(UserError) as error:
        initial(file, **changed)
    assert str(error.value).startswith(f"{file}: prototypes of other inputs: {said}") and "\n" not in str(error.value)


def test_a_released_file_that_says_nothing_about_its_origin_is_taken_if_it_fits(tmp_path):
    file = tmp_path / "prototypes.pt"
    torch.save(torch.ones(tiny.K, tiny.D), file)
    assert initial(file).values.sum() == tiny.K * tiny.D
    torch.save(torch.ones(3, 7), file)
    for said in (r"prototypes have shape \[3, 7\]", "cannot be read"):
        with pytest.raises(ValueError, match=said) as error:
            initial(file)
        assert str(error.value).count("prototypes.pt") == 1
        file.write_bytes(b"nothing")
