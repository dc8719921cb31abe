"""How long one image takes in each runtime on this machine."""

import copy
import os
import shutil
import time
from collections.abc import Callable, Mapping
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor, nn

from proda.export.formats import Runner, quiet
from proda.utils.errors import UserError

ENOUGH = 5.0  # seconds after which a runtime is not measured again
RUNS = (3, 20)  # fewest and most runs, whatever they take


class Latency(NamedTuple):
    """Time of one runtime."""

    milliseconds: float  # median of the runs
    runs: int


def measure(run: Runner, image: Tensor) -> Latency:
    """The median time of ``run`` on an image [1, 3, H, W], after a first run that is not counted.

    ``run`` returns its result on the CPU, so that a GPU has finished when it returns.
    """
    run(image)
    seconds: list[float] = []
    while len(seconds) < RUNS[0] or (sum(seconds) < ENOUGH and len(seconds) < RUNS[1]):
        started = time.perf_counter()
        run(image)
        seconds.append(time.perf_counter() - started)
    return Latency(1000 * median(seconds), len(seconds))


def measure_all(runtimes: Mapping[str, Callable[[], Runner]], image: Tensor) -> dict[str, Latency | str]:
    """Name of a runtime -> its latency, or one line that says why it cannot run here.

    ``runtimes``: name -> what makes it ready to run. It is made right before it is measured.
    """
    found: dict[str, Latency | str] = {}
    for name, make in runtimes.items():
        try:
            with quiet():
                found[name] = measure(make(), image)
        except UserError as error:
            found[name] = str(error)
        except Exception as error:  # each runtime has its own errors, and other rows are of use without this one
            found[name] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
    return found


def eager(module: nn.Module, device: str) -> Runner:
    """A copy of the module on the device."""
    return _without_gradients(copy.deepcopy(module).to(device), device)


def compiled(module: nn.Module, device: str) -> Runner:
    """As :func:`eager`, through torch.compile, for one size of images. UserError if there is no C++ compiler."""
    if not has_compiler():
        raise UserError("torch.compile needs a C++ compiler, and none was found")
    return _without_gradients(torch.compile(copy.deepcopy(module).to(device), dynamic=False), device)


def has_compiler() -> bool:
    """Whether there is a C++ compiler: that of $CXX, or else one of the usual names."""
    choices = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "c++", "clang++", "cl"]
    return any(shutil.which(name) for name in choices)


def _without_gradients(call: Runner, device: str) -> Runner:
    @torch.no_grad()
    def run(image: Tensor) -> Tensor:
        return call(image.to(device)).cpu()

    return run
