"""Contrastive learning of features without labels: the loss of SimCLR and three measures of a representation.

Embeddings come in pairs, two views of the same image or of the same region of an image. N pairs of a process, M of all
processes together, D dimensions.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Contrast(NamedTuple):
    """The loss and the share of pairs that are recognised; both are float32 scalars."""

    loss: Tensor
    accuracy: Tensor  # of embeddings whose nearest other embedding is their partner, 0..1; without gradient


def nt_xent(
    embeddings: Tensor, temperature: float, *, all_embeddings: Tensor | None = None, first: int = 0
) -> Contrast:
    """The symmetric InfoNCE loss: each embedding has to find its partner among all embeddings but itself.

    It is the mean over the 2 N embeddings of the cross entropy of softmax(cosine similarity / temperature) over the
    2 M - 1 others, with the partner as the label. Both views are anchors, and both provide negatives. Without any
    preference it is log(2 M - 1).

    With several processes, each passes its own pairs and all pairs. The mean of the processes' losses is then the loss
    of the global batch. So is its gradient if gathering the embeddings returns the gradients of all processes.

    Args:
        embeddings: float [2, N, D], the two views; of any length, since only their directions count.
        temperature: positive; a low one emphasises the most similar negatives.
        all_embeddings: float [2, M, D] of all processes; ``embeddings`` if None.
        first: place in it of the first pair of ``embeddings``.

    Source: NT-Xent of SimCLR (arXiv:2002.05709), equation 1.
    """
    candidates = embeddings if all_embeddings is None else all_embeddings
    pairs, total = embeddings.shape[1], candidates.shape[1]
    logits = _unit(embeddings).flatten(0, 1) @ _unit(candidates).flatten(0, 1).T / temperature
    place = first + torch.arange(pairs, device=logits.device)
    itself, partner = torch.cat([place, total + place]), torch.cat([total + place, place])
    logits = logits.scatter(1, itself.unsqueeze(1), -torch.inf)
    return Contrast(F.cross_entropy(logits, partner), (logits.detach().argmax(1) == partner).float().mean())


def matching_accuracy(regions: Tensor) -> Tensor:
    """Share of regions whose most similar region in the other view of their image is the same region.

    ``regions`` [2, N, R, D]: R regions of N images in both views. Returns [N], each 0..1; chance is 1 / R.
    """
    one, other = _unit(regions)
    similarity = one @ other.mT  # [N, R, R]
    right = torch.arange(similarity.shape[-1], device=similarity.device)
    hits = [similarity.argmax(dim) == right for dim in (-1, -2)]
    return torch.cat(hits, dim=1).float().mean(1)


def alignment(embeddings: Tensor) -> Tensor:
    """Mean squared distance of the partners on the unit sphere: 0 (equal) to 4 (opposite). Low is good.

    ``embeddings`` [2, N, D]. Source: Wang and Isola (arXiv:2005.10242), with exponent 2.
    """
    one, other = _unit(embeddings)
    return (one - other).square().sum(-1).mean()


def uniformity(embeddings: Tensor) -> Tensor:
    """How evenly the embeddings cover the unit sphere: log of the mean of exp(-2 distance²) over all pairs of images.

    ``embeddings`` [2, N, D] with N of at least 2; the pairs are formed within each view. The value is 0 if all
    embeddings are equal (collapse), and close to -4 if they are spread evenly in many dimensions. Low is good.
    Source: Wang and Isola (arXiv:2005.10242), with factor 2.
    """
    unit = _unit(embeddings)
    others = ~torch.eye(unit.shape[1], dtype=torch.bool, device=unit.device)
    squared = 2 - 2 * (unit @ unit.mT)[:, others]
    return squared.mul(-2).exp().mean().log()


def _unit(embeddings: Tensor) -> Tensor:
    return F.normalize(embeddings.float(), dim=-1)
