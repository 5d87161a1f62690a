"""What teachers look at: pictures of a batch, drawn when one of them does, with names that saved outputs go by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mtyolo.keys import pixels_key
from mtyolo.structures import Batch, Draw, input_size


@dataclass
class Pictures:
    """A batch's. given: keys of those that whoever loaded them could name."""

    draw: Draw  # numbers -> [N, 3, H, W] uint8
    given: Sequence[str | None]
    size: tuple[int, int]  # height, width
    device: torch.device

    def of(self, numbers: Sequence[int]) -> Tensor:
        """[N, 3, H, W] uint8, where the student computes."""
        return self.draw(numbers).to(self.device)

    @property
    def all(self) -> Tensor:
        return self.of(range(len(self.given)))

    @cached_property
    def keys(self) -> list[str]:
        unnamed = [number for number, key in enumerate(self.given) if key is None]
        found = iter(keys_of(self.draw(unnamed)) if unnamed else [])
        return [next(found) if key is None else key for key in self.given]


def drawn(images: Tensor, keys: Sequence[str | None] | None = None) -> Pictures:
    """images: [B, 3, H, W] uint8 that are there already."""

    def draw(numbers: Sequence[int]) -> Tensor:
        return images if len(numbers) == len(images) else images[list(numbers)]

    return Pictures(draw, keys or [None] * len(images), (images.shape[-2], images.shape[-1]), images.device)


def pictures_of(batch: Batch) -> Pictures:
    """Of a batch that has images, or can draw them."""
    if batch.images is not None:
        return drawn(batch.images, batch.keys)
    assert batch.draw is not None, "a stage with teachers has pictures"
    assert batch.keys is not None
    size, device = input_size(None, batch.pyramid), batch.targets.classes.device
    return Pictures(batch.draw, batch.keys, size, device)


def keys_of(images: Tensor) -> list[str]:
    """Of pictures [B, 3, H, W] uint8, by their pixels."""
    return [pixels_key(picture) for picture in images.permute(0, 2, 3, 1).cpu().numpy()]
