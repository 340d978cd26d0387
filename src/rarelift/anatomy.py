"""What joint attention does to the text: how its tokens lie about their mean, block by block."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from .locate import Site, UnsupportedModelError, locate

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Concentration:
    """The text stream as one block reads it: norm of the token mean over root mean square deviation from it.

    0: tokens cancel; 1: the mean is as large as a typical deviation; large: tokens are nearly the same vector.
    """

    site: str
    ratio: float


def concentration(z: Tensor, weights: Tensor | None = None) -> Tensor:
    """|mean| / |deviation| of text tokens, [B], in float32.

    Args:
        z: text tokens, [B, L, D].
        weights: which tokens count, [B, L] in 0..1; all when None.

    |mean| is the norm of the weighted token mean, |deviation| the root of the weighted mean squared distance to it.
    """
    z = z.float()
    w = torch.ones(z.shape[:2]) if weights is None else weights.float()
    w = (w / w.sum(1, keepdim=True)).to(z).unsqueeze(-1)
    mean = (w * z).sum(1, keepdim=True)
    deviation = (w * (z - mean).square()).sum((1, 2)).sqrt()
    return torch.as_tensor(mean.squeeze(1).norm(dim=-1) / deviation)


@contextmanager
def captured(target: object) -> Iterator[dict[str, list[Tensor]]]:
    """Collect, by site, the text stream that every call inside the block is given, before any lift of it.

    The model is left as it was.

    Raises:
        UnsupportedModelError: the text is packed into one sequence with the image, where this cannot see it yet.
    """
    packed = [site.name for site in locate(target) if site.family.layout == "packed"]
    if packed:
        raise UnsupportedModelError(f"anatomy sees dual streams only, and {packed[0]} has text and image in one")
    streams: dict[str, list[Tensor]] = {}
    with ExitStack() as listening:
        for site in locate(target):
            listening.callback(_listen(site, streams.setdefault(site.name, [])).remove)
        yield streams


def _listen(site: Site, into: list[Tensor]) -> Any:
    names = list(inspect.signature(type(site.module).forward).parameters)[1:]
    position = names.index(site.family.text)

    def hook(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        text = kwargs[site.family.text] if site.family.text in kwargs else args[position]
        into.append(text.detach().clone())

    return site.module.register_forward_pre_hook(hook, with_kwargs=True)
