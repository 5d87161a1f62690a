"""Targets that are wrong are named, by whoever writes a loop of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import yaml

from mtyolo.api import build
from mtyolo.config.model import shipped_configs
from mtyolo.errors import DataError
from mtyolo.model import Model
from mtyolo.structures import Outputs, Targets
from mtyolo.training.objectives.tasks import losses

Change = Callable[[Targets], dict[str, Any]]


@pytest.fixture(scope="module")
def model() -> Model:
    torch.manual_seed(0)
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    graph |= {"width_multiple": 0.05, "depth_multiple": 0.1}
    tasks = {"detect": {}, "segment": {"prototypes": 4, "channels": 8}, "keypoint": {"points": 2}}
    return build({"detector": {"graph": graph}, "tasks": tasks, "names": ["a", "b"]})


@pytest.fixture(scope="module")
def outputs(model: Model) -> Outputs:
    return model(torch.rand(2, 3, 64, 64))


def targets() -> Targets:
    boxes = torch.tensor([[0.5, 0.5, 0.2, 0.3], [0.3, 0.3, 0.4, 0.4]])
    masks, points = torch.ones(2, 16, 16, dtype=torch.uint8), torch.rand(2, 2, 3)
    points[..., 2] = torch.tensor([1, 2])
    return Targets(torch.tensor([0, 1]), torch.tensor([0, 1]), boxes, masks, points)


WRONG: dict[str, tuple[Change, str]] = {
    "a class too many": (
        lambda t: {"classes": t.classes + 1},
        "classes: 2 is none of the 2 classes in the model, from 0",
    ),
    "a negative class": (lambda t: {"classes": t.classes - 1}, "classes: -1 is none of the 2 classes in the model"),
    "an image too many": (
        lambda t: {"image_index": t.image_index + 1},
        "image_index: 2 is none of the 2 images in the",
    ),
    "float classes": (lambda t: {"classes": t.classes.float()}, r"classes: expected int64 \[2\] .*, got float32 \[2\]"),
    "float images": (lambda t: {"image_index": t.image_index.float()}, "image_index: expected int64 .*, got float32"),
    "points in pixels": (
        lambda t: {"keypoints": t.keypoints * torch.tensor([64, 64, 1])},
        "keypoints: x and y are fractions of the network",
    ),  # type: ignore[operator]
    "endless points": (
        lambda t: {"keypoints": t.keypoints / torch.tensor([0, 0, 1])},
        "keypoints: x and y are fractions .*and finite",
    ),  # type: ignore[operator]
    "too few classes": (lambda t: {"classes": t.classes[:1]}, r"classes: expected int64 \[2\] for 2 objects.*\[1\]"),
    "one box": (lambda t: {"boxes_cxcywh": t.boxes_cxcywh[0]}, r"boxes_cxcywh: expected float32 \[4, 4\]|image_index"),
    "double boxes": (lambda t: {"boxes_cxcywh": t.boxes_cxcywh.double()}, "boxes_cxcywh: expected float32 .*float64"),
    "pixels": (
        lambda t: {"boxes_cxcywh": t.boxes_cxcywh * 64},
        "boxes_cxcywh: 12.8 to 32; .* fractions of the network",
    ),
    "no numbers": (lambda t: {"boxes_cxcywh": t.boxes_cxcywh * torch.nan}, "boxes_cxcywh: not all of them are finite"),
    "lists": (lambda t: {"classes": [0, 1]}, r"classes: expected int64 \[2\] for 2 objects, got list"),
    "elsewhere": (lambda t: {"classes": t.classes.to("meta")}, r"classes is on meta, the outputs on cpu; targets\.to"),
    "other points": (lambda t: {"keypoints": torch.rand(2, 3, 3)}, r"keypoints: expected float32 \[2, 2, 3\]"),
    "odd visibility": (
        lambda t: {"keypoints": t.keypoints - torch.tensor([0, 0, 0.5])},  # type: ignore[operator]
        "keypoints: visibility 0.5 is not 0",
    ),
    "no visibility": (lambda t: {"keypoints": t.keypoints * torch.nan}, "keypoints: visibility nan is not 0"),  # type: ignore[operator]
    "masks of 255": (lambda t: {"masks": t.masks * 255}, "masks: 255 to 255; they are 0 and 1, as masks > 0 makes"),  # type: ignore[operator]
    "masks below 0": (lambda t: {"masks": -t.masks.float()}, "masks: -1 to -1; they are 0 and 1"),  # type: ignore[union-attr]
    "masks in a list": (lambda t: {"masks": [[0, 1]]}, r"masks: expected \[2, H/4, W/4\] .*, got list"),
    "an unknown task": (
        lambda t: {"labelled": {"segmnt": torch.ones(2).bool()}},
        "labelled: .*; did you mean 'segment'",
    ),
    "flags too few": (
        lambda t: {"labelled": {"detect": torch.ones(1).bool()}},
        r"labelled\['detect'\]: .*got bool \[1\]",
    ),
    "flags in a list": (
        lambda t: {"labelled": {"segment": [True, True]}},
        r"labelled\['segment'\]: expected bool \[2\] for 2 images, got list",
    ),
    "flags as numbers": (lambda t: {"labelled": {"keypoint": torch.ones(2)}}, "labelled.*expected bool .*got float32"),
    "flags elsewhere": (
        lambda t: {"labelled": {"detect": torch.ones(2, device="meta").bool()}},
        r"labelled\['detect'\] is on meta",
    ),
    "labelled of none": (
        lambda t: {"labelled": None},
        r"labelled: expected a dictionary, task -> bool \[2\], got None",
    ),
    "a mask too few": (lambda t: {"masks": t.masks[:1]}, r"masks: expected \[2, H/4, W/4\] in 0 and 1"),  # type: ignore[index]
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_targets_are_named(name: str, model: Model, outputs: Outputs) -> None:
    change, message = WRONG[name]
    good = targets()
    with pytest.raises(DataError, match=f"targets: {message}"):
        losses(model, outputs, replace(good, **change(good)))


@pytest.mark.parametrize("given", [None, {"classes": torch.zeros(1)}])
def test_what_is_no_targets_is_named(given: Any, model: Model, outputs: Outputs) -> None:
    with pytest.raises(DataError, match=rf"^targets: expected mtyolo\.Targets, .*, got {type(given).__name__}$"):
        losses(model, outputs, given)


@pytest.mark.parametrize(
    "change",
    [
        lambda t: {"boxes_cxcywh": t.boxes_cxcywh + torch.tensor([-0.5 - 1e-7, 0, 0, 0.7 + 1e-7])},
        lambda t: {"boxes_cxcywh": t.boxes_cxcywh.half()},
        lambda t: {"keypoints": t.keypoints.bfloat16()},
        lambda t: {"masks": t.masks.bool()},
        lambda t: {"masks": t.masks * 0.5},
        lambda t: {"labelled": {"segment": torch.tensor([True, False])}},
        lambda t: {"classes": t.classes.int(), "image_index": t.image_index.int()},
    ],
)
def test_what_losses_can_take_passes(change: Change, model: Model, outputs: Outputs) -> None:
    good = replace(targets(), boxes_cxcywh=targets().boxes_cxcywh[:1].repeat(2, 1))
    assert losses(model, outputs, replace(good, **change(good))).tasks.keys() == {"detect", "segment", "keypoint"}


def test_points_that_do_not_count_are_not_checked(model: Model, outputs: Outputs) -> None:
    assert losses(model, outputs, replace(targets(), keypoints=torch.rand(2, 5, 3)), tasks=["detect"]).tasks


def test_masks_that_do_not_count_are_not_checked(model: Model, outputs: Outputs) -> None:
    without = outputs._replace(segment=None)
    assert losses(model, without, replace(targets(), masks=targets().masks * 255), tasks=["detect"]).tasks


def test_right_targets_pass(model: Model, outputs: Outputs) -> None:
    assert losses(model, outputs, targets()).tasks.keys() == {"detect", "segment", "keypoint"}
    nothing = Targets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
    assert float(losses(model, outputs, nothing).tasks["detect"].detach()) > 0
