"""Computing and updating the prototypes."""

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from proda.engines.events import ProdaEvents, Trainer
from proda.handlers.prototypes import PrototypeEMA, Prototypes, RenewPrototypes, initial_prototypes, prepare_prototypes
from proda.models.network import Segmentation
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import sha256_of_tensors
from tests import tiny
from tests.tiny import PRECISION


def trainer_of(means: list, present: list) -> Engine:
    """A trainer whose iterations fire the optimizer's step, with these class means of the teacher."""

    def step(engine: Engine, _batch: None) -> dict:
        engine.state.output = {"class_means": torch.tensor(means), "class_present": torch.tensor(present)}
        engine.fire_event(ProdaEvents.OPTIMIZER_STEPPED)
        return engine.state.output

    return Trainer(step)


def test_prototypes_of_absent_classes_stay_where_they_are():
    engine, prototypes = trainer_of([[[1.0, 1.0]] * 3], [[True, False, True]]), Prototypes(3, 2)
    PrototypeEMA(prototypes, momentum=0.5).attach(engine)
    engine.run([None, None])
    assert prototypes.values[:, 0].tolist() == [0.75, 0.0, 0.75]  # 1 - 0.5**2
    assert prototypes.counts.tolist() == [2, 0, 2]
    assert engine.state.remembered == {"prototypes": prototypes}


def test_the_images_of_a_batch_move_prototypes_one_after_the_other():
    engine, prototypes = trainer_of([[[1.0]], [[2.0]]], [[True], [True]]), Prototypes(1, 1)
    PrototypeEMA(prototypes, momentum=0.5).attach(engine)
    engine.run([None])
    assert prototypes.values.item() == 0.5 * (0.5 * 1) + 0.5 * 2


def test_the_default_momentum_is_that_of_the_paper():
    engine, prototypes = trainer_of([[[1.0]]], [[True]]), Prototypes(1, 1)
    PrototypeEMA(prototypes).attach(engine)
    engine.run([None, None])
    assert prototypes.values.item() == pytest.approx(1 - 0.9999**2, rel=1e-5)  # lambda = 0.9999


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


def test_an_update_is_in_place_and_fires_its_event():
    engine, prototypes, seen = trainer_of([[[1.0, 1.0]] * 2], [[True, True]]), Prototypes(2, 2), []
    values = prototypes.values
    PrototypeEMA(prototypes, momentum=1.0).attach(engine)
    engine.add_event_handler(ProdaEvents.PROTOTYPES_UPDATED, lambda: seen.append(values.clone()))
    engine.run([None])
    assert torch.equal(seen[0], torch.ones(2, 2))


def test_without_momentum_they_are_fixed_and_remembered():
    engine, prototypes = trainer_of([[[1.0]]], [[True]]), Prototypes(1, 1)
    PrototypeEMA(prototypes, momentum=0.0).attach(engine)
    engine.add_event_handler(ProdaEvents.PROTOTYPES_UPDATED, lambda: pytest.fail("moved"))
    engine.run([None])
    assert not prototypes.values.any() and engine.state.remembered == {"prototypes": prototypes}


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


def test_renewed_prototypes_are_the_initial_ones_of_the_network_that_writes_the_labels():
    engine, network, prototypes = Trainer(lambda *_: {}), HalfAndHalf().train(), Prototypes(3, 1)
    prototypes.values.fill_(9.0)
    prototypes.counts.fill_(2.0)
    values = prototypes.values
    RenewPrototypes(prototypes, network, batches(51, 102, 153), PRECISION).attach(engine)
    for _ in range(2):  # a resumed run computes them again
        engine.fire_event(ProdaEvents.BEFORE_LABELS_WRITTEN)
        torch.testing.assert_close(values, torch.tensor([[0.4], [1.4], [9.0]]))  # the last class is not predicted
        assert not prototypes.counts.any() and network.training


def whole_images() -> list[dict]:
    return [{"image": tiny.pictures(*tiny.FULL)}]


MADE_FROM = {"weights": "a" * 64, "images": "b" * 64, "classes": ["road", "sky"], "amp": "off", "size": None}


def prepare(file, network=None, batches=(), passes=1, **changed) -> Prototypes:
    return prepare_prototypes(file, network or tiny.network(), batches, PRECISION, passes, MADE_FROM | changed)


def test_prototypes_are_computed_once_and_then_read(tmp_path):
    file, network = tmp_path / "prototypes.pt", tiny.network()
    computed = prepare(file, network, whole_images())
    network.register_forward_hook(lambda *_: pytest.fail("computed again"))
    read = prepare(file, network)
    assert torch.equal(read.values, computed.values) and read.values.any()
    assert not read.counts.any() and not computed.counts.any()


def test_the_first_process_says_whether_prototypes_are_there(tmp_path, monkeypatch):
    """Another one that computed them, because it does not see the file yet, would wait for the first one forever."""
    monkeypatch.setattr("proda.handlers.prototypes.idist.broadcast", lambda seen, *, src: 1)
    with pytest.raises(MissingFileError, match=r"prototypes\.pt"):
        prepare(tmp_path / "prototypes.pt", batches=whole_images())


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"weights": "c" * 64}, "other weights: found aaaaaaaaaaaa, expected cccccccccccc;"),
        ({"images": "c" * 64}, "other images: found bbbbbbbbbbbb, expected cccccccccccc;"),
        ({"classes": ["sky", "road"]}, "other classes: found ['road', 'sky'], expected ['sky', 'road'];"),
        ({"amp": "bf16"}, "other amp: found off, expected bf16;"),
        ({"size": [64, 32]}, "other size: found None, expected [64, 32];"),
        ({"passes": 4}, "other passes: found 1, expected 4;"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_prototypes_made_from_something_else_are_refused_in_one_line(tmp_path, changed, said):
    file = tmp_path / "prototypes.pt"
    prepare(file, batches=whole_images())
    with pytest.raises(UserError) as error:
        prepare(file, **changed)
    assert str(error.value).startswith(f"{file}: prototypes computed from {said}") and "\n" not in str(error.value)


def test_a_released_file_that_says_nothing_about_its_origin_is_taken(tmp_path):
    file = tmp_path / "prototypes.pt"
    torch.save(torch.ones(tiny.K, 32), file)
    assert prepare(file).values.sum() == tiny.K * 32


def test_a_file_that_does_not_fit_is_named_once(tmp_path):
    file = tmp_path / "prototypes.pt"
    torch.save(torch.ones(3, 7), file)
    with pytest.raises(ValueError, match=r"prototypes have shape \(3, 7\)") as error:
        prepare(file)
    assert str(error.value).count("prototypes.pt") == 1
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read") as error:
        prepare(file)
    assert str(error.value).count("prototypes.pt") == 1


def test_a_state_dict_has_one_checksum_until_a_value_changes():
    network = tiny.network()
    first = sha256_of_tensors(network.state_dict())
    assert first == sha256_of_tensors(tiny.network().state_dict())
    with torch.no_grad():
        network.bn1.running_mean[0] += 1e-6
    assert first != sha256_of_tensors(network.state_dict())
