"""Prediction against the official network's detections, and what it does with bad input."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mtyolo.assembly import build
from mtyolo.checkpoint import load
from mtyolo.data.records import Problems
from mtyolo.errors import CheckpointError, ConfigError, DataError
from mtyolo.geometry import boxes_to_original
from mtyolo.model import Model
from mtyolo.prediction.predict import letterboxed, predict, stream
from mtyolo.prediction.sources import find_sources


@pytest.fixture(scope="module")
def official(test_data: Path) -> Model:
    return load(test_data / "weights/yolov5n.pt")


@pytest.fixture(scope="module")
def reference(test_data: Path) -> dict[str, np.ndarray]:
    with np.load(test_data / "reference/yolov5n_forward_reference.npz") as arrays:
        return {key: arrays[key] for key in arrays if "detections" in key or "input" in key}


@pytest.mark.parametrize("name", ["bus", "zidane"])
def test_the_network_sees_the_pixels_that_the_official_one_sees(
    test_data: Path, reference: dict[str, np.ndarray], name: str
):
    with Image.open(test_data / f"images/{name}.jpg") as image:
        canvas, _ = letterboxed(np.asarray(image.convert("RGB")), 640)
    assert (canvas.transpose(2, 0, 1) == reference[f"{name}_input"]).all()


@pytest.mark.parametrize("name", ["bus", "zidane"])
def test_detections_are_the_official_ones(
    official: Model, test_data: Path, reference: dict[str, np.ndarray], name: str
):
    expected = torch.from_numpy(reference[f"{name}_detections_xyxy_conf_cls"])
    (result,) = predict(official, test_data / f"images/{name}.jpg")
    assert result.classes.tolist() == expected[:, 5].tolist()
    torch.testing.assert_close(result.boxes, expected[:, :4].float(), atol=0.5, rtol=0)
    torch.testing.assert_close(result.scores, expected[:, 4].float(), atol=0.005, rtol=0)


def test_detections_of_outputs_are_those_of_predict(official: Model, test_data: Path):
    path = test_data / "images/bus.jpg"
    (expected,) = predict(official, path, size=320)
    with Image.open(path) as image:
        canvas, letterbox = letterboxed(np.asarray(image.convert("RGB")), 320)
    outputs = official.eval()(torch.from_numpy(canvas).permute(2, 0, 1)[None] / 255)
    (found,) = official.detections(outputs, [letterbox])
    torch.testing.assert_close(found.boxes_xyxy, expected.boxes, atol=0.01, rtol=0)
    assert found.size == (1080, 810)
    (inside,) = official.detections(outputs)
    assert not inside.boxes_xyxy.requires_grad
    assert inside.size == (320, 320)
    assert torch.equal(boxes_to_original(inside.boxes_xyxy, letterbox), found.boxes_xyxy)


def test_files_arrays_and_pil_images_give_the_same(official: Model, test_data: Path):
    path = test_data / "images/bus.jpg"
    with Image.open(path) as image:
        results = predict(official, [path, np.asarray(image.convert("RGB")), image], size=320, batch=2)
    assert [result.path for result in results] == [path, None, None]
    for result in results[1:]:
        torch.testing.assert_close(result.boxes, results[0].boxes, atol=0.01, rtol=0)
    assert (results[0].detections.size) == (1080, 810)


def test_a_checkpoint_can_be_named_by_its_path(test_data: Path, tmp_path: Path):
    (result,) = predict(test_data / "weights/yolov5n.pt", test_data / "images/bus.jpg", size=320)
    names = {found["name"] for found in json.loads(result.to_json())["detections"]}
    assert {"person", "bus"} <= names
    with Image.open(result.save(tmp_path / "bus.png")) as picture:
        assert picture.size == (810, 1080)
    with pytest.raises(CheckpointError, match=r"nowhere\.pt: no such file"):
        predict(tmp_path / "nowhere.pt", test_data / "images/bus.jpg")


def test_unreadable_images_are_named_and_counted_and_the_rest_is_predicted(
    official: Model, test_data: Path, caplog: pytest.LogCaptureFixture
):
    folder = test_data / "bad/images"
    bad = [folder / "zero_byte.jpg", folder / "ok.jpg", folder / "html_named.jpg"]
    problems = Problems()
    results = predict(official, bad, size=64, problems=problems)
    assert [result.path for result in results] == [folder / "ok.jpg"]
    assert problems.counts == {"unreadable image": 2}
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        predict(official, bad, size=64)
    assert "2 x unreadable image" in caplog.text
    assert "zero_byte.jpg" in caplog.text


def test_a_strict_account_stops_at_the_first_unreadable_image(official: Model, test_data: Path):
    with pytest.raises(DataError, match=r"zero_byte\.jpg: not an image"):
        predict(official, test_data / "bad/images/zero_byte.jpg", size=64, problems=Problems(strict=True))


def test_a_result_knows_the_skeleton_of_the_model():
    keypoint = {"points": 3, "skeleton": [[0, 1], [0, 2]]}
    model = build({"detector": {"graph": "yolov5n.yaml"}, "tasks": {"keypoint": keypoint}})
    (result,) = predict(model, np.zeros((64, 64, 3), np.uint8), size=64)
    assert [tuple(pair) for pair in result.skeleton or ()] == [(0, 1), (0, 2)]


@pytest.mark.usefixtures("official")
def test_using_the_model_leaves_pillow_as_it_was():
    """ultralytics replaces Image.open by one that tries to install a package when a file is no image."""
    assert Image.open.__module__ == "PIL.Image"


def test_nothing_readable_is_an_error_naming_the_first(official: Model, test_data: Path):
    empty = test_data / "bad/images/zero_byte.jpg"
    with pytest.raises(DataError, match=rf"none of 1 images can be used; the first: {empty}: not an image"):
        predict(official, empty, size=64)


def test_awkward_images_are_all_read_or_named(official: Model, test_data: Path):
    problems = Problems()
    results = predict(official, test_data / "bad/images", size=64, batch=4, problems=problems)
    files = list((test_data / "bad/images").iterdir())
    assert len(results) + len(problems) == len(files)
    assert len(results) > 15


def test_a_stream_reads_no_further_than_it_is_asked(official: Model, test_data: Path, tmp_path: Path):
    later = tmp_path / "later.jpg"
    Image.new("RGB", (64, 64)).save(later)
    told: list[tuple[int, int]] = []
    results = stream(official, [test_data / "images/bus.jpg", later], size=64, progress=lambda *c: told.append(c))
    assert next(results).path == test_data / "images/bus.jpg"
    later.unlink()
    assert list(results) == []
    assert told == [(1, 2), (2, 2)]


def test_the_last_batch_may_be_smaller_and_progress_says_so(official: Model, test_data: Path):
    told: list[tuple[int, int]] = []
    pictures = [test_data / "images/bus.jpg"] * 3
    assert len(predict(official, pictures, size=64, batch=2, progress=lambda *counts: told.append(counts))) == 3
    assert told == [(2, 3), (3, 3)]


def test_confidence_limit_and_overlap_are_those_that_are_asked_for(official: Model, test_data: Path):
    path = test_data / "images/bus.jpg"
    (usual,) = predict(official, path, size=320)
    (sure,) = predict(official, path, size=320, confidence=float(usual.scores[1]))
    (few,) = predict(official, path, size=320, limit=2)
    (overlapping,) = predict(official, path, size=320, iou=0.95)
    assert 1 <= len(sure) <= 2 < len(usual)
    assert torch.equal(few.boxes, usual.boxes[:2])
    assert len(overlapping) > len(usual) > 2


def test_a_size_that_does_not_divide_is_rounded_up(official: Model, test_data: Path):
    (odd,), (whole,) = (predict(official, test_data / "images/bus.jpg", size=size) for size in (300, 320))
    assert torch.equal(odd.boxes, whole.boxes)


def test_the_model_keeps_its_modes_and_results_may_be_calculated_with(official: Model, test_data: Path):
    official.train()
    try:
        (result,) = predict(official, test_data / "images/bus.jpg", size=320)
        assert official.training
        weight = torch.ones(1, requires_grad=True)
        (result.boxes * weight).sum().backward()
    finally:
        official.eval()


@pytest.mark.parametrize(
    ("argument", "value"),
    [
        *(("size", size) for size in (0, -1, "64", 640.5, 10**9)),
        *(("batch", batch) for batch in (0, -1)),
        *(("limit", limit) for limit in (-1, 0)),
        *(("confidence", confidence) for confidence in (float("nan"), 2, -0.1)),
        *(("iou", iou) for iou in (float("nan"), "0.5")),
        ("features", 5),
    ],
)
def test_an_argument_that_can_not_be_meant_is_named(official: Model, argument: str, value: object):
    with pytest.raises(ConfigError, match=f"^{argument}={value!r}: expected a"):
        predict(official, np.zeros((64, 64, 3), np.uint8), **{argument: value})


def test_devices_are_those_of_the_command_line(official: Model, monkeypatch: pytest.MonkeyPatch):
    picture = np.zeros((64, 64, 3), np.uint8)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    for device in ("auto", "cpu", torch.device("cpu")):
        assert len(predict(official, picture, size=np.int64(64), device=device)) == 1
    for word in ("gpu", 1.5):
        with pytest.raises(ConfigError, match=rf"{word}: can not be used here .*in Python device="):
            predict(official, picture, size=64, device=word)


def test_sixteen_bit_pictures_are_the_same_by_path_and_as_pil_image(tmp_path: Path):
    values = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    with Image.open(tmp_path / "deep.png") as image:
        of_file, given = find_sources([tmp_path / "deep.png", image])
    assert (of_file.read() == given.read()).all()
    assert len(np.unique(given.read())) == 256


def test_a_pil_image_that_can_not_be_decoded_is_named(tmp_path: Path):
    with pytest.raises(DataError, match="a PIL image of 0x5 pixels holds no pixel"):
        find_sources(Image.new("RGB", (0, 5)))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:2000])
    with Image.open(tmp_path / "cut.png") as image, pytest.raises(DataError, match=r"cut\.png: .* not be decoded"):
        find_sources(image)


@pytest.mark.parametrize("address", ["https://example.com/bus.jpg?x=1", "rtsp://camera", "http://e.org/" + "a" * 300])
def test_addresses_are_to_be_downloaded_first(address: str):
    for given in (address, Path(address)):
        with pytest.raises(DataError, match="addresses are not read; download it first"):
            find_sources(given)


def test_videos_are_not_read(official: Model, tmp_path: Path):
    for name in ("film.mp4", "FILM.MP4"):
        (tmp_path / name).write_bytes(b"\0\0\0\x18ftypmp42")
        with pytest.raises(DataError, match=rf"{name}: videos are not read; write its frames"):
            predict(official, tmp_path / name, size=64)
