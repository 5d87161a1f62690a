"""Validation of real models on real photos, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mtyolo.api import open_model
from mtyolo.assembly import build
from mtyolo.checkpoint import load, save_weights
from mtyolo.data.loader import Dataset, make_loader
from mtyolo.data.records import Split
from mtyolo.data.split import load_split
from mtyolo.errors import CheckpointError, ConfigError, DataError
from mtyolo.evaluation.masks import MaskPrecision
from mtyolo.evaluation.pictures import _pictures, comparison
from mtyolo.evaluation.validate import _Clock, _worth_judging, validate
from mtyolo.model import Model
from mtyolo.original_layers import alignment_teacher
from mtyolo.structures import Batch
from mtyolo.tasks.keypoint.heatmaps import refine
from mtyolo.tasks.select import Selection

SMALL = 64
"""Pixels: where only the bookkeeping is tested."""


@pytest.fixture(scope="module")
def val(coco_mini: Path) -> Split:
    return load_split(coco_mini, "val")


@pytest.fixture(scope="module")
def official(test_data: Path) -> Model:
    return load(test_data / "weights/yolov5n.pt")


@pytest.fixture(scope="module")
def three_tasks(val: Split, test_data: Path) -> Model:
    """Official yolov5n with untrained segment and keypoint branches beside its own."""
    config = {
        "detector": {"graph": "yolov5n.yaml"},
        "tasks": {"detect": {}, "segment": {"prototypes": 8}, "keypoint": {"points": 17}},
    }
    return build(config, weights=test_data / "weights/yolov5n.pt", names=val.names)


def first(split: Split, count: int) -> Split:
    return replace(split, records=split.records[:count])


@pytest.mark.slow
@pytest.mark.parametrize(("size", "ap", "ap50"), [(640, 0.3527, 0.5699), (320, 0.2874, 0.5088)])
def test_the_official_network_has_its_precision_on_coco_mini(
    official: Model, val: Split, size: int, ap: float, ap50: float
):
    """reference: shared data's README, measured with the official network and pycocotools."""
    metrics = validate(official, val, size=size)
    found = metrics.tasks["detect"]
    assert found.ap == pytest.approx(ap, abs=0.005)
    assert found.ap50 == pytest.approx(ap50, abs=0.005)
    assert (found.images, found.objects) == (40, 337)
    assert len(found.per_class) == 57
    assert all(metrics.seconds[step] > 0 for step in ("preprocess", "forward", "postprocess"))


def test_all_three_tasks_are_judged_and_further_branches_leave_the_boxes_as_they_were(
    official: Model, three_tasks: Model, val: Split
):
    few = first(val, 8)
    metrics = validate(three_tasks, few, size=320)
    assert metrics.tasks.keys() == {"detect", "segment", "keypoint"}
    assert metrics.tasks["segment"].objects == metrics.tasks["detect"].objects
    assert metrics.tasks["keypoint"].ap < 0.01, "an untrained branch knows nothing"
    alone = validate(official, few, size=320)
    assert metrics.tasks["detect"].ap == pytest.approx(alone.tasks["detect"].ap, abs=1e-6)


def test_only_detections_that_count_get_points(three_tasks: Model, val: Split, monkeypatch: pytest.MonkeyPatch):
    """COCO looks at an image's best twenty of each class, and coco_mini has points of people alone: the rest would cost
    time. The numbers are those of placing all."""
    few, placed = first(val, 4), []

    def counting(points: Tensor, *arguments: Tensor) -> Tensor:
        placed.append(len(points))
        return refine(points, *arguments)

    monkeypatch.setattr("mtyolo.tasks.instances.refine", counting)
    found = validate(three_tasks, few, size=320, tasks=["keypoint"])
    assert max(placed) <= 20
    placed.clear()
    monkeypatch.setattr("mtyolo.evaluation.validate._worth_judging", lambda judge, kept: kept)
    everything = validate(three_tasks, few, size=320, tasks=["keypoint"])
    assert max(placed) > 20
    assert found.tasks["keypoint"].similarity == pytest.approx(everything.tasks["keypoint"].similarity, abs=1e-6)
    assert repr(found.tasks) == repr(everything.tasks), "in words, as NaN equals nothing"


def test_masks_are_judged_for_the_best_hundred():
    kept = Selection(*(torch.arange(150.0) for _ in Selection._fields))
    assert torch.equal(_worth_judging(MaskPrecision({0: "thing"}), kept).rows, torch.arange(100.0))


def test_seconds_are_those_of_an_image():
    clock = _Clock(torch.device("cpu"))
    clock.lap("forward", images=4)
    clock.spent["forward"] = 2.0
    assert clock.seconds_per_image() == {"forward": 0.5}


def test_images_that_are_not_labelled_for_a_task_do_not_count_for_it(three_tasks: Model, val: Split):
    few = first(val, 4)
    half = [
        replace(
            record,
            labels=replace(record.labels, labelled=frozenset({"detect", "segment"} if number < 2 else {"segment"})),
        )
        for number, record in enumerate(few.records)
    ]
    metrics = validate(three_tasks, replace(few, records=half), size=320)
    assert metrics.tasks.keys() == {"detect", "segment"}
    assert (metrics.tasks["detect"].images, metrics.tasks["segment"].images) == (2, 4)
    labelled_only = validate(three_tasks, first(val, 2), size=320, tasks=["detect"])
    assert repr(metrics.tasks["detect"]) == repr(labelled_only.tasks["detect"]), "in words, as NaN equals nothing"


def test_every_module_is_left_in_its_own_mode_and_can_train_on(three_tasks: Model, val: Split):
    three_tasks.train()
    three_tasks.graph.eval()
    before = {name: module.training for name, module in three_tasks.named_modules()}
    statistics = {name: buffer.clone() for name, buffer in three_tasks.named_buffers()}
    validate(three_tasks, first(val, 2), size=SMALL)
    assert {name: module.training for name, module in three_tasks.named_modules()} == before
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in three_tasks.named_buffers())
    outputs = three_tasks(torch.rand(1, 3, SMALL, SMALL))
    three_tasks.decode(outputs).sum().backward()


def test_modes_return_after_an_error_too(three_tasks: Model, val: Split):
    three_tasks.train()

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate(three_tasks, first(val, 2), size=SMALL, progress=interrupt)
    assert three_tasks.training
    assert not torch.is_inference_mode_enabled()


def test_progress_counts_batches(official: Model, val: Split):
    told: list[tuple[int, int]] = []
    validate(official, first(val, 5), size=SMALL, batch=2, progress=lambda *counts: told.append(counts))
    assert told == [(1, 3), (2, 3), (3, 3)]


def test_a_size_that_does_not_divide_is_rounded_up(official: Model, val: Split):
    few = first(val, 2)
    by_size = [validate(official, few, size=size).tasks for size in (300, 320)]
    assert repr(by_size[0]) == repr(by_size[1]), "in words, as NaN equals nothing"


class Features:
    """Batches of features, as a store would give them: made by the layers that they replace."""

    def __init__(self, pictures: list[Batch], model: Model) -> None:
        self.pictures, self.teacher = pictures, alignment_teacher(model)

    def __len__(self) -> int:
        return len(self.pictures)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self.pictures:
            assert batch.images is not None
            yield replace(batch, images=None, pyramid=self.teacher(batch.images.float() / 255))


def test_batches_of_features_are_judged_like_pictures(official: Model, val: Split, test_data: Path):
    config = {
        "extractor": {"name": "features", "levels": {8: 64, 16: 128, 32: 256}},
        "adapters": {"type": "identity"},
        "detector": {"graph": "yolov5n.yaml"},
    }
    model = build(config, weights=test_data / "weights/yolov5n.pt")
    few = first(val, 3)
    loader = make_loader(Dataset(few, 320), 2, shuffle=False, workers=0, seed=0)
    metrics = validate(model, few, loader=Features(list(loader), model.eval()))
    assert metrics.tasks["detect"].ap == pytest.approx(validate(official, few, size=320).tasks["detect"].ap, abs=1e-3)


def test_a_damaged_image_counts_for_nothing(official: Model, val: Split, tmp_path: Path):
    broken = replace(val.records[0], path=tmp_path / "broken.jpg")
    broken.path.write_text("no image")
    metrics = validate(official, replace(val, records=[broken, val.records[1]]), size=SMALL)
    assert metrics.tasks["detect"].images == 1
    assert metrics.tasks["detect"].objects == int((~val.records[1].labels.crowd).sum())


def test_a_split_that_does_not_fit_the_model_is_refused(official: Model, three_tasks: Model, val: Split):
    with pytest.raises(ConfigError, match="the data has 1 classes, the model predicts 80"):
        validate(official, replace(val, names={0: "cell"}))
    swapped = val.names | {0: "bicycle", 1: "person"}
    with pytest.raises(ConfigError, match=r"2 of 80 .*: 0 is 'bicycle' in the data and 'person' in the model"):
        validate(official, replace(val, names=swapped))
    with pytest.raises(ConfigError, match="no branch 'keypoint'; it predicts detect"):
        validate(official, val, tasks=["keypoint"])
    with pytest.raises(ConfigError, match="labelled with 5 keypoints, the model predicts 17"):
        validate(three_tasks, replace(val, points=5))
    bare = [replace(record, labels=replace(record.labels, labelled=frozenset())) for record in val.records]
    with pytest.raises(DataError, match="no image is labelled for detect"):
        validate(official, replace(val, records=bare))
    with pytest.raises(DataError, match="no image is labelled for segment; leave it out"):
        validate(three_tasks, replace(val, records=bare), tasks=["segment"])


def test_a_model_that_only_counts_its_classes_is_judged(val: Split):
    metrics = validate(build("yolov5n.yaml"), first(val, 1), size=SMALL)
    assert metrics.tasks["detect"].objects == int((~val.records[0].labels.crowd).sum())


def test_weights_are_opened_for_data_that_calls_classes_as_they_do(coco_mini: Path, val: Split, tmp_path: Path):
    path = tmp_path / "weights.safetensors"
    save_weights(build("yolov5n.yaml"), path)
    assert open_model(path, data=coco_mini).names[0] == "0", "it only counts its classes"
    save_weights(build("yolov5n.yaml", names=val.names | {0: "bicycle", 1: "person"}), path)
    with pytest.raises(CheckpointError, match="0 is 'person' in the data and 'bicycle' in the model"):
        open_model(path, data=coco_mini)


def test_the_picture_shows_truth_and_prediction_of_each_image(three_tasks: Model, val: Split):
    picture = comparison(three_tasks, val, size=320, count=3)
    assert picture.dtype == np.uint8
    assert picture.shape[0] > 2 * 480, "two rows of two pairs"
    assert picture.shape[1] > 4 * 480


def test_the_picture_shows_what_is_at_least_as_sure_as_asked(official: Model, val: Split):
    certain, usual, unsure = (comparison(official, val, size=320, count=1, confidence=c) for c in (1, 0.25, 0.01))
    assert (certain != usual).any()
    assert (usual != unsure).any()
    assert (usual == comparison(official, val, size=320, count=1)).all()
    assert (unsure != comparison(official, val, size=320, count=1, confidence=0.01, iou=0.9)).any()


def test_pictures_are_spread_over_the_split(three_tasks: Model, val: Split, monkeypatch: pytest.MonkeyPatch):
    seen: list[tuple[Split, int]] = []

    def noted(split: Split, size: int):
        seen.append((split, size))
        return _pictures(split, size)

    monkeypatch.setattr("mtyolo.evaluation.pictures._pictures", noted)
    comparison(three_tasks, val, size=50, count=3)
    ((few, size),) = seen
    assert size == 64, "a multiple of the largest stride"
    assert [record.path for record in few.records] == [val.records[number].path for number in (0, 20, 39)]


@pytest.mark.parametrize(
    ("argument", "value"), [("batch", 0), ("size", 0), ("confidence", float("nan")), ("iou", 2), ("limit", -1)]
)
def test_an_argument_that_can_not_be_meant_is_named(official: Model, val: Split, argument: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{argument}={value!r}: expected a"):
        validate(official, first(val, 1), **{argument: value})  # type: ignore[arg-type]


def test_devices_are_those_of_the_command_line(official: Model, val: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert validate(official, first(val, 1), size=SMALL, device="auto").as_dict()["detect/images"] == 1
    with pytest.raises(ConfigError, match="gpu: can not be used here"):
        validate(official, first(val, 1), size=SMALL, device="gpu")
