"""Classes of a user's own, named in a model file as `package.module:Class`."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mtyolo.errors import ConfigError


def import_class(name: str, key: str, trust: bool) -> type:
    """Import a class by its path. A model file may come from anywhere, so this needs the caller's explicit trust.

    Modules are found where Python looks, and then in the folder one stands in, as scripts find them.
    """
    if not trust:
        raise ConfigError(f"{key}: {name} would import code; say so with --trust, or trust=True from Python")
    module_name, _, class_name = name.partition(":")
    if module_name.endswith(".py"):
        raise ConfigError(f"{key}: {name}: write the module as import does, {module_name.removesuffix('.py')}:…")
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except ImportError as error:
        raise ConfigError(
            f"{key}: {name}: {error}; modules are looked for in this folder and on PYTHONPATH: is it there?"
        ) from None
    except AttributeError:
        raise ConfigError(f"{key}: the module {module_name} has no {class_name}") from None
    if not isinstance(found, type):
        raise ConfigError(f"{key}: {name} is no class")
    return found


def import_path_of(name: str) -> str | None:
    """What a person meant who named a class as `mynet.MyNet`, `MyNet` or, where mynet.py lies in this folder, `mynet`.
    Nothing is imported."""
    module, _, last = name.rpartition(".")
    if not all(part.isidentifier() for part in name.split(".")):
        return None
    if last[0].isupper() or (module and _is_here(module)):
        return f"{module or '<module>'}:{last}"
    return f"{name}:<Class>" if _is_here(name) else None


def _is_here(module: str) -> bool:
    return Path(*module.split(".")).with_suffix(".py").is_file()


def call_own(what: str, make: Callable[..., Any], *positional: Any, **named: Any) -> Any:
    """Make something of a user's own. Raises ConfigError where it does not take these arguments; what goes wrong
    inside keeps its traceback, as it is the user's to mend."""
    try:
        inspect.signature(make).bind(*positional, **named)
    except TypeError as error:
        raise ConfigError(f"{what}: {error}") from None
    return make(*positional, **named)
