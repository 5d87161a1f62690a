"""Who takes part with what, and what it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from mini_graph import MINI
from torch import Tensor, nn

import mtyolo
from mtyolo.data.shapes import make_shapes
from mtyolo.exported import open_exported
from mtyolo.extractors import Extractor
from mtyolo.prediction.sources import find_sources
from mtyolo.structures import Level, Pyramid
from mtyolo.timing.entrants import Entrant, entrants_of
from mtyolo.timing.pictures import pictures

SIZE, BATCH = 64, 2
GIVEN: dict[str, Any] = {
    "extractor": {"name": "features", "levels": {8: 4, 16: 4, 32: 4}},
    "detector": {"graph": "yolov5n.yaml"},
}


class Grid(Extractor):
    """Means of cells, once more with a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = tuple(Level(stride, 3) for stride in (8, 16, 32))
        self.identity = {"name": "grid"}
        self.scale = nn.Parameter(torch.ones(7))

    def forward(self, images: Tensor) -> Pyramid:
        return {level.stride: nn.functional.avg_pool2d(images, level.stride) * self.scale[0] for level in self.levels}


def model_of(content: Any, **options: Any) -> mtyolo.Model:
    torch.manual_seed(0)
    return mtyolo.build(content, **options)


def entrants(model: Any) -> dict[str, Entrant]:
    return {one.takes: one for one in entrants_of("name", model, pictures([], BATCH, SIZE))}


def test_an_extractor_takes_part_on_images_and_its_detector_on_what_it_gave() -> None:
    model = model_of({"extractor": {"name": "own"}, "detector": {"graph": "yolov5n.yaml"}}, extractors={"own": Grid})
    found = entrants(model)
    assert list(found) == ["images", "features"]
    with torch.no_grad():
        whole, late = found["images"].look(), found["features"].look()
    assert all(torch.allclose(*levels, atol=1e-5) for levels in zip(whole.detect, late.detect, strict=True))
    assert found["images"].parameters == sum(one.numel() for one in model.parameters())
    assert found["features"].parameters == (found["images"].parameters or 0) - 7
    assert len(found["features"].find(late)) == BATCH


@pytest.mark.parametrize(("content", "takes"), [("yolov5n.yaml", ["images"]), (GIVEN, ["features"])])
def test_others_take_part_with_the_one_that_they_take(content: Any, takes: list[str]) -> None:
    found = entrants(model_of(content))
    assert list(found) == takes
    with torch.no_grad():
        outputs = found[takes[0]].look()
    assert [level.shape[:4] for level in outputs.detect] == [(BATCH, 3, SIZE // s, SIZE // s) for s in (8, 16, 32)]


@pytest.mark.parametrize("takes", ["images", "features"])
def test_exported_networks_take_part_with_what_they_were_exported_for(takes: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    extractor = {"extractor": GIVEN["extractor"]} if takes == "features" else {}
    model = model_of({"detector": {"graph": MINI}} | extractor)
    (found,) = entrants(open_exported(mtyolo.export(model, tmp_path / "net.onnx", size=SIZE).path)).values()
    assert (found.takes, found.parameters) == (takes, None)
    assert len(found.find(found.look())) == BATCH


def test_pictures_are_those_of_a_folder_from_the_first_again_or_drawn(tmp_path: Path) -> None:
    make_shapes(tmp_path, train=2, val=1, size=SIZE)
    given = pictures(find_sources(tmp_path / "images" / "train"), 3, SIZE)
    assert given.shape == (3, 3, SIZE, SIZE)
    assert given.dtype == torch.uint8
    assert torch.equal(given[0], given[2])
    assert not torch.equal(given[0], given[1])
    drawn = pictures([], 2, SIZE)
    assert drawn.shape == (2, 3, SIZE, SIZE)
    assert drawn.float().std() > 10
