from __future__ import annotations

import pytest
from scene import Scene, make_scene


@pytest.fixture
def scene() -> Scene:
    return make_scene()


@pytest.fixture
def empty_scene() -> Scene:
    return make_scene(objects=0)
