import hashlib
import os
import subprocess
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from proda.models.build import build_network
from proda.models.deeplab import DeepLab
from proda.models.discriminator import Discriminator
from proda.models.model_info import ModelInfo
from proda.models.pretrained import load_imagenet, load_simclr
from proda.models.weights import (
    load_discriminator,
    load_into,
    load_network,
    load_prototypes,
    load_weights,
    prototypes_record,
    save_prototypes,
    save_weights,
    weights_content,
)
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import save_tensors


def network(num_classes: int = 19, **settings) -> DeepLab:
    return DeepLab(num_classes, blocks=(1, 1, 1, 1), width=2, head_channels=16, **settings)


def released(model: nn.Module, prototypes: torch.Tensor | None = None, **entries) -> dict:
    """What the released code saves (layout: ``checkpoint`` of the golden ``model_r101.json``)."""
    vectors = torch.zeros(19, 256) if prototypes is None else prototypes
    entry = {"model_state": OrderedDict(model.state_dict()), "objective_vectors": vectors}
    return {"ResNet101": entry, "iter": 1000, "best_iou": np.float64(0.5375), **entries}


def ours(model: nn.Module, **entries) -> dict:
    """What the training stages save."""
    return {"model": model.state_dict(), **entries}


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


@pytest.mark.parametrize("zip_container", [True, False])
@pytest.mark.parametrize("prototypes", [None, torch.rand(19, 256)])
def test_released_checkpoint_loads_from_both_containers(tmp_path, zip_container, prototypes):
    model, path = network(), tmp_path / "from_gta5_to_cityscapes_on_deeplabv2_best_model.pkl"
    torch.save(released(model, prototypes), path, _use_new_zipfile_serialization=zip_container)
    weights, other = load_weights(path), network()
    assert (weights.info.iteration, weights.info.miou, weights.info.num_classes) == (1000, 0.5375, 19)
    assert weights.discriminator is None
    assert weights.prototypes is None if prototypes is None else torch.equal(weights.prototypes, prototypes)
    size = len(model.state_dict())
    assert load_into(other, path) == f"{path}: {size} of the network's {size} tensors loaded, 0 left over"
    assert_same(model, other)


def test_released_warm_up_checkpoint_brings_its_discriminator(tmp_path):
    model, critic, path = network(), Discriminator(19, width=2), tmp_path / "warm_up.pkl"
    torch.save(released(model, FCDiscriminator=released(critic)["ResNet101"]), path)
    other = Discriminator(19, width=2)
    assert "10 of the network's 10" in load_discriminator(other, path)
    assert_same(critic, other)


@pytest.mark.parametrize("module", [b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_numpy_score_is_read_whichever_numpy_wrote_it(tmp_path, module):
    path = tmp_path / "best_model.pkl"
    torch.save(released(network()), path, _use_new_zipfile_serialization=False)
    here = np.float64(0).__reduce__()[0].__module__.encode()
    written = path.read_bytes()
    assert written.count(here) == 1
    path.write_bytes(written.replace(here, module))  # the module's name is all that numpy 1 and 2 write differently
    assert load_weights(path).info.miou == 0.5375


class Hostile:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


READERS = [
    load_weights,
    load_prototypes,
    lambda path: load_into(network(), path),
    lambda path: load_imagenet(network(), path),
    lambda path: load_simclr(network(), path),
]


@pytest.mark.parametrize("zip_container", [True, False])
@pytest.mark.parametrize("read", READERS)
def test_hostile_pickle_does_not_run(tmp_path, monkeypatch, read, zip_container):
    monkeypatch.chdir(tmp_path)
    path = Path("best_model.pkl")
    hostile = Hostile(os.mkdir, "ran")
    torch.save(released(network()) | {"iter": hostile}, path, _use_new_zipfile_serialization=zip_container)
    with pytest.raises(ValueError, match=r"best_model.pkl: found a call of posix.mkdir, which is not run") as error:
        read(path)
    assert not Path("ran").exists()
    assert "\n" not in str(error.value)
    torch.load(path, weights_only=False)  # the file is armed: without the allow-list it runs
    assert Path("ran").exists()


@pytest.mark.parametrize(
    "hostile",
    [
        Hostile(eval, "1 + 1"),
        Hostile(subprocess.run, ["true"]),
        Hostile(getattr, "text", "upper"),
        np.arange(3),  # numpy arrays are more than a score needs
        np.float32(1),
        np.dtype("object"),
        np.random.default_rng,
        Path("x"),
        network(),
    ],
    ids=["eval", "subprocess", "getattr", "array", "float32", "object", "function", "path", "module"],
)
def test_nothing_but_tensors_and_plain_values_is_read(tmp_path, hostile):
    path = tmp_path / "best_model.pkl"
    torch.save(released(network()) | {"iter": hostile}, path)
    with pytest.raises(ValueError, match=r"best_model.pkl: .*expected tensors and plain values") as error:
        load_weights(path)
    assert "\n" not in str(error.value)


def test_allow_list_is_gone_after_loading(tmp_path):
    path = tmp_path / "best_model.pkl"
    torch.save(released(network()), path)
    before = set(torch.serialization.get_safe_globals())
    load_weights(path)
    assert set(torch.serialization.get_safe_globals()) == before


def test_our_checkpoint_returns_what_was_saved(tmp_path):
    model, path, prototypes = network(13), tmp_path / "runs" / "best.pt", torch.rand(13, 16)
    save_tensors(ours(model, prototypes=prototypes, num_classes=13, iteration=7, source="gta5"), path)
    weights = load_weights(path)
    assert weights.info == ModelInfo(num_classes=13, iteration=7, source="gta5")
    assert torch.equal(weights.prototypes, prototypes)
    assert torch.equal(load_prototypes(path), prototypes)
    other = network(13)
    load_into(other, weights)
    assert_same(model, other)
    assert [file.name for file in path.parent.iterdir()] == ["best.pt"]  # nothing unfinished is left beside it


def test_checkpoint_with_state_dicts_of_other_objects_loads(tmp_path):
    model, critic, path = network(), Discriminator(19, width=2), tmp_path / "checkpoint_3.pt"
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    prototypes = {"prototypes": torch.rand(19, 16), "counts": torch.ones(19)}
    data = {"model": model.state_dict(), "discriminator": critic.state_dict(), "prototypes": prototypes}
    torch.save(data | {"optimizer": optimizer.state_dict(), "trainer": OrderedDict(iteration=3)}, path)
    weights = load_weights(path)
    assert torch.equal(weights.prototypes, prototypes["prototypes"])
    load_discriminator(other := Discriminator(19, width=2), weights)
    assert_same(critic, other)


def test_bare_state_dict_loads_with_or_without_the_prefix_of_data_parallel(tmp_path):
    model = network()
    for prefix in ("", "module."):
        torch.save({prefix + key: value for key, value in model.state_dict().items()}, tmp_path / "model.pth")
        load_into(other := network(), tmp_path / "model.pth")
        assert_same(model, other)


@pytest.mark.parametrize("zip_container", [True, False])
def test_released_prototype_file_is_a_bare_tensor(tmp_path, zip_container):
    prototypes, path = torch.rand(19, 256), tmp_path / "prototypes_on_cityscapes_from_deeplabv2"
    torch.save(prototypes, path, _use_new_zipfile_serialization=zip_container)
    assert torch.equal(load_prototypes(path), prototypes)


def test_our_prototype_file_returns_what_was_saved(tmp_path):
    prototypes, path = torch.rand(19, 16), tmp_path / "prototypes.pt"
    torch.save({"prototypes": prototypes, "counts": torch.ones(19), "origin": ""}, path)
    assert torch.equal(load_prototypes(path), prototypes)


def test_prototypes_of_a_released_stage_1_checkpoint_load(tmp_path):
    prototypes, path = torch.rand(19, 256), tmp_path / "stage1.pkl"
    torch.save(released(network(), prototypes), path)
    assert torch.equal(load_prototypes(path), prototypes)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (torch.rand(3), "a tensor of shape \\[3\\], expected prototypes"),
        ({"weights": torch.rand(3, 4)}, "a dict with 'weights', expected prototypes"),
        (torch.zeros(19, 256), "prototypes that are all zero"),
        (released(network()), "prototypes that are all zero"),
        ({"model": {}}, "a dict with 'model', expected prototypes"),
    ],
)
def test_file_without_prototypes_is_refused(tmp_path, data, found):
    torch.save(data, tmp_path / "prototypes.pt")
    with pytest.raises(ValueError, match=f"prototypes.pt: found {found}"):
        load_prototypes(tmp_path / "prototypes.pt")


def test_other_number_of_classes_is_named_and_nothing_is_copied(tmp_path):
    path, other = tmp_path / "best.pt", network(16)
    torch.save(ours(network(19)), path)
    before = other.conv1.weight.clone()
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"best.pt: found weights for 19 classes, expected 16 classes"):
            load_into(other, path, strict=strict)
    assert torch.equal(before, other.conv1.weight)


def test_discriminator_of_another_number_of_classes_is_named(tmp_path):
    path = tmp_path / "warm_up.pkl"
    torch.save(released(network(), FCDiscriminator=released(Discriminator(16, width=2))["ResNet101"]), path)
    with pytest.raises(ValueError, match=r"found weights for 16 classes, expected 19 classes"):
        load_discriminator(Discriminator(19, width=2), path)


def test_checkpoint_without_a_discriminator_says_so(tmp_path):
    torch.save(ours(network()), tmp_path / "stage1.pt")
    with pytest.raises(ValueError, match=r"stage1.pt: found no discriminator"):
        load_discriminator(Discriminator(19, width=2), tmp_path / "stage1.pt")


def test_no_matching_key_names_the_first_of_both_sides(tmp_path):
    torch.save({"encoder.weight": torch.ones(1), "encoder.bias": torch.ones(1)}, tmp_path / "other.pth")
    for strict in (True, False):
        with pytest.raises(ValueError) as error:
            load_into(network(), tmp_path / "other.pth", strict=strict)
        message = str(error.value)
        assert "other.pth: found 0 of the 131 tensors expected" in message
        assert "only in the file: encoder.weight" in message and "only in the network: conv1.weight" in message
        assert "\n" not in message


def test_another_width_names_the_first_shape_that_differs(tmp_path):
    torch.save(ours(network()), tmp_path / "best.pt")
    wider = DeepLab(19, blocks=(1, 1, 1, 1), width=4, head_channels=16)
    with pytest.raises(ValueError, match=r"conv1.weight, found \[2, 3, 7, 7\], expected \[4, 3, 7, 7\]"):
        load_into(wider, tmp_path / "best.pt", strict=False)


def test_extra_batch_norm_of_one_side_is_an_error_unless_asked_for(tmp_path):
    model, path = network(bn_pretrain=True), tmp_path / "stage2.pt"
    torch.save(ours(model), path)
    with pytest.raises(ValueError, match=r"first only in the file: bn_pretrain.weight"):
        load_into(network(), path)
    load_into(other := network(), path, strict=False)
    assert torch.equal(other.conv1.weight, model.conv1.weight)
    torch.save(ours(network()), path)
    with pytest.raises(ValueError, match=r"first only in the network: bn_pretrain.weight"):
        load_into(network(bn_pretrain=True), path)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (torch.rand(2, 2), r"a tensor of shape \[2, 2\]"),
        ({}, "an empty dict"),
        ([1, 2], "list"),
        ({"epoch": 3, "weights": torch.rand(2)}, "a dict with 'epoch', 'weights'"),
        ({"ResNet101": torch.rand(2)}, r"a tensor of shape \[2\] under 'ResNet101'"),
        ({"model": {"conv1.weight": 3}}, "a dict with 'conv1.weight'"),
        ({"model": {}}, "an empty dict"),
    ],
)
def test_file_that_is_no_checkpoint_says_what_it_holds(tmp_path, data, found):
    torch.save(data, tmp_path / "file.pt")
    with pytest.raises(ValueError, match=f"file.pt: found {found}.*expected"):
        load_weights(tmp_path / "file.pt")


def test_missing_file_and_folder_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.pt: found no such file"):
        load_weights(tmp_path / "nowhere.pt")
    with pytest.raises(FileNotFoundError, match=f"{tmp_path.name}: found a folder"):
        load_prototypes(tmp_path)


@pytest.mark.parametrize("zip_container", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_truncated_file_is_one_clear_line(tmp_path, zip_container, kept):
    path = tmp_path / "best.pkl"
    torch.save(released(network()), path, _use_new_zipfile_serialization=zip_container)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"best.pkl: cannot be read") as error:
        load_weights(path)
    assert "\n" not in str(error.value)


def test_file_of_another_kind_is_one_clear_line(tmp_path):
    for content in (b"not a checkpoint", b"\x89PNG\r\n\x1a\n", b"<html>\n</html>\n", b"PK\x03\x04"):
        (tmp_path / "best.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"best.pt: cannot be read") as error:
            load_weights(tmp_path / "best.pt")
        assert "\n" not in str(error.value)


def test_one_altered_byte_of_a_tensor_is_noticed(tmp_path):
    path = tmp_path / "last.pt"
    value = torch.full((64,), 3.0)
    torch.save({"model": {"weight": value}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(value.numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"last.pt: cannot be read .*the checksum of .* differs"):
        load_weights(path)


CLASSES = ("road", "building", "sky")


def saved(path: Path, **content) -> nn.Module:
    network = build_network("tiny", 3, bn_pretrain=content.pop("bn_pretrain", False))
    save_weights(path, network, class_names=CLASSES, **content)
    return network


@pytest.mark.parametrize("bn_pretrain", [False, True])
def test_saved_network_is_built_again_and_says_what_it_is(tmp_path, bn_pretrain):
    network, path = saved(tmp_path / "last.pt", bn_pretrain=bn_pretrain, iteration=7), tmp_path / "last.pt"
    loaded = load_network(path, backbone="tiny", class_names=list(CLASSES), dropout=0.5)
    assert_same(network, loaded)
    assert (loaded.bn_pretrain is not None) == bn_pretrain and loaded.layer5.head[0].p == 0.5
    assert (loaded.backbone, loaded.head, loaded.num_classes, loaded.num_features) == ("tiny", "deeplab", 3, 32)
    assert loaded.class_names == CLASSES and loaded.origin == hashlib.sha256(path.read_bytes()).hexdigest()
    weights = load_weights(path)
    assert weights.info == ModelInfo(3, "tiny", "deeplab", CLASSES, iteration=7)


def test_weights_file_may_hold_prototypes_and_a_discriminator(tmp_path):
    path, critic, prototypes = tmp_path / "last.pt", Discriminator(3, width=2), torch.rand(3, 32)
    saved(path, prototypes=prototypes, discriminator=critic)
    assert torch.equal(load_prototypes(path), prototypes)
    load_discriminator(other := Discriminator(3, width=2), path)
    assert_same(critic, other)
    saved(path)
    assert load_weights(path)[1:3] == (None, None)


def test_content_with_another_number_of_names_than_classes_is_refused():
    with pytest.raises(ValueError, match=r"^2 class names for a network of 3 classes$"):
        weights_content(build_network("tiny", 3), class_names=CLASSES[:2])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("building", "road", "sky"), "found weights whose class 0 is 'road', expected 'building'; class names and"),
        (("road", "building", "tree"), "found weights whose class 2 is 'sky', expected 'tree'; class names and"),
        (("road", "building"), "found weights for 3 classes, expected 2 classes"),
    ],
)
def test_other_classes_or_another_order_are_refused_with_the_first_that_differs(tmp_path, names, message):
    saved(tmp_path / "last.pt")
    with pytest.raises(UserError, match=f"last.pt: {message}"):
        load_network(tmp_path / "last.pt", backbone="tiny", class_names=names)


def test_weights_of_another_backbone_are_refused(tmp_path):
    saved(tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last.pt: found weights of --backbone=tiny, expected --backbone=resnet50$"):
        load_network(tmp_path / "last.pt", backbone="resnet50", class_names=CLASSES)


@pytest.mark.parametrize("entries", [{}, {"num_classes": 3, "backbone": "tiny"}])
def test_weights_that_do_not_name_their_classes_are_compared_by_number(tmp_path, entries):
    """A released file or a bare state dict; and what this package wrote before it stored class names."""
    network, path = build_network("tiny", 3), tmp_path / "best_model.pkl"
    torch.save(ours(network, **entries) if entries else released(network), path)
    info = load_weights(path).info
    assert (info.num_classes, info.backbone, info.class_names) == (3, "tiny", ())
    assert_same(network, load_network(path, backbone="tiny", class_names=CLASSES))
    with pytest.raises(UserError, match=r"found weights for 3 classes, expected 4 classes"):
        load_network(path, backbone="tiny", class_names=(*CLASSES, "tree"))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"class_names": [1, 2]}, "found class_names of type list, expected a list of names"),
        ({"class_names": ["road"], "num_classes": 3}, "found 1 class_names for 3 classes"),
        ({"colors": [[1, 2, 300]]}, "found colors of type list, expected RGB colours"),
        ({"num_classes": 2, "label_ids": [0] * 256}, "found label_ids without one of the 2 classes"),
        ({"size": [96]}, r"found size of type list, expected \[width, height\]"),
        ({"miou": "high"}, "found miou of type str, expected a number"),
        ({"normalisation": "ImageNet"}, "found a network for 'ImageNet', expected 'RGB in 0..1'"),
        ({"format": 4}, r"written by a newer version of proda \(format 4, this one reads 3\)"),
    ],
)
def test_entries_of_another_kind_are_refused(tmp_path, entries, message):
    torch.save(ours(network(), **entries), tmp_path / "last.pt")
    with pytest.raises(UserError, match=f"last.pt: {message}"):
        load_weights(tmp_path / "last.pt")


def test_all_that_a_file_says_comes_back_and_equal_content_is_equal_bytes(tmp_path):
    ids = [250] * 256
    ids[7], ids[8], ids[11], ids[4] = 0, 1, 2, 0
    values = {
        "colors": ((1, 2, 3), (4, 5, 6), (7, 8, 9)), "label_ids": tuple(ids), "size": (96, 48), "mean_width": 275,
        "source": "gta5", "target": "cityscapes", "recipe": "gta5", "stage": "warmup", "proda": "0.1.0",
        "torch": "2.8.0", "git_commit": "ab" * 20, "iteration": 0, "miou": 0.0, "label_free": 0.25,
    }  # fmt: skip
    saved(tmp_path / "last.pt", **values)
    info = load_weights(tmp_path / "last.pt").info
    assert info == ModelInfo(3, "tiny", "deeplab", CLASSES, **values)
    assert info.class_ids == (4, 8, 11) and info.normalisation == "RGB in 0..1"
    assert str(info) == "tiny, 3 classes; warmup, gta5, iteration 0, mIoU 0.0"
    first = (tmp_path / "last.pt").read_bytes()
    for name in ("recipe", "source"):  # equal, but another object
        values[name] = "".join(list(values[name]))
    save_weights(tmp_path / "last.pt", load_network(tmp_path / "last.pt"), class_names=CLASSES, **values)
    assert (tmp_path / "last.pt").read_bytes() == first


@pytest.mark.parametrize("backbone", ["resnet101", "resnet50", "tiny"])
@pytest.mark.parametrize("bn_pretrain", [False, True])
def test_released_files_are_known_by_their_shapes(tmp_path, backbone, bn_pretrain):
    with torch.device("meta"):
        model = build_network(backbone, 16, bn_pretrain=bn_pretrain)
    state = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in model.state_dict().items()}
    torch.save({"ResNet101": {"model_state": state}}, tmp_path / "best_model.pkl")
    loaded = load_network(tmp_path / "best_model.pkl")
    assert (loaded.backbone, loaded.num_classes, loaded.class_names) == (backbone, 16, ())
    assert (loaded.bn_pretrain is not None) == bn_pretrain


def test_weights_of_no_known_network_are_refused_in_one_line(tmp_path):
    torch.save(released(network()), tmp_path / "best_model.pkl")
    with pytest.raises(UserError, match=r"best_model.pkl: found weights of no known backbone, expected one of"):
        load_network(tmp_path / "best_model.pkl")
    torch.save({"model": {"a": torch.ones(1)}, "backbone": "tiny"}, tmp_path / "last.pt")
    with pytest.raises(UserError, match=r"last.pt: its number of classes is unknown; set --source or --num_classes"):
        load_network(tmp_path / "last.pt")


def test_missing_weights_name_their_flag(tmp_path):
    with pytest.raises(MissingFileError, match=r"^--teacher=.*nowhere.pt: no such file; expected weights"):
        load_network(tmp_path / "nowhere.pt", backbone="tiny", class_names=CLASSES, flag="teacher")


def test_prototypes_come_back_with_what_they_were_made_from(tmp_path):
    prototypes, path = torch.rand(3, 16), tmp_path / "prototypes.pt"
    made_from = {"weights": "ab" * 32, "images": "cd" * 32, "class_names": list(CLASSES), "passes": 4, "amp": "none"}
    save_prototypes(path, prototypes, torch.tensor([1.0, 2.0, 3.0]), made_from=made_from)
    assert torch.equal(load_prototypes(path), prototypes)
    assert prototypes_record(path) == made_from
    first = path.read_bytes()
    save_prototypes(path, prototypes, torch.tensor([1.0, 2.0, 3.0]), made_from=made_from)
    assert path.read_bytes() == first


@pytest.mark.parametrize(
    ("content", "record"),
    [
        (torch.rand(3, 16), {}),  # released
        ({"prototypes": torch.rand(3, 16), "counts": torch.ones(3), "origin": "ab" * 32}, {"weights": "ab" * 32}),
        ({"prototypes": torch.rand(3, 16), "counts": torch.ones(3), "origin": ""}, {}),
        ({"prototypes": torch.rand(3, 16), "made_from": "weights"}, {}),
    ],
)
def test_prototypes_that_say_less_have_a_shorter_record(tmp_path, content, record):
    torch.save(content, tmp_path / "prototypes.pt")
    assert prototypes_record(tmp_path / "prototypes.pt") == record


def test_weights_of_a_compiled_network_load(tmp_path):
    """``torch.compile(network)`` puts a prefix before the names."""
    state = torch.compile(build_network("tiny", 5), backend="eager").state_dict()
    assert all(name.startswith("_orig_mod.") for name in state)
    torch.save(state, tmp_path / "compiled.pt")
    assert load_weights(tmp_path / "compiled.pt").model.keys() == build_network("tiny", 5).state_dict().keys()
