"""Classes of a user's own, named in a model file as `package.module:Class`."""

from __future__ import annotations

import importlib

from mtyolo.errors import ConfigError


def import_class(name: str, key: str, trust: bool) -> type:
    """Import a class by its path. A model file may come from anywhere, so this needs the caller's explicit trust."""
    if not trust:
        raise ConfigError(f"{key}: {name} would import code; say so with --trust, or trust=True from Python")
    module_name, _, class_name = name.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        raise ConfigError(f"{key}: {name}: {error}; is its folder on PYTHONPATH?") from None
    except AttributeError:
        raise ConfigError(f"{key}: the module {module_name} has no {class_name}") from None
    if not isinstance(found, type):
        raise ConfigError(f"{key}: {name} is no class")
    return found
