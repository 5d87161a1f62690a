"""Weights from the model hub, and a quick, helpful no where there is no way to it."""

from __future__ import annotations

import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from mtyolo.errors import ConfigError

TIMEOUT = 3.0
"""Seconds to find out that there is no way to the hub, before its client retries for most of a minute."""


def from_hub(name: str, arguments: Mapping[str, Any], remedy: str) -> dict[str, Tensor]:
    """The tensors of timm's default weights for a model, by timm's names.

    Raises ConfigError that ends in the remedy where they can not be had.
    """
    import timm

    try:
        with _no_vain_retries():
            return timm.create_model(name, pretrained=True, **arguments).state_dict()
    except (OSError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0].split(".")[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"extractor.weights: imagenet: the weights of {name} can not be had from the model hub ({reason}); {remedy}"
        ) from None


@contextmanager
def _no_vain_retries() -> Iterator[None]:
    """Without a way to the hub look only into its cache."""
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not _reachable(constants.ENDPOINT)
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _reachable(address: str) -> bool:
    if urllib.request.getproxies().keys() - {"no"}:
        return True  # only the proxy knows
    place = urllib.parse.urlsplit(address)
    port = place.port or (80 if place.scheme == "http" else 443)
    try:
        socket.create_connection((place.hostname, port), TIMEOUT).close()
    except OSError:
        return False
    return True
