"""ProDA as an event-driven system on PyTorch-Ignite (Zhang et al., CVPR 2021, arXiv:2101.10979).

``proda.load_model("last.pt")`` makes a trained network usable in a program of your own.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from proda.trained_model import TrainedModel as TrainedModel
    from proda.trained_model import load_model as load_model

__version__ = "0.1.0"
_LATER = ("TrainedModel", "load_model")  # not __all__, whose names pdoc expects to exist


def __getattr__(name: str) -> Any:
    """Imports torch, which takes seconds, when ``load_model`` is first used."""
    if name not in _LATER:
        raise AttributeError(f"module 'proda' has no attribute {name!r}")
    from proda import trained_model

    return getattr(trained_model, name)
