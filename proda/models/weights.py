"""Files of weights and of prototypes: every format that is read, and our own, which is written.

Read: our own files and checkpoints, released ``.pkl`` checkpoints of all stages and their prototype files, bare state
dicts. No code runs from any of them. Errors are one line: the file, what was found, what was expected.

Our weights file is a dict saved with ``torch.save``: ``format``, ``model`` (state dict), where there are any
``prototypes``, and one entry for each known value of :class:`~proda.models.model_info.ModelInfo`.
What a file does not say about its network is read off the tensors.
"""

import itertools
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from proda.models.build import BUILDERS, HEADS, build_network, is_file, recorded_name
from proda.models.model_info import ModelInfo, read_info
from proda.models.network import SegmentationNetwork
from proda.utils.errors import MissingFileError, UserError
from proda.utils.files import save_tensors, sha256
from proda.utils.record import check_format

FORMAT = 3
NETWORK = "ResNet101"  # top-level key of the network in released checkpoints


class Weights(NamedTuple):
    """The network of a weights file or checkpoint. All tensors are on the CPU."""

    model: dict[str, Tensor]
    info: ModelInfo
    path: str  # for messages


class _Float64:
    """Takes the place of ``numpy.dtype`` while unpickling; accepts one type only."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("f8", "<f8"):
            raise ValueError(f"a numpy scalar of type {code!r}, expected 'f8'")

    def __setstate__(self, state: object) -> None:
        """Ignores byte order and the like; the files were written on little-endian machines."""


def _float64_scalar(dtype: _Float64, value: bytes) -> float:
    """Takes the place of numpy's constructor of scalars."""
    if not isinstance(dtype, _Float64):
        raise ValueError("a numpy scalar without its type")
    return struct.unpack("<d", value)[0]


# Released checkpoints hold ``best_iou`` as a numpy.float64. Its pickle names two functions of numpy (the first by
# either of two names). The functions above are called in their place, so that a file can call nothing of numpy.
_ALLOWED: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (_float64_scalar, "numpy.core.multiarray.scalar"),
    (_float64_scalar, "numpy._core.multiarray.scalar"),
    (_Float64, "numpy.dtype"),
]


def load_weights(path: str | Path) -> Weights:
    """Reads a checkpoint: ours (``model``), a released one (``ResNet101``) or a bare state dict.

    Raises MissingFileError, or UserError for anything that is not such a file.
    """
    data = read_tensors(path)
    expected = f"expected 'model' (ours), {NETWORK!r} (released) or a state dict"
    if not isinstance(data, Mapping) or not data:
        raise UserError(f"{path}: found {describe(data)}, {expected}")
    check_format(data.get("format"), FORMAT, path)
    if NETWORK in data:
        entry = data[NETWORK]
        if not isinstance(entry, Mapping) or "model_state" not in entry:
            raise UserError(f"{path}: found {describe(entry)} under {NETWORK!r}, expected a dict with 'model_state'")
        model = entry["model_state"]
    elif "model" in data:
        model = data["model"]
    elif all(isinstance(value, Tensor) for value in data.values()):
        model, data = data, {}
    else:
        raise UserError(f"{path}: found {describe(data)}, {expected}")
    state = as_state_dict(model, path, "network")
    return Weights(state, _with_shapes(read_info(data, path), state), str(path))


def load_into(model: nn.Module, weights: Weights) -> None:
    """Copies a checkpoint's network into ``model``, which has to have the same keys and shapes.

    Raises UserError, with the first keys that differ on both sides or with the two numbers of classes, or for a number
    that is not finite; then nothing is copied.
    """
    own, found = model.state_dict(), weights.model
    theirs, ours = _num_classes(found), _num_classes(own)
    if theirs and ours and theirs != ours:
        raise UserError(
            f"{weights.path}: found weights for {theirs} classes, expected {ours} classes (--source, --num_classes)"
        )
    matching = matching_tensors(own, found)
    if not len(matching) == len(own) == len(found):
        raise UserError(mismatch(weights.path, own, found, matching))
    check_finite(weights.path, matching)
    model.load_state_dict(matching)


def load_network(
    source: str | Path | Weights,
    *,
    backbone: str = "",
    head: str = "",
    class_names: Sequence[str] = (),
    dropout: float = 0.1,
    flag: str = "weights",
) -> SegmentationNetwork:
    """A network with the weights of a file, on the CPU; with the batch norm after the backbone if the file has it.

    ``backbone``, ``head`` and ``class_names``, in the order of the logits, are what the network has to have; if they
    are empty, the file decides; ``head`` counts for backbones that leave the choice. A ``backbone`` that is a file
    ``NAME.py`` is executed; one that only the weights file names is not, and refused. Files that do not name their
    classes, such as released ones, are compared by the number of classes. ``flag``: the flag that named the file, for
    the message. Sets ``origin`` and ``class_names`` of the network.

    Raises:
        MissingFileError: no such file.
        UserError: weights of another backbone or head, of none that is known, of other classes, or of the same
            classes in another order.
    """
    weights = source if isinstance(source, Weights) else read_weights(source, flag=flag)
    path, info = weights.path, weights.info
    made_with = info.backbone or backbone
    if backbone and recorded_name(made_with) != recorded_name(backbone):
        raise UserError(f"{path}: found weights of --backbone={made_with}, expected --backbone={backbone}")
    if not backbone and is_file(made_with):
        raise UserError(f"{path}: found weights of a network of your own; give its code with --backbone={made_with}")
    if head in HEADS and info.head in HEADS and info.head != head:
        raise UserError(f"{path}: found weights of --head={info.head}, expected --head={head}")
    if len(info.class_names) == len(class_names):  # another number is reported by load_into
        for number, (found, expected) in enumerate(zip(info.class_names, class_names, strict=True)):
            if found != expected:
                raise UserError(
                    f"{path}: found weights whose class {number} is {found!r}, expected {expected!r}; "
                    "class names and their order have to be those of --source"
                )
    count = len(class_names) or info.num_classes
    if not count:
        raise UserError(f"{path}: its number of classes is unknown; set --source or --num_classes")
    made_head = next((name for name in (info.head, head) if name in HEADS), HEADS[0])
    options: dict[str, Any] = {"head": made_head, "bn_pretrain": _has_extra_norm(weights.model), "dropout": dropout}
    try:
        network = build_network(backbone or made_with, count, **options)
    except UserError as error:
        if backbone:
            raise
        found = made_with or "no known backbone"
        raise UserError(f"{path}: found weights of {found}, expected one of {', '.join(BUILDERS)} ({error})") from None
    load_into(network, weights)
    network.origin, network.class_names = sha256(path), tuple(class_names) or info.class_names
    return network


def read_weights(path: str | Path, *, flag: str = "weights") -> Weights:
    """As :func:`load_weights`; the message about a missing file names the flag that named it, if one did."""
    if not Path(path).is_file():
        named = f"--{flag}={path}" if flag else str(path)
        raise MissingFileError(f"{named}: no such file; expected weights, as a stage leaves in last.pt")
    return load_weights(path)


def weights_content(
    network: SegmentationNetwork,
    *,
    class_names: Sequence[str],
    prototypes: Tensor | None = None,
    **info: Any,
) -> dict[str, Any]:
    """What a weights file holds: enough to build the network again, to see whether it fits, and to use it.

    ``prototypes`` float32 [K, D]; ``info``: more fields of :class:`~proda.models.model_info.ModelInfo`, of which those
    that describe the network are its own. The tensors are the network's own, not copies. Raises ValueError if the
    number of names is not that of the network's classes.
    """
    if len(class_names) != network.num_classes:
        raise ValueError(f"{len(class_names)} class names for a network of {network.num_classes} classes")
    own = {"num_classes": network.num_classes, "backbone": network.backbone, "head": network.head}
    content = {
        "format": FORMAT,
        "model": network.state_dict(),
        **ModelInfo(**{**info, **own}, class_names=tuple(class_names)).plain(),
    }
    if prototypes is not None:
        content["prototypes"] = prototypes
    return content


def save_weights(path: str | Path, network: SegmentationNetwork, **content: Any) -> None:
    """Writes a weights file atomically; ``content`` as in :func:`weights_content`. OSError if it cannot be written."""
    save_tensors(weights_content(network, **content), Path(path))


def load_prototypes(path: str | Path) -> Tensor:
    """Prototypes float32 [K, D]: a bare tensor (released), ours (``prototypes``, ``counts``) or a checkpoint's.

    Raises MissingFileError, or UserError when the file holds none (all zero is none) or some that are not finite.
    """
    data = read_tensors(path)
    if isinstance(data, Mapping):
        check_format(data.get("format"), FORMAT, path)
    if isinstance(data, Mapping) and isinstance(data.get(NETWORK), Mapping):
        data = data[NETWORK].get("objective_vectors", data)
    for _ in range(2):  # in a checkpoint of ours they are a state dict of their own
        data = data.get("prototypes", data) if isinstance(data, Mapping) else data
    if not isinstance(data, Tensor) or data.ndim != 2:
        raise UserError(f"{path}: found {describe(data)}, expected prototypes [classes, features]")
    if not data.any():
        raise UserError(f"{path}: found prototypes that are all zero, expected those of a trained model")
    check_finite(path, {"prototypes": data})
    return data.float()


def save_prototypes(path: str | Path, prototypes: Tensor, counts: Tensor, *, made_from: Mapping[str, Any]) -> None:
    """Writes a prototypes file atomically.

    ``prototypes`` float32 [K, D]; ``counts`` float32 [K], how many image means each has seen. ``made_from``: all that
    they depend on, as plain values and lists of them, for instance the SHA-256 of the weights and the class names.
    """
    content = {"prototypes": prototypes.cpu(), "counts": counts.cpu(), "made_from": dict(made_from)}
    save_tensors({"format": FORMAT} | content, Path(path))


def prototypes_record(path: str | Path) -> dict[str, Any]:
    """What the prototypes of a file were made from, as given to :func:`save_prototypes`; empty if it does not say.

    Raises MissingFileError, or UserError for a damaged file.
    """
    data = read_tensors(path)
    record = data.get("made_from") if isinstance(data, Mapping) else None
    return dict(record) if isinstance(record, Mapping) else {}


def read_tensors(path: str | Path) -> Any:
    """What ``torch.save`` wrote, on the CPU; UserError for a file that is damaged or holds more than plain values."""
    path = Path(path)
    if not path.is_file():
        raise MissingFileError(
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
            reason = str(error).strip().partition("\n")[0][:120]
            if isinstance(error, pickle.UnpicklingError):  # torch's advice about weights_only is not for our users
                reason = "no such content"
            found = f"cannot be read ({type(error).__name__}: {reason})"
        raise UserError(f"{path}: {found}; expected tensors and plain values saved with torch.save") from None


def describe(data: object) -> str:
    """What a file holds, in a few words for a message."""
    if isinstance(data, Mapping):
        return f"a dict with {', '.join(repr(key) for key in list(data)[:4])}" if data else "an empty dict"
    return f"a tensor of shape {list(data.shape)}" if isinstance(data, Tensor) else f"{type(data).__name__}"


def as_state_dict(data: object, path: str | Path, what: str) -> dict[str, Tensor]:
    """``data``, if it is the state dict of a ``what``, with plain keys; UserError if it is not one."""
    if not isinstance(data, Mapping) or not data or not all(isinstance(value, Tensor) for value in data.values()):
        raise UserError(f"{path}: found {describe(data)}, expected the {what}'s state dict (name to tensor)")
    # Prefixes of DataParallel, and of the wrapper that torch.compile(network) returns.
    return {str(key).removeprefix("module.").removeprefix("_orig_mod."): value for key, value in data.items()}


def _with_shapes(info: ModelInfo, state: Mapping[str, Tensor]) -> ModelInfo:
    """``info`` with the number of classes, backbone and head that the tensors show, where it does not say them."""
    count = info.num_classes or _num_classes(state)
    if count and not info.backbone:
        backbone, head = _known_by_shapes(state, count)
        return replace(info, num_classes=count, backbone=backbone, head=head)
    return replace(info, num_classes=count)


def _known_by_shapes(state: Mapping[str, Tensor], num_classes: int) -> tuple[str, str]:
    """Backbone and head of the network that has tensors of these names and shapes; empty if none has."""
    shapes = {key: value.shape for key, value in state.items()}
    for head, backbone in itertools.product(HEADS, BUILDERS):
        try:
            with torch.device("meta"):  # without memory
                network = build_network(backbone, num_classes, head=head, bn_pretrain=_has_extra_norm(state))
        except UserError:  # the backbone does not take this head
            continue
        if {key: value.shape for key, value in network.state_dict().items()} == shapes:
            return backbone, network.head
    return "", ""


def _has_extra_norm(state: Mapping[str, Tensor]) -> bool:
    return any(key.startswith("bn_pretrain.") for key in state)


def _num_classes(state: Mapping[str, Tensor]) -> int:
    """By the classifier of either head of ours; 0 if there is none."""
    weights = (state.get(f"{place}.head.1.weight") for place in ("layer5", "decoder"))
    return next((len(weight) for weight in weights if weight is not None), 0)


def matching_tensors(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of ``found`` that have the name and the shape of one in ``own``."""
    return {key: found[key] for key, value in own.items() if key in found and found[key].shape == value.shape}


def check_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises UserError, with the first tensor that holds NaN or infinity: a network with it predicts nothing."""
    for key, value in tensors.items():
        if not value.sum().isfinite() and (strange := value.numel() - int(value.isfinite().sum())):  # sum() is fast
            raise UserError(
                f"{path}: found {strange} of {value.numel()} numbers in {key} that are NaN or infinite, expected "
                "finite weights: training diverged before they were saved"
            )


def mismatch(
    path: str | Path, own: Mapping[str, Tensor], found: Mapping[str, Tensor], matching: Mapping, what: str = "network"
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
