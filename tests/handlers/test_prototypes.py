"""The prototypes' life."""

import pytest
import torch
from ignite.engine import Engine
from torch import nn

from proda.engines.events import ProdaEvents, proda_engine
from proda.handlers.prototypes import PrototypeEMA, Prototypes, initial_prototypes, prepare_prototypes
from proda.models.network import Segmentation
from proda.utils.files import sha256_of_tensors
from tests import tiny
from tests.tiny import PRECISION


def test_prototypes_of_absent_classes_stay_where_they_are():
    output = {"class_means": torch.ones(1, 3, 2), "class_present": torch.tensor([[True, False, True]])}
    engine, prototypes = proda_engine(lambda *_: output), Prototypes(3, 2)
    PrototypeEMA(prototypes, momentum=0.5).attach(engine)
    engine.run([None, None])
    assert prototypes.values[:, 0].tolist() == [0.75, 0.0, 0.75]  # 1 - 0.5**2
    assert prototypes.counts.tolist() == [2, 0, 2]


def test_the_images_of_a_batch_move_prototypes_one_after_the_other():
    means = torch.tensor([[[1.0]], [[2.0]]])
    output = {"class_means": means, "class_present": torch.tensor([[True], [True]])}
    engine, prototypes = proda_engine(lambda *_: output), Prototypes(1, 1)
    PrototypeEMA(prototypes, momentum=0.5).attach(engine)
    engine.run([None])
    assert prototypes.values.item() == 0.5 * (0.5 * 1) + 0.5 * 2


def test_an_update_is_seen_by_whoever_was_handed_the_tensor_and_is_told():
    output = {"class_means": torch.ones(1, 2, 2), "class_present": torch.ones(1, 2, dtype=torch.bool)}
    engine, prototypes, seen = proda_engine(lambda *_: output), Prototypes(2, 2), []
    values = prototypes.values
    PrototypeEMA(prototypes, momentum=1.0).attach(engine)
    engine.add_event_handler(ProdaEvents.PROTOTYPES_UPDATED, lambda: seen.append(values.clone()))
    engine.run([None])
    assert torch.equal(seen[0], torch.ones(2, 2))


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


def test_prototypes_are_computed_once_and_then_read(tmp_path):
    file, network, images = tmp_path / "prototypes.pt", tiny.network(), whole_images()
    computed = prepare_prototypes(file, network, images, PRECISION, origin="a" * 64)
    network.register_forward_hook(lambda *_: pytest.fail("computed again"))
    read = prepare_prototypes(file, network, images, PRECISION, origin="a" * 64)
    assert torch.equal(read.values, computed.values) and read.values.any()
    assert not read.counts.any() and not computed.counts.any()


def test_prototypes_of_other_weights_are_refused_and_a_bare_tensor_is_taken(tmp_path):
    file, network = tmp_path / "prototypes.pt", tiny.network()
    prepare_prototypes(file, network, whole_images(), PRECISION, origin="a" * 64)
    with pytest.raises(ValueError, match=r"prototypes.pt: prototypes of other weights, found SHA-256 aaaa.* --proto"):
        prepare_prototypes(file, network, [], PRECISION, origin="b" * 64)
    torch.save(torch.ones(tiny.K, 32), file)  # a released file says nothing about its weights
    assert prepare_prototypes(file, network, [], PRECISION, origin="b" * 64).values.sum() == tiny.K * 32


def test_a_file_that_does_not_fit_is_named_once(tmp_path):
    file = tmp_path / "prototypes.pt"
    torch.save(torch.ones(3, 7), file)
    with pytest.raises(ValueError, match=r"prototypes have shape \(3, 7\)") as error:
        prepare_prototypes(file, tiny.network(), [], PRECISION)
    assert str(error.value).count("prototypes.pt") == 1
    file.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="cannot be read") as error:
        prepare_prototypes(file, tiny.network(), [], PRECISION)
    assert str(error.value).count("prototypes.pt") == 1


def test_a_state_dict_has_one_checksum_until_a_value_changes():
    network = tiny.network()
    first = sha256_of_tensors(network.state_dict())
    assert first == sha256_of_tensors(tiny.network().state_dict())
    with torch.no_grad():
        network.bn1.running_mean[0] += 1e-6
    assert first != sha256_of_tensors(network.state_dict())


def test_an_engine_without_class_means_is_an_error_not_a_silent_standstill():
    engine: Engine = proda_engine(lambda *_: {})
    PrototypeEMA(Prototypes(3, 2)).attach(engine)
    with pytest.raises(KeyError, match="class_means"):
        engine.run([None])
