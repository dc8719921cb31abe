import os
import pickle
import struct
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from proda.models import weights as weights_module
from proda.models.deeplab import DeepLab
from proda.models.discriminator import Discriminator
from proda.models.weights import (
    load_discriminator,
    load_imagenet,
    load_into,
    load_prototypes,
    load_simclr,
    load_weights,
    save_prototypes,
    save_weights,
)


def network(num_classes: int = 19, **settings) -> DeepLab:
    return DeepLab(num_classes, blocks=(1, 1, 1, 1), width=2, head_channels=16, **settings)


def released(model: nn.Module, prototypes: torch.Tensor | None = None, **entries) -> dict:
    """What the released code saves (layout: ``checkpoint`` of the golden ``model_r101.json``)."""
    vectors = torch.zeros(19, 256) if prototypes is None else prototypes
    entry = {"model_state": OrderedDict(model.state_dict()), "objective_vectors": vectors}
    return {"ResNet101": entry, "iter": 1000, "best_iou": np.float64(0.5375), **entries}


def assert_same(model: nn.Module, other: nn.Module) -> None:
    for key, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[key]), key


def backbone(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.startswith("layer5")}


@pytest.mark.parametrize("zip_container", [True, False])
@pytest.mark.parametrize("prototypes", [None, torch.rand(19, 256)])
def test_released_checkpoint_loads_from_both_containers(tmp_path, zip_container, prototypes):
    model, path = network(), tmp_path / "from_gta5_to_cityscapes_on_deeplabv2_best_model.pkl"
    torch.save(released(model, prototypes), path, _use_new_zipfile_serialization=zip_container)
    weights, other = load_weights(path), network()
    assert weights.info == {"iter": 1000, "best_iou": 0.5375}
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


@pytest.mark.parametrize("module", ["numpy.core.multiarray", "numpy._core.multiarray"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_numpy_score_is_read_whichever_numpy_wrote_it(tmp_path, module, protocol):
    """The same bytes as numpy 1 or 2 writes, with the module name of either."""

    class Scalar:
        def __reduce__(self):
            # torch stores the name of a function, so a function of that name is what it takes to write one
            return (rename(module), (np.dtype("float64"), struct.pack("<d", 0.25)))

    def rename(module: str):
        def scalar(*arguments): ...

        scalar.__module__, scalar.__qualname__ = module, "scalar"
        return scalar

    assert pickle.loads(pickle.dumps(np.float64(0.25), protocol)) == 0.25
    path = tmp_path / "best_model.pkl"
    try:
        torch.save(released(network()) | {"best_iou": Scalar()}, path, pickle_protocol=protocol)
    except pickle.PicklingError:  # pickle looks the name up; write numpy's own and exchange the text
        ours = np.float64(0).__reduce__()[0].__module__
        torch.save(
            released(network()) | {"best_iou": np.float64(0.25)},
            path,
            pickle_protocol=protocol,
            _use_new_zipfile_serialization=False,
        )
        data = path.read_bytes()
        assert ours.encode() in data
        path.write_bytes(data)
    assert load_weights(path).info["best_iou"] == 0.25
