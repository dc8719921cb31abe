"""Every checkpoint format that is read; no code runs from any of them.

Read: our own checkpoints, released ``.pkl`` checkpoints of all stages and their prototype files, bare state dicts,
ImageNet weights of torchvision, SimCLR checkpoints. Errors are one line: the file, what was found, what was expected.
"""

import re
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, ResNet101_Weights

from proda.models.deeplab import DeepLab

IMAGENET = {(3, 4, 23, 3): ResNet101_Weights.IMAGENET1K_V1, (3, 4, 6, 3): ResNet50_Weights.IMAGENET1K_V1}
NETWORK, DISCRIMINATOR = "ResNet101", "FCDiscriminator"  # top-level keys of released checkpoints
ENOUGH = 0.5  # share of a network's tensors that must match where a complete match is not asked for


class Weights(NamedTuple):
    """What a checkpoint holds. All tensors are on the CPU."""

    model: dict[str, Tensor]
    prototypes: Tensor | None  # float32 [K, D]
    discriminator: dict[str, Tensor] | None
    info: dict[str, Any]  # the file's other plain entries: iter, best_iou, num_classes, ...
    path: str  # for messages


class _Float64:
    """Stands in for ``numpy.dtype`` while unpickling, and knows one type."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("f8", "<f8"):
            raise ValueError(f"a numpy scalar of type {code!r}, expected 'f8'")

    def __setstate__(self, state: object) -> None:
        """Byte order and the like; little-endian is all there is on the machines that wrote these files."""


def _float64_scalar(dtype: _Float64, value: bytes) -> float:
    """Stands in for numpy's scalar constructor."""
    if not isinstance(dtype, _Float64):
        raise ValueError("a numpy scalar without its type")
    return struct.unpack("<d", value)[0]


# Released checkpoints hold ``best_iou`` as a numpy.float64. Its pickle names two functions of numpy (the first by
# either of two names); these stand-ins are called in their place, so nothing of numpy is open to the file.
_ALLOWED = [
    (_float64_scalar, "numpy.core.multiarray.scalar"),
    (_float64_scalar, "numpy._core.multiarray.scalar"),
    (_Float64, "numpy.dtype"),
]


def load_weights(path: str | Path) -> Weights:
    """Reads a checkpoint: ours (``model``), a released one (``ResNet101``) or a bare state dict.

    Prototypes that are all zero, as released checkpoints hold them outside of stage 1, count as none.
    Raises FileNotFoundError, or ValueError for anything that is not such a file.
    """
    data = _read(path)
    expected = f"expected 'model' (ours), {NETWORK!r} (released) or a state dict"
    if not isinstance(data, Mapping) or not data:
        raise ValueError(f"{path}: found {_describe(data)}, {expected}")
    if NETWORK in data:
        entry = data[NETWORK]
        if not isinstance(entry, Mapping) or "model_state" not in entry:
            raise ValueError(f"{path}: found {_describe(entry)} under {NETWORK!r}, expected a dict with 'model_state'")
        discriminator = data.get(DISCRIMINATOR)
        if discriminator is not None:
            discriminator = discriminator.get("model_state") if isinstance(discriminator, Mapping) else discriminator
        model, prototypes = entry["model_state"], entry.get("objective_vectors")
    elif "model" in data:
        model, prototypes, discriminator = data["model"], data.get("prototypes"), data.get("discriminator")
    elif all(isinstance(value, Tensor) for value in data.values()):
        model, prototypes, discriminator = data, None, None
    else:
        raise ValueError(f"{path}: found {_describe(data)}, {expected}")
    return Weights(
        _state_dict(model, path, "network"),
        None if prototypes is None else _prototypes(prototypes, path, zeros_are_none=True),
        None if discriminator is None else _state_dict(discriminator, path, "discriminator"),
        {key: value for key, value in data.items() if isinstance(value, bool | int | float | str)},
        str(path),
    )


def load_into(model: nn.Module, source: str | Path | Weights, *, strict: bool = True) -> str:
    """Copies a checkpoint's network into ``model``; returns one line saying how many tensors matched.

    ``strict`` asks for the same keys and shapes; otherwise tensors that match are copied, at least half of the
    network's. Nothing is copied when an error is raised: ValueError with the first keys that differ on both sides, or
    with the two numbers of classes.
    """
    weights = source if isinstance(source, Weights) else load_weights(source)
    return _copy(model, weights.model, weights.path, strict=strict)


def load_discriminator(model: nn.Module, source: str | Path | Weights) -> str:
    """As :func:`load_into`, for the discriminator of a warm-up checkpoint. ValueError when there is none."""
    weights = source if isinstance(source, Weights) else load_weights(source)
    if weights.discriminator is None:
        raise ValueError(f"{weights.path}: found no discriminator, expected the checkpoint of a warm-up")
    return _copy(model, weights.discriminator, weights.path, strict=True)


def load_prototypes(path: str | Path) -> Tensor:
    """Prototypes float32 [K, D]: a bare tensor (released), ours (``prototypes``, ``counts``) or a checkpoint's.

    Raises FileNotFoundError, or ValueError when the file holds none (all zero is none).
    """
    data = _read(path)
    if isinstance(data, Mapping) and isinstance(data.get(NETWORK), Mapping):
        data = data[NETWORK].get("objective_vectors", data)
    elif isinstance(data, Mapping):  # in a checkpoint of ours they are a state dict of their own
        data = data.get("prototypes", data)
    return _prototypes(data, path)


def prototypes_origin(path: str | Path) -> str:
    """SHA-256 of the weights that the prototypes of a file were computed from; empty if it does not say."""
    data = _read(path)
    origin = data.get("origin", "") if isinstance(data, Mapping) else ""
    return origin if isinstance(origin, str) else ""


def load_imagenet(model: DeepLab, path: str | Path | None = None) -> str:
    """Fills the backbone with torchvision's ImageNet weights; returns one line saying how many tensors matched.

    ``path``: a state-dict file at hand. Without it they come from torch's download cache, or the network.
    Raises ValueError for a network that has no such weights, FileNotFoundError when they are not there and cannot be
    fetched.
    """
    if path is not None:
        return _fill_backbone(model, _state_dict(_read(path), path, "network"), str(path))
    weights = IMAGENET.get(model.blocks)
    if weights is None or model.width != 64:
        raise ValueError(f"no ImageNet weights for blocks {model.blocks} of width {model.width}, expected a ResNet")
    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(weights.url).name
    try:
        if not cached.exists():
            cached.parent.mkdir(parents=True, exist_ok=True)
            prefix = cached.stem.rpartition("-")[2]  # the name carries the start of the file's SHA-256
            torch.hub.download_url_to_file(weights.url, str(cached), hash_prefix=prefix)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"ImageNet weights: {cached} is not there and {weights.url} cannot be fetched ({error}); give a local file"
        ) from None
    return _fill_backbone(model, _state_dict(_read(cached), cached, "network"), str(cached))


def load_simclr(model: DeepLab, path: str | Path) -> str:
    """Fills the backbone from a self-supervised checkpoint, whose tensors are under ``state_dict``.

    Returns one line saying how many tensors matched. Raises FileNotFoundError or ValueError.
    """
    data = _read(path)
    if not isinstance(data, Mapping) or "state_dict" not in data:
        raise ValueError(f"{path}: found {_describe(data)}, expected a SimCLR checkpoint with 'state_dict'")
    return _fill_backbone(model, _state_dict(data["state_dict"], path, "network"), str(path))


def _read(path: str | Path) -> Any:
    """Unpickles tensors and plain values on the CPU, and refuses everything else."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: found {'a folder' if path.is_dir() else 'no such file'}, expected a weights file"
        )
    try:
        if zipfile.is_zipfile(path):  # as torch.save writes it: with checksums that torch.load does not test
            with zipfile.ZipFile(path) as archive:
                if altered := archive.testzip():
                    raise ValueError(f"the checksum of {altered} differs")
        with torch.serialization.safe_globals(_ALLOWED):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # what a damaged file raises depends on where it is damaged
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            found = f"found a call of {refused[1]}, which is not run"
        else:
            found = f"cannot be read ({type(error).__name__}: {str(error).strip().partition(chr(10))[0][:120]})"
        raise ValueError(f"{path}: {found}; expected tensors and plain values saved with torch.save") from None


def _describe(data: object) -> str:
    if isinstance(data, Mapping):
        return f"a dict with {', '.join(repr(key) for key in list(data)[:4])}" if data else "an empty dict"
    return f"a tensor of shape {list(data.shape)}" if isinstance(data, Tensor) else f"{type(data).__name__}"


def _state_dict(data: object, path: str | Path, what: str) -> dict[str, Tensor]:
    if not isinstance(data, Mapping) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise ValueError(f"{path}: found {_describe(data)}, expected the {what}'s state dict (name to tensor)")
    return {str(key).removeprefix("module."): value for key, value in data.items()}  # "module." is DataParallel's


def _prototypes(data: object, path: str | Path, *, zeros_are_none: bool = False) -> Tensor | None:
    if isinstance(data, Mapping):
        data = data.get("prototypes", data)
    if not isinstance(data, Tensor) or data.ndim != 2:
        raise ValueError(f"{path}: found {_describe(data)}, expected prototypes [classes, features]")
    if not data.any():
        if zeros_are_none:
            return None
        raise ValueError(f"{path}: found prototypes that are all zero, expected those of a trained model")
    return data.float()


def _num_classes(state: Mapping[str, Tensor]) -> int | None:
    if "layer5.head.1.weight" in state:
        return state["layer5.head.1.weight"].shape[0]
    if "classifier.weight" in state and "conv1.weight" in state:  # a discriminator, which reads the classes
        return state["conv1.weight"].shape[1]
    return None


def _copy(model: nn.Module, found: dict[str, Tensor], path: str, *, strict: bool) -> str:
    own = model.state_dict()
    theirs, ours = _num_classes(found), _num_classes(own)
    if theirs is not None and ours is not None and theirs != ours:
        raise ValueError(
            f"{path}: found weights for {theirs} classes, expected {ours} classes (--source, --num_classes)"
        )
    matching = _matching(own, found)
    complete = len(matching) == len(own) == len(found)
    if (strict and not complete) or len(matching) < ENOUGH * len(own):
        raise ValueError(_mismatch(path, own, found, matching))
    model.load_state_dict(matching, strict=complete)
    return f"{path}: {len(matching)} of the network's {len(own)} tensors loaded, {len(found) - len(matching)} left over"


def _fill_backbone(model: DeepLab, found: dict[str, Tensor], path: str) -> str:
    """Copies what the file shares with the backbone, which must be all of it (old files lack the batch counters)."""
    own = {key: value for key, value in model.state_dict().items() if not key.startswith(("layer5.", "bn_pretrain."))}
    matching = _matching(own, found)
    if any(key not in matching for key in own if not key.endswith("num_batches_tracked")):
        backbone = {key: value for key, value in found.items() if not key.startswith("fc.")}
        raise ValueError(_mismatch(path, own, backbone, matching, what="backbone"))
    model.load_state_dict(matching, strict=False)
    return (
        f"{path}: {len(matching)} of the backbone's {len(own)} tensors loaded, {len(found) - len(matching)} left over"
    )


def _matching(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: found[key] for key, value in own.items() if key in found and found[key].shape == value.shape}


def _mismatch(
    path: str, own: Mapping[str, Tensor], found: Mapping[str, Tensor], matching: Mapping, what: str = "network"
) -> str:
    """One line with the first key that either side has alone, and the first whose shapes differ."""
    parts = []
    if extra := next((key for key in found if key not in own), None):
        parts.append(f"first only in the file: {extra}")
    if missing := next((key for key in own if key not in found), None):
        parts.append(f"first only in the {what}: {missing}")
    if key := next((key for key in own if key in found and key not in matching), None):
        parts.append(f"first of another shape: {key}, found {list(found[key].shape)}, expected {list(own[key].shape)}")
    return f"{path}: found {len(matching)} of the {len(own)} tensors expected by the {what}; {'; '.join(parts)}"


def weights_content(network, *, class_names, **more):
    return {
        "model": network.state_dict(),
        "num_classes": network.num_classes,
        "backbone": network.backbone,
        "class_names": list(class_names),
        **more,
    }


def load_network(path, *, backbone, class_names, dropout=0.1):
    from proda.models.network import build_network
    from proda.utils.files import sha256

    weights = load_weights(path)
    extra = any(key.startswith("bn_pretrain.") for key in weights.model)
    network = build_network(backbone, len(class_names), bn_pretrain=extra, dropout=dropout)
    load_into(network, weights)
    network.origin = sha256(path)
    return network


def save_prototypes(path, prototypes, counts, *, made_from):
    from proda.utils.files import save_tensors

    save_tensors({"prototypes": prototypes.cpu(), "counts": counts.cpu(), "made_from": dict(made_from)}, path)


def prototypes_record(path):
    data = _read(path)
    return data.get("made_from", {}) if isinstance(data, Mapping) else {}
