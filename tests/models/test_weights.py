"""Weights files: what is read from each kind, what is refused, and what is written."""

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
from proda.models.model_info import ModelInfo
from proda.models.pretrained import load_imagenet, load_simclr
from proda.models.weights import (
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

CLASSES = ("road", "building", "sky")


def network(num_classes: int = 19, **settings) -> DeepLab:
    return DeepLab(num_classes, **{"blocks": (1, 1, 1, 1), "width": 2, "head_channels": 16} | settings)


def released(model: nn.Module, prototypes: torch.Tensor | None = None, **entries) -> dict:
    """What the released code saves (layout: ``checkpoint`` of the golden ``model_r101.json``)."""
    vectors = torch.zeros(19, 256) if prototypes is None else prototypes
    entry = {"model_state": OrderedDict(model.state_dict()), "objective_vectors": vectors}
    return {"ResNet101": entry, "iter": 1000, "best_iou": np.float64(0.5375), **entries}


def saved(path: Path, **content) -> nn.Module:
    network = build_network("tiny", 3, bn_pretrain=content.pop("bn_pretrain", False))
    save_weights(path, network, class_names=CLASSES, **content)
    return network


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def assert_refused(call, path: Path, *words: str) -> None:
    """``call(path)`` raises one line that names the file and has the words in this order."""
    with pytest.raises(UserError, match=f"{path.name}: .*" + ".*".join(words)) as error:
        call(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("module", [None, b"numpy.core.multiarray", b"numpy._core.multiarray"])
def test_released_checkpoint_loads_from_both_containers_whichever_numpy_wrote_it(tmp_path, module):
    model, path, prototypes = network(), tmp_path / "best_model.pkl", torch.rand(19, 256)
    torch.save(released(model, prototypes), path, _use_new_zipfile_serialization=module is None)
    if module:  # the module's name is all that numpy 1 and 2 write differently; an archive has a checksum
        here, written = np.float64(0).__reduce__()[0].__module__.encode(), path.read_bytes()
        assert written.count(here) == 1
        path.write_bytes(written.replace(here, module))
    weights, other, before = load_weights(path), network(), set(torch.serialization.get_safe_globals())
    assert (weights.info.iteration, weights.info.miou, weights.info.num_classes) == (1000, 0.5375, 19)
    assert torch.equal(load_prototypes(path), prototypes)
    load_into(other, weights)
    assert_same(model, other)
    assert set(torch.serialization.get_safe_globals()) == before  # the list of what may be called is gone


class Hostile:
    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zip_container", [True, False])
@pytest.mark.parametrize(
    "read",
    [
        load_weights,
        load_prototypes,
        lambda path: load_imagenet(network(), path),
        lambda path: load_simclr(network(), path),
    ],
)
def test_hostile_pickle_does_not_run(tmp_path, monkeypatch, read, zip_container):
    monkeypatch.chdir(tmp_path)
    path = Path("best_model.pkl")
    hostile = Hostile(os.mkdir, "ran")
    torch.save(released(network()) | {"iter": hostile}, path, _use_new_zipfile_serialization=zip_container)
    assert_refused(read, path, "posix.mkdir, which is not run")
    assert not Path("ran").exists()
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
    torch.save(released(network()) | {"iter": hostile}, tmp_path / "best_model.pkl")
    assert_refused(load_weights, tmp_path / "best_model.pkl", "expected tensors and plain values")


def test_checkpoint_with_state_dicts_of_other_objects_loads(tmp_path):
    model, path, prototypes = network(), tmp_path / "checkpoint_3.pt", torch.rand(19, 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    data = {"model": model.state_dict(), "prototypes": {"prototypes": prototypes, "counts": torch.ones(19)}}
    torch.save(data | {"optimizer": optimizer.state_dict(), "trainer": OrderedDict(iteration=3)}, path)
    load_into(other := network(), load_weights(path))
    assert_same(model, other)
    assert torch.equal(load_prototypes(path), prototypes)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod."])
def test_bare_state_dict_loads_with_or_without_the_prefix_of_a_wrapper(tmp_path, prefix):
    """``DataParallel`` and ``torch.compile`` put a prefix before the names."""
    model = network()
    torch.save({prefix + key: value for key, value in model.state_dict().items()}, tmp_path / "model.pth")
    load_into(other := network(), load_weights(tmp_path / "model.pth"))
    assert_same(model, other)
    compiled = torch.compile(nn.Linear(1, 1), backend="eager").state_dict()
    assert all(key.startswith("_orig_mod.") for key in compiled)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (torch.rand(3), r"a tensor of shape \[3\], expected prototypes"),
        ({"weights": torch.rand(3, 4)}, "a dict with 'weights', expected prototypes"),
        ({"model": {}}, "a dict with 'model', expected prototypes"),
        (torch.zeros(19, 256), "all zero"),
        (released(network()), "all zero"),  # of another stage than stage 1
        ({"format": 4, "prototypes": torch.rand(3, 4)}, "newer version"),
    ],
)
def test_file_without_prototypes_is_refused(tmp_path, data, words):
    torch.save(data, tmp_path / "prototypes.pt")
    assert_refused(load_prototypes, tmp_path / "prototypes.pt", words)


@pytest.mark.parametrize(
    ("file", "model", "words"),
    [
        (network(19).state_dict(), network(16), "for 19 classes, expected 16 classes"),
        ({"a.weight": torch.ones(1)}, network(), "0 of the 131.*only in the file: a.weight.*the network: conv1.weight"),
        (network().state_dict(), network(width=4), r"conv1.weight, found \[2, 3, 7, 7\], expected \[4, 3, 7, 7\]"),
        (network(bn_pretrain=True).state_dict(), network(), "only in the file: bn_pretrain.weight"),
        (network().state_dict(), network(bn_pretrain=True), "only in the network: bn_pretrain.weight"),
    ],
    ids=["classes", "keys", "shape", "more", "fewer"],
)
def test_weights_of_another_network_name_the_first_difference_and_nothing_is_copied(tmp_path, file, model, words):
    torch.save(file, tmp_path / "best.pt")
    before = model.conv1.weight.clone()
    assert_refused(lambda path: load_into(model, load_weights(path)), tmp_path / "best.pt", words)
    assert torch.equal(before, model.conv1.weight)


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
    assert_refused(load_weights, tmp_path / "file.pt", f"found {found}", "expected")


def test_missing_file_and_folder_are_named(tmp_path):
    for read, path, words in (
        (load_weights, tmp_path / "nowhere.pt", "nowhere.pt: found no such file"),
        (load_prototypes, tmp_path, f"{tmp_path.name}: found a folder"),
        (lambda path: load_network(path, flag="teacher"), tmp_path / "nowhere.pt", "^--teacher=.*nowhere.pt: no such"),
    ):
        with pytest.raises(MissingFileError, match=words):
            read(path)


@pytest.mark.parametrize("zip_container", [True, False])
@pytest.mark.parametrize("kept", [0, 1, 100, 0.5, 0.99])
def test_truncated_file_is_one_clear_line(tmp_path, zip_container, kept):
    path = tmp_path / "best.pkl"
    torch.save(released(network()), path, _use_new_zipfile_serialization=zip_container)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    assert_refused(load_weights, path, "cannot be read")


@pytest.mark.parametrize("content", [b"not a checkpoint", b"\x89PNG\r\n\x1a\n", b"<html>\n</html>\n", b"PK\x03\x04"])
def test_file_of_another_kind_is_one_clear_line(tmp_path, content):
    (tmp_path / "best.pt").write_bytes(content)
    assert_refused(load_weights, tmp_path / "best.pt", "cannot be read")


def test_one_altered_byte_of_a_tensor_is_noticed(tmp_path):
    path, value = tmp_path / "last.pt", torch.full((64,), 3.0)
    torch.save({"model": {"weight": value}}, path)
    content = bytearray(path.read_bytes())
    content[content.index(value.numpy().tobytes()) + 3] ^= 1
    path.write_bytes(content)
    assert_refused(load_weights, path, "cannot be read", "checksum")


@pytest.mark.parametrize("bn_pretrain", [False, True])
def test_saved_network_is_built_again_and_says_what_it_is(tmp_path, bn_pretrain):
    network, path = saved(tmp_path / "last.pt", bn_pretrain=bn_pretrain, iteration=7), tmp_path / "last.pt"
    loaded = load_network(path, backbone="tiny", class_names=list(CLASSES), dropout=0.5)
    assert_same(network, loaded)
    assert (loaded.bn_pretrain is not None) == bn_pretrain and loaded.layer5.head[0].p == 0.5
    assert (loaded.backbone, loaded.head, loaded.num_classes, loaded.num_features) == ("tiny", "deeplab", 3, 32)
    assert loaded.class_names == CLASSES and loaded.origin == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load_weights(path).info == ModelInfo(3, "tiny", "deeplab", CLASSES, iteration=7)
    assert [file.name for file in tmp_path.iterdir()] == ["last.pt"]  # nothing unfinished is left beside it


def test_weights_file_may_hold_prototypes(tmp_path):
    path, prototypes = tmp_path / "last.pt", torch.rand(3, 32)
    network = saved(path, prototypes=prototypes)
    assert torch.equal(load_prototypes(path), prototypes)
    assert_same(network, load_network(path))
    saved(path)
    assert "prototypes" not in torch.load(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_names": ("building", "road", "sky")}, "class 0 is 'road', expected 'building'"),
        ({"class_names": ("road", "building", "tree")}, "class 2 is 'sky', expected 'tree'"),
        ({"class_names": ("road", "building")}, "for 3 classes, expected 2 classes"),
        ({"class_names": CLASSES, "backbone": "resnet50"}, "--backbone=tiny, expected --backbone=resnet50$"),
        ({"class_names": CLASSES, "head": "daformer"}, "--head=deeplab, expected --head=daformer$"),
    ],
)
def test_weights_of_other_classes_another_order_backbone_or_head_are_refused(tmp_path, options, words):
    saved(tmp_path / "last.pt")
    assert_refused(lambda path: load_network(path, **options), tmp_path / "last.pt", words)
    with pytest.raises(ValueError, match="2 class names for a network of 3 classes"):
        weights_content(build_network("tiny", 3), class_names=CLASSES[:2])


@pytest.mark.parametrize("kind", ["released", "bare", "ours"])
def test_weights_that_do_not_name_their_classes_are_compared_by_number(tmp_path, kind):
    network, path = build_network("tiny", 3), tmp_path / "best_model.pkl"
    state = network.state_dict()
    torch.save({"released": released(network), "bare": state, "ours": {"model": state, "backbone": "tiny"}}[kind], path)
    info = load_weights(path).info
    assert (info.num_classes, info.backbone, info.class_names) == (3, "tiny", ())
    assert_same(network, load_network(path, class_names=CLASSES))
    assert_refused(lambda path: load_network(path, class_names=(*CLASSES, "tree")), path, "3 classes, expected 4")


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"class_names": [1, 2]}, "class_names of type list, expected a list of names"),
        ({"class_names": ["road"], "num_classes": 3}, "1 class_names for 3 classes"),
        ({"colors": [[1, 2, 300]]}, "colors of type list, expected RGB colors"),
        ({"num_classes": 2, "label_ids": [0] * 256}, "label_ids without one of the 2 classes"),
        ({"size": [96]}, r"size of type list, expected \[width, height\]"),
        ({"miou": "high"}, "miou of type str, expected a number"),
        ({"iteration": 0.5}, "iteration of type float, expected a whole number"),
        ({"stage": 1}, "stage of type int, expected text"),
        ({"normalisation": "ImageNet"}, "a network for 'ImageNet'"),
        ({"format": 4}, r"newer version of proda \(format 4, this one reads 3\)"),
    ],
)
def test_entries_of_another_kind_are_refused(tmp_path, entries, words):
    torch.save({"model": network().state_dict(), **entries}, tmp_path / "last.pt")
    assert_refused(load_weights, tmp_path / "last.pt", words)


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
    assert info == ModelInfo(3, "tiny", "deeplab", CLASSES, **values) and info.normalisation == "RGB in 0..1"
    assert str(info) == "tiny, 3 classes; warmup, gta5, iteration 0, mIoU 0.0"
    first = (tmp_path / "last.pt").read_bytes()
    for name in ("recipe", "source"):  # equal, but another object
        values[name] = "".join(list(values[name]))
    save_weights(tmp_path / "last.pt", load_network(tmp_path / "last.pt"), class_names=CLASSES, **values)
    assert (tmp_path / "last.pt").read_bytes() == first


@pytest.mark.parametrize(
    ("backbone", "head", "bn_pretrain"),
    [
        ("resnet101", "deeplab", False),
        ("resnet101", "deeplab", True),
        ("resnet50", "deeplab", True),
        ("tiny", "daformer", False),
        ("convnext_tiny", "deeplab", False),
        ("convnext_tiny", "daformer", True),
        ("convnext_tiny", "light", True),
    ],
)
def test_released_files_and_bare_state_dicts_are_known_by_their_shapes(tmp_path, backbone, head, bn_pretrain):
    with torch.device("meta"):
        model = build_network(backbone, 16, head=head, bn_pretrain=bn_pretrain)
    state = {key: torch.zeros((), dtype=value.dtype).expand(value.shape) for key, value in model.state_dict().items()}
    torch.save({"ResNet101": {"model_state": state}} if head == "deeplab" else state, tmp_path / "best_model.pkl")
    loaded = load_network(tmp_path / "best_model.pkl")
    assert (loaded.backbone, loaded.head, loaded.num_classes, loaded.class_names) == (backbone, head, 16, ())
    assert (loaded.bn_pretrain is not None) == bn_pretrain


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (released(network()), "weights of no known backbone, expected one of"),
        ({"model": {"a": torch.ones(1)}, "backbone": "tiny"}, "number of classes is unknown"),
    ],
)
def test_weights_of_no_known_network_are_refused_in_one_line(tmp_path, data, words):
    torch.save(data, tmp_path / "last.pt")
    assert_refused(load_network, tmp_path / "last.pt", words)


def test_prototypes_come_back_with_what_they_were_made_from(tmp_path):
    prototypes, path = torch.rand(3, 16), tmp_path / "prototypes.pt"
    made_from = {"weights": "ab" * 32, "images": "cd" * 32, "class_names": list(CLASSES), "passes": 4, "amp": "none"}
    save_prototypes(path, prototypes, torch.tensor([1.0, 2.0, 3.0]), made_from=made_from)
    assert torch.equal(load_prototypes(path), prototypes) and prototypes_record(path) == made_from
    first = path.read_bytes()
    save_prototypes(path, prototypes, torch.tensor([1.0, 2.0, 3.0]), made_from=made_from)
    assert path.read_bytes() == first


@pytest.mark.parametrize("zip_container", [True, False])
@pytest.mark.parametrize("content", [torch.rand(3, 16), {"prototypes": torch.rand(3, 16), "made_from": "weights"}])
def test_prototypes_that_do_not_say_what_they_were_made_from_load(tmp_path, content, zip_container):
    """Released ones are a bare tensor."""
    torch.save(content, tmp_path / "prototypes", _use_new_zipfile_serialization=zip_container)
    expected = content["prototypes"] if isinstance(content, dict) else content
    assert torch.equal(load_prototypes(tmp_path / "prototypes"), expected)
    assert prototypes_record(tmp_path / "prototypes") == {}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("key", ["layer5.head.1.weight", "bn1.running_var"])
def test_weights_that_are_not_finite_are_refused_with_the_tensor(tmp_path, key, value):
    path = tmp_path / "last.pt"
    model = saved(path)
    content = torch.load(path)
    content["model"][key].view(-1)[1] = value
    torch.save(content, path)
    size = model.state_dict()[key].numel()
    assert_refused(load_network, path, f"found 1 of {size} numbers in {key} that are NaN or infinite, expected finite")
    other = build_network("tiny", 3)
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    assert_refused(lambda file: load_into(other, load_weights(file)), path, key)
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())


def test_large_weights_are_not_taken_for_infinite_ones(tmp_path):
    path = tmp_path / "last.pt"
    saved(path)
    content = torch.load(path)
    content["model"]["bn1.bias"].fill_(3e38)  # their sum is infinite
    torch.save(content, path)
    load_network(path)


def test_prototypes_and_initial_weights_that_are_not_finite_are_refused(tmp_path):
    path = tmp_path / "prototypes.pt"
    torch.save(torch.tensor([[1.0, float("nan")]]), path)
    assert_refused(load_prototypes, path, "1 of 2 numbers in prototypes")
    model = build_network("resnet50", 3)
    tensors = {key.removeprefix("backbone."): value for key, value in model.state_dict().items()}
    tensors["layer1.0.conv1.weight"].view(-1)[0] = float("nan")
    torch.save(tensors, path)
    assert_refused(lambda file: load_imagenet(model, file), path, "layer1.0.conv1.weight")
