from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from faster_coco_eval.core import mask as rle_codec
from PIL import Image

from mtyolo.prediction.results import Result
from mtyolo.structures import Detections

NAMES = {0: "cat", 1: "dog"}


def result(**values: object) -> Result:
    masks = torch.zeros(1, 40, 60, dtype=torch.bool)
    masks[0, 10:20, 5:35] = True
    detections = Detections(
        torch.tensor([[5.0, 10.0, 35.0, 20.0]]),
        torch.tensor([0.75]),
        torch.tensor([1]),
        masks,
        torch.tensor([[[6.0, 11.0, 0.5]]]),
        (40, 60),
    )
    return Result(detections, NAMES, **values)  # type: ignore[arg-type]


def test_json_holds_everything_in_pixels():
    read = json.loads(result(path=Path("some/photo.jpg")).to_json())
    assert (read["path"], read["height"], read["width"]) == ("some/photo.jpg", 40, 60)
    found = read["detections"][0]
    assert (found["class"], found["name"], found["score"]) == (1, "dog", 0.75)
    assert found["box_xyxy"] == [5, 10, 35, 20]
    assert found["keypoints"] == [[6, 11, 0.5]]
    assert result().to_json(indent=2).startswith('{\n  "path": null,\n')


def test_a_notebook_shows_a_line():
    assert repr(result(path=Path("some/photo.jpg"))) == "Result(some/photo.jpg: 1 dog)"
    many = result()
    many.detections.classes, many.names = torch.tensor([1, 0, 1]), NAMES
    assert repr(many) == "Result(a picture: 2 dog, 1 cat)"
    many.detections.classes = torch.tensor([], dtype=torch.int64)
    assert repr(many) == "Result(a picture: nothing found)"


def test_json_masks_are_coco_run_lengths():
    mask = result().to_dict()["detections"][0]["mask"]
    decoded = rle_codec.decode(mask)
    assert decoded.shape == (40, 60)
    assert decoded.sum() == 300
    assert decoded[10:20, 5:35].all()


def test_what_the_model_does_not_predict_is_left_out():
    boxes_only = result()
    boxes_only.detections.masks = boxes_only.detections.keypoints = None
    assert boxes_only.to_dict()["detections"][0].keys() == {"class", "name", "score", "box_xyxy"}


def test_a_file_is_read_again_to_draw_on_it(tmp_path: Path):
    Image.new("RGB", (60, 40), (10, 200, 10)).save(tmp_path / "photo.png")
    drawn = result(path=tmp_path / "photo.png").save(tmp_path / "drawn.png")
    with Image.open(drawn) as written:
        picture = np.asarray(written)
    assert (picture[0, 0] == (10, 200, 10)).all()
    assert (picture[int(15 * 640 / 60), int(20 * 640 / 60)] != (10, 200, 10)).any()


def test_points_are_joined_as_the_skeleton_says(tmp_path: Path):
    grey = np.full((40, 60, 3), 50, np.uint8)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    for given in ({"pixels": grey}, {"path": tmp_path / "grey.png"}):
        alone, joined = result(**given), result(**given, skeleton=[(0, 1)])
        for one in (alone, joined):
            one.detections.keypoints = torch.tensor([[[6.0, 11.0, 0.9], [30.0, 18.0, 0.9]]])
        assert (alone.draw() != joined.draw()).any()


def test_a_given_array_is_drawn_on_without_a_file():
    assert result(pixels=np.full((40, 60, 3), 50, np.uint8)).draw().shape == (427, 640, 3)
