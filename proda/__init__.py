"""ProDA as an event-driven system on PyTorch-Ignite (Zhang et al., CVPR 2021, arXiv:2101.10979)."""

__version__ = "0.1.0"
