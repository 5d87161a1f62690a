"""Names of pictures by their pixels: what was said about one is never taken for another."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 16


def pixels_key(picture: NDArray[np.uint8]) -> str:
    """BLAKE2b of height, width and the pixels [H, W, 3], row by row, RGB."""
    digest = hashlib.blake2b(f"{picture.shape[0]}x{picture.shape[1]}:".encode(), digest_size=KEY_BYTES)
    digest.update(np.ascontiguousarray(picture).data)
    return digest.hexdigest()


def text_key(text: str) -> str:
    """Of what a picture is made of, in place of its pixels."""
    return hashlib.blake2b(text.encode(), digest_size=KEY_BYTES).hexdigest()
