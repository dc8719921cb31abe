"""How much memory work on tensors takes, counted without doing it.

Under ``fake_tensors`` every tensor has a shape, a type and a device but no data, so networks and batches of any size
cost neither memory nor arithmetic. ``LiveBytes`` counts the bytes of the tensors that exist, as it does for real ones.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._guards import detect_fake_mode
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_map_only


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations return within the context: ``live`` now, and their ``peak``.

    Each storage counts once, however many views of it exist, until the last of them is gone. What an operation
    allocates and releases within itself is not seen: work space of convolutions, and copies inside fused kernels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live = self.peak = 0
        self._known: set[int] = set()  # addresses of the storages that are alive

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return _one(args[0].dtype)  # a handler reads a number, such as loss.item()
        result = func(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._count, result)
        return result

    def reset_peak(self) -> None:
        self.peak = self.live

    def _count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address not in self._known:
            self._known.add(address)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._release, address, size)
        return tensor

    def _release(self, address: int, size: int) -> None:
        self._known.discard(address)
        self.live -= size


@contextlib.contextmanager
def fake_tensors() -> Iterator[LiveBytes]:
    """A context in which no tensor has data; gives the count of the bytes that real ones would take.

    Tensors from outside cannot be used in it, and an operation whose result's shape depends on data raises. A number
    that is read out of a tensor is 1. On a machine without a GPU the fake tensors are those of the CPU, with the memory
    that CUDA's would take.
    """
    with FakeTensorMode(), LiveBytes() as count, _FakeAsReal():
        yield count


def built(build: Callable[[], nn.Module], device: torch.device) -> Any:
    """What ``build()`` returns, on ``device``; within ``fake_tensors``, with tensors without data.

    Libraries read numbers out of tensors when they build a network, so it is built outside of such a context then.
    """
    if detect_fake_mode() is None:
        with device:
            return build()
    with _disable_current_modes(), torch.device("meta"):
        network = build()
    return network._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))


def _one(dtype: torch.dtype) -> bool | int | float:
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1


class _FakeAsReal(TorchFunctionMode):
    """What fake tensors of the CPU would do otherwise than real ones on CUDA.

    Autocast computes group norm in float32 on CUDA, and in half precision on the CPU; it treats no other operation of
    the networks differently. Fake tensors cannot be deep-copied.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.nn.functional.group_norm and torch.is_autocast_enabled("cpu"):
            with torch.autocast("cpu", enabled=False):
                return func(args[0].float(), *args[1:], **(kwargs or {}))
        if func is Tensor.__deepcopy__:
            return _deepcopy(*args)
        return func(*args, **(kwargs or {}))


def _deepcopy(tensor: Tensor, memo: dict[int, Any]) -> Tensor:
    if id(tensor) not in memo:
        copy = tensor.detach().clone()
        memo[id(tensor)] = nn.Parameter(copy, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copy
    return memo[id(tensor)]


def tensor_bytes(tensors: Any) -> int:
    """Bytes of the different storages of all tensors in nested dicts, lists and tuples."""
    storages: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage._cdata] = storage.nbytes()
        return tensor

    tree_map_only(Tensor, note, tensors)
    return sum(storages.values())
