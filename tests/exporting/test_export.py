"""An exported network finds what its model finds, holds nothing else, and refuses what it was not made for."""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import re
import runpy
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from mini_graph import MINI
from PIL import ExifTags, Image
from torch import Tensor, nn

import mtyolo
from mtyolo import api
from mtyolo.cli.main import main
from mtyolo.data.shapes import make_shapes
from mtyolo.errors import CheckpointError, ConfigError, DataError, MtyoloError
from mtyolo.exported import ExportedModel, open_exported
from mtyolo.exporting import export as exporting
from mtyolo.exporting.export import Export
from mtyolo.exporting.network import inputs_of
from mtyolo.extractors.base import CACHED
from mtyolo.model import Model
from mtyolo.prediction.predict import letterboxed
from mtyolo.structures import Level

SIZE = 64
CONFIDENCE = 0.4
"""So sure is the network below, here and there."""


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=6, size=96)


@pytest.fixture(scope="module")
def model(shapes: Path) -> Model:
    """All three tasks. It knows nothing, but finds a lot: its normalisations have seen pictures, and scores differ."""
    torch.manual_seed(0)
    model = mtyolo.build({"detector": {"graph": "yolov5n.yaml"}, "tasks": {"segment": {}, "keypoint": {}}}, data=shapes)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.momentum = 1.0
    for layer in model.branches["detect"].modules():
        if isinstance(layer, nn.Conv2d):
            layer.weight.data *= 3
            layer.bias.data.zero_()
    with torch.no_grad():
        model.train()(torch.rand(8, 3, SIZE, SIZE))
    model.eval()
    return model


@pytest.fixture(scope="module")
def written(model: Model, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return api.export(model, tmp_path_factory.mktemp("out") / "model.onnx", size=SIZE)


@pytest.fixture
def exported(written: Export) -> ExportedModel:
    return open_exported(written.path)


class Cells(nn.Module):
    """An extractor of one's own."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = tuple(Level(stride, 16) for stride in (8, 16, 32))
        self.layers = nn.ModuleList(nn.Conv2d(3, 16, stride, stride) for stride in (8, 16, 32))

    def forward(self, images: Tensor) -> dict[int, Tensor]:
        return {level.stride: layer(images) for level, layer in zip(self.levels, self.layers, strict=True)}


class Undecided(Cells):
    def forward(self, images: Tensor) -> dict[int, Tensor]:
        return super().forward(images if images.mean() > 0.5 else images * 2)


def with_extractor(extractor: type[nn.Module]) -> Model:
    content = {"extractor": {"name": "own"}, "detector": {"graph": MINI}}
    return mtyolo.build(content, extractors={"own": extractor})


@pytest.mark.slow
def test_the_outputs_are_those_of_the_model_for_any_number_of_images(model: Model, written: Export) -> None:
    session = onnxruntime.InferenceSession(str(written.path))
    for count in (1, 3):
        images = torch.rand(count, 3, SIZE, SIZE)
        with torch.no_grad():
            outputs = model(images)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(None, {"images": images.numpy()}), strict=True))
        assert names == ["decoded", "coefficients", "prototypes", "points", "heatmaps"]
        torch.testing.assert_close(torch.from_numpy(found["decoded"]), model.decode(outputs), atol=1e-2, rtol=1e-3)
        assert found["decoded"].shape == (count, 3 * (8**2 + 4**2 + 2**2), 5 + len(model.names))
        torch.testing.assert_close(
            torch.from_numpy(found["prototypes"]), outputs.segment.prototypes, atol=1e-3, rtol=1e-3
        )
    assert written.outputs["points"] == [252, 3 * model.keypoints]
    assert max(written.differences.values()) < 1e-4


def test_it_finds_what_the_model_finds(model: Model, exported: ExportedModel, shapes: Path) -> None:
    pictures = shapes.parent / "images/val"
    options: dict[str, Any] = {"confidence": CONFIDENCE, "batch": 4, "size": SIZE}
    expected, found = mtyolo.predict(model, pictures, **options), mtyolo.predict(exported.path, pictures, **options)
    assert sum(map(len, expected)) > 20
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.path == theirs.path
        torch.testing.assert_close(ours.boxes, theirs.boxes, atol=1e-2, rtol=1e-3)
        torch.testing.assert_close(ours.scores, theirs.scores, atol=1e-4, rtol=1e-3)
        assert ours.classes.tolist() == theirs.classes.tolist()
        assert (ours.masks == theirs.masks).float().mean() > 0.999
        torch.testing.assert_close(ours.keypoints, theirs.keypoints, atol=5e-2, rtol=1e-3)
    assert found[0].names == model.names


def test_it_is_judged_as_the_model_is(model: Model, exported: ExportedModel, shapes: Path) -> None:
    expected = api.validate(model, shapes, size=SIZE).as_dict()
    found = api.validate(exported.path, shapes).as_dict()
    metrics = [name for name in expected if name.startswith(("detect/", "segment/", "keypoint/"))]
    assert {"detect/AP", "segment/AP", "keypoint/OKS"} <= set(metrics)
    assert [found[name] for name in metrics] == pytest.approx(
        [expected[name] for name in metrics], abs=1e-3, nan_ok=True
    )


def test_features_go_in_where_they_are_asked_for(tmp_path: Path) -> None:
    model = with_extractor(Cells)
    written = api.export(model, tmp_path / "head.onnx", size=SIZE, inputs="features")
    sides = {8: [16, 8, 8], 16: [16, 4, 4], 32: [16, 2, 2]}
    assert written.description.inputs == {f"features.{stride}": shape for stride, shape in sides.items()}
    assert not [name for name in initializers(written.path) if "extractor" in name]
    pyramid = {stride: torch.rand(3, *shape) for stride, shape in sides.items()}
    exported = open_exported(written.path)
    with torch.no_grad():
        expected = model.decode(model(pyramid=pyramid))
    torch.testing.assert_close(exported.decode(exported(pyramid=pyramid)), expected, atol=1e-3, rtol=1e-4)
    with pytest.raises(ConfigError, match=r"was exported for features, from Python as pyramid=\{8: …, 16: …, 32: …\}"):
        exported(torch.rand(1, 3, SIZE, SIZE))
    with pytest.raises(DataError, match=r"features.16: expected \[B, 16, 4, 4\], got \[3, 16, 2, 2\]"):
        exported(pyramid=pyramid | {16: pyramid[32]})
    with pytest.raises(DataError, match=r"the same number of each, .*'features.16': 2"):
        exported(pyramid=pyramid | {16: pyramid[16][:2]})
    with pytest.raises(DataError, match=r"features.16: expected a tensor of floats, .* got NoneType"):
        exported(pyramid={8: pyramid[8]})
    with pytest.raises(DataError, match=r"expected features as \{8: …, 16: …, 32: …\}, got list"):
        exported(pyramid=list(pyramid.values()))  # type: ignore[arg-type]


def test_a_model_that_takes_features_takes_them_when_it_is_exported() -> None:
    content = {"extractor": {"name": "features", "levels": {8: 8, 16: 8, 32: 8}}, "detector": {"graph": MINI}}
    assert list(inputs_of(mtyolo.build(content), None, SIZE)) == ["features.8", "features.16", "features.32"]


@pytest.mark.slow
def test_a_store_stands_in_for_the_extractor(
    shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    extractor = {"name": "timm/mobilenetv3_small_050", "weights": "none"}
    Path("model.yaml").write_text(yaml.safe_dump({"extractor": extractor, "detector": {"graph": MINI}}))
    options = ["--model", "model.yaml", "--imgsz", str(SIZE)]
    assert main(["extract", *options, "--data", str(shapes), "--out", "store"]) == 0
    assert main(["export", *options, "--features", "store"]) == 0
    assert "note: model.yaml names no weights of its detector" in capsys.readouterr().err
    assert list(open_exported("model.onnx").description.inputs) == ["features.8", "features.16", "features.32"]
    assert not [name for name in initializers(Path("model.onnx")) if "extractor" in name]


def test_an_extractor_of_ones_own_takes_any_number_of_images(tmp_path: Path) -> None:
    model = with_extractor(Cells)
    exported = open_exported(api.export(model, tmp_path / "any.onnx", size=SIZE).path)
    for count in (1, 2 * CACHED):
        images = torch.rand(count, 3, SIZE, SIZE)
        with torch.no_grad():
            expected = model.decode(model(images))
        torch.testing.assert_close(exported.decode(exported(images)), expected, atol=1e-3, rtol=1e-4)


def test_with_a_fixed_batch_any_number_of_images_goes_through_in_parts_and_the_model_stays_as_it_was(
    tmp_path: Path,
) -> None:
    model = with_extractor(Cells).half().train()
    written = api.export(model, tmp_path / "two.onnx", size=SIZE, batch=2)
    assert written.description.batch == 2
    assert model.dtype == torch.float16
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    exported, images = open_exported(written.path), torch.rand(5, 3, SIZE, SIZE)
    with torch.no_grad():
        expected = model.float().eval().decode(model(images))
    torch.testing.assert_close(exported.decode(exported(images)), expected, atol=1e-3, rtol=1e-4)


def test_of_a_distilled_student_no_teacher_and_no_projector_is_inside(
    model: Model, shapes: Path, tmp_path: Path
) -> None:
    teacher = mtyolo.save_weights(model, tmp_path / "teacher.safetensors")
    student = mtyolo.build({"detector": {"graph": MINI}}, data=shapes)
    taught = {
        "teachers": [{"weights": str(teacher), "features": [{"method": "cwd", "layers": {2: 17, 3: 20}}]}],
        "check": False,
    }
    config = {"epochs": 1, "imgsz": SIZE, "batch": 4, "workers": 0, "device": "cpu"}
    run = mtyolo.train(
        student,
        shapes,
        plan=[{"name": "taught", "distill": taught}],
        config=config,
        out=tmp_path / "run",
        progress=False,
    )
    assert "loss/distill.cwd" in run.results[-1]
    held = initializers(api.export(run.best, tmp_path / "student.onnx", size=SIZE).path)
    assert not [name for name in held if "teacher" in name or "learned" in name or "projector" in name]
    assert all(name.startswith("model.") or size < 1000 for name, size in held.items())
    own = mtyolo.load(run.best).state_dict()
    assert sum(held.values()) <= sum(tensor.numel() for tensor in own.values()) + 10_000  # where cells and anchors are


def initializers(path: Path) -> dict[str, int]:
    """Name -> number of values, of what a file holds."""
    return {one.name: math.prod(one.dims) for one in onnx.load(str(path)).graph.initializer}


def test_without_torch_a_file_gives_the_same_boxes(
    exported: ExportedModel,
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    example, picture = Path(__file__).parents[2] / "examples/without_torch.py", tmp_path / "picture.png"
    whole = Image.open(shapes.parent / "images/val/0000.jpg")
    wide = whole.crop((0, 16, SIZE, SIZE))  # to be padded only: scores of a network that knows nothing jump
    (exif := Image.Exif())[ExifTags.Base.Orientation] = 6
    wide.transpose(Image.Transpose.ROTATE_90).save(picture, exif=exif)
    path = with_points_of(exported, [0], tmp_path / "first.onnx")
    monkeypatch.setattr(sys, "argv", [str(example), str(path), str(picture)])
    ran = runpy.run_path(str(example), run_name="__main__")
    *said, last = capsys.readouterr().out.splitlines()
    (expected,) = mtyolo.predict(exported, picture, limit=1000)
    assert last == f"picture.png: {len(expected)} objects"
    boxes = torch.tensor([[float(number) for number in re.search(r"at ([\d. -]+),", line)[1].split()] for line in said])
    torch.testing.assert_close(boxes, expected.boxes, atol=0.51, rtol=0)
    names = [expected.names[number] for number in expected.classes.tolist()]
    assert [line.split()[0] for line in said] == names
    found = torch.tensor([int(re.search(r"mask of (\d+) pixels", line)[1]) for line in said])
    areas = expected.masks.flatten(1).sum(1)
    assert ((found - areas).abs() / areas)[areas > 200].median() < 0.15
    pointed = [f"of {exported.keypoints} points visible" in line for line in said]
    assert pointed == [name == exported.names[0] for name in names]
    images, *_ = ran["letterboxed"](whole, 45)  # shrunk
    expected_pixels, _ = letterboxed(np.asarray(whole), 45)
    assert abs(images[0].transpose(1, 2, 0) * 255 - expected_pixels).max() < 1.01


def with_points_of(exported: ExportedModel, classes: list[int], path: Path) -> Path:
    """The file, as of a model that learned points of these classes alone."""
    content, described = onnx.load(str(exported.path)), exported.description
    keypoint = described.keypoint.model_copy(update={"classes": classes})
    told = next(one for one in content.metadata_props if one.key == "mtyolo")
    told.value = described.model_copy(update={"keypoint": keypoint}).model_dump_json()
    onnx.save(content, str(path))
    return path


def test_official_programs_find_names_and_stride(written: Export, model: Model) -> None:
    told = {one.key: one.value for one in onnx.load(str(written.path)).metadata_props}
    assert ast.literal_eval(told["names"]) == model.names
    assert int(told["stride"]) == 32


def test_what_can_not_be_followed_is_said_with_a_way_out(tmp_path: Path) -> None:
    model = with_extractor(Undecided)
    with pytest.raises(ConfigError, match=r"can not be followed: .*with inputs='features', without the extractor"):
        api.export(model, tmp_path / "model.onnx", size=SIZE)
    assert not list(tmp_path.iterdir())
    assert api.export(model, tmp_path / "model.onnx", size=SIZE, inputs="features").path.is_file()


def test_a_file_that_gives_other_numbers_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, path = with_extractor(Cells), tmp_path / "model.onnx"
    path.write_bytes(b"what was there")
    monkeypatch.setattr(exporting, "compare", lambda *given: {"decoded": 1e-6, "points": math.nan})
    with pytest.raises(CheckpointError, match="not written: its points differ"):
        api.export(model, path, size=SIZE, batch=1)
    assert [one.name for one in tmp_path.iterdir()] == ["model.onnx"]
    assert path.read_bytes() == b"what was there"


def test_the_comparison_sees_a_difference(model: Model, exported: ExportedModel) -> None:
    images = {"images": torch.rand(2, 3, SIZE, SIZE)}
    found = exported.run(images)
    assert exporting.compare(exported, images, found) == dict.fromkeys(found, 0.0)
    for wrong in (slice(0, 4), slice(4, None)):  # boxes in pixels, and beside them scores
        off = {name: output.clone() for name, output in found.items()}
        off["decoded"][..., wrong] *= 1.01
        assert exporting.compare(exported, images, off)["decoded"] == pytest.approx(0.01 / 1.01, rel=1e-3)
    off["decoded"][0, 0, 0] = math.nan
    assert math.isnan(exporting.compare(exported, images, off)["decoded"])


def test_a_model_that_gives_no_numbers_is_not_to_be_blamed_on_the_translation(tmp_path: Path) -> None:
    model = with_extractor(Cells)
    model.extractor.layers[0].bias.data[0] = math.nan
    with pytest.raises(CheckpointError, match="the model's decoded are not finite"):
        api.export(model, tmp_path / "model.onnx", size=SIZE)


def test_a_place_that_can_not_be_written_to_is_named_before_the_network_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_followed", lambda *given: pytest.fail("followed"))
    (tmp_path / "folder.onnx").mkdir()
    with pytest.raises(MtyoloError, match="is a folder, pipe or device"):
        api.export(with_extractor(Cells), tmp_path / "folder.onnx", size=SIZE)


def test_a_model_too_large_for_one_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporting, "LARGEST_FILE", 1000)
    with pytest.raises(ConfigError, match=r"the model holds 0.0 GB, .* with inputs='features'"):
        api.export(with_extractor(Cells), tmp_path / "model.onnx", size=SIZE, batch=1)
    assert not list(tmp_path.iterdir())


def test_classes_that_the_weights_do_not_know_are_said_and_compared_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    model, known, asked = with_extractor(Cells), onnxruntime.InferenceSession, []
    model.config = model.config.model_copy(update={"unknown_classes": ["7"]})
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(
        onnxruntime,
        "InferenceSession",
        lambda *given, providers: asked.append(providers) or known(*given, providers=["CPUExecutionProvider"]),
    )
    path = api.export(model, tmp_path / "model.onnx", size=SIZE).path
    assert "do not know 1 of 80 classes, first '7'" in caplog.text
    open_exported(path)
    assert asked == [["CPUExecutionProvider"], ["CUDAExecutionProvider", "CPUExecutionProvider"]]


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("model.pt", {}, "model.pt: is written as ONNX; name it model.onnx"),
        ("model.onnx", {"size": 0}, "size=0: expected a whole number of pixels"),
        ("model.onnx", {"batch": 0}, "batch=0: expected a whole number from 1"),
        ("model.onnx", {"inputs": "pixels"}, "inputs='pixels': expected images or features"),
        ("model.onnx", {"inputs": "features"}, "this model has no extractor, so it takes images"),
        ("model.onnx", {"opset": 0}, "opset=0: expected a whole number from 1"),
        (None, {}, "path=None: expected a path"),
    ],
)
def test_what_can_not_be_meant_is_named(
    model: Model, tmp_path: Path, name: str | None, options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(sentence)):
        api.export(model, None if name is None else tmp_path / name, **options)  # type: ignore[arg-type]


def test_operators_of_another_version_are_there_or_refused(tmp_path: Path) -> None:
    path, model = tmp_path / "model.onnx", with_extractor(Cells)
    api.export(model, path, size=SIZE, batch=1, opset=18)
    assert {one.version for one in onnx.load(str(path)).opset_import if not one.domain} == {18}
    with pytest.raises(ConfigError, match="opset=99: can not be translated to, only to"):
        api.export(model, path, size=SIZE, batch=1, opset=99)


def test_images_for_a_model_of_features_and_features_for_one_that_sees_images_are_refused(tmp_path: Path) -> None:
    content = {"extractor": {"name": "features", "levels": {8: 8, 16: 8, 32: 8}}, "detector": {"graph": MINI}}
    with pytest.raises(ConfigError, match="this model takes features"):
        api.export(mtyolo.build(content), tmp_path / "x.onnx", inputs="images")
    early = {"extractor": {"name": "own"}, "detector": {"graph": MINI, "entry": {3: 16, 4: 32}}}
    with pytest.raises(ConfigError, match=r"layers before the entry still need the images, so that .*; take images"):
        api.export(mtyolo.build(early, extractors={"own": Cells}), tmp_path / "x.onnx", inputs="features")
    content = {"extractor": content["extractor"], "detector": early["detector"]}
    with pytest.raises(ConfigError, match=r"layers before the entry still need the images, so that .*; take images"):
        api.export(mtyolo.build(content), tmp_path / "x.onnx")


@pytest.mark.parametrize("library", ["onnx", "onnxscript", "onnxruntime"])
def test_a_missing_library_is_named_with_how_to_install_it(
    model: Model, tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == library else known(name))
    with pytest.raises(ConfigError, match=rf"{library} is not installed: pip install 'mtyolo\[export\]'"):
        api.export(model, tmp_path / "model.onnx")


def test_without_onnxruntime_a_file_says_what_it_needs(written: Export, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ConfigError, match=r"onnxruntime, which is not installed: pip install 'mtyolo\[export\]'"):
        open_exported(written.path)


def test_files_that_are_no_exported_networks_are_named(written: Export, tmp_path: Path) -> None:
    path = tmp_path / "other.onnx"
    with pytest.raises(CheckpointError, match="no such file"):
        open_exported(path)
    path.write_bytes(written.path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"other.onnx: damaged, or no ONNX file"):
        open_exported(path)
    content = onnx.load(str(written.path))
    described = next(one for one in content.metadata_props if one.key == "mtyolo")
    described.value = '{"format": "mtyolo-onnx/2"}'
    onnx.save(content, str(path))
    with pytest.raises(CheckpointError, match="written by a newer mtyolo"):
        open_exported(path)
    content.metadata_props.remove(described)
    onnx.save(content, str(path))
    with pytest.raises(CheckpointError, match="was not written by mtyolo export"):
        open_exported(path)


def test_what_an_exported_network_can_not_do_is_said(written: Export, exported: ExportedModel, shapes: Path) -> None:
    with pytest.raises(CheckpointError, match=r"finds \(predict\) and is judged \(val\), no more"):
        mtyolo.load(written.path)
    with pytest.raises(CheckpointError, match="for all else name the weights"):
        mtyolo.train(written.path, shapes)
    with pytest.raises(CheckpointError, match="for all else name the weights"):
        mtyolo.build("yolov5n.yaml", weights=written.path)
    with pytest.raises(ConfigError, match="takes no features"):
        api.validate(written.path, shapes, features="features")
    with pytest.raises(ConfigError, match="takes no feature store"):
        api.validate(exported, shapes, features="features")
    with pytest.raises(ConfigError, match="takes no feature store"):
        mtyolo.predict(exported, shapes.parent / "images/val", features="features")
    with pytest.raises(DataError, match=r"images: expected \[B, 3, 64, 64\], got \[2, 3, 96, 96\]; it was expor"):
        exported(torch.rand(2, 3, 96, 96))
    with pytest.raises(DataError, match=r"images: expected a tensor of floats, images in 0..1, got torch.uint8"):
        exported(torch.zeros(2, 3, SIZE, SIZE, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"at least one, got so many: \{'images': 0\}"):
        exported(torch.rand(0, 3, SIZE, SIZE))
    for images in (None, torch.rand(1, 3, SIZE, SIZE)):
        with pytest.raises(ConfigError, match="was exported for images"):
            exported(images, pyramid={8: torch.rand(1, 16, 8, 8)})


def test_the_command_writes_what_val_and_predict_take(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    model = mtyolo.build({"detector": {"graph": MINI}}, data=shapes)
    weights = mtyolo.save_weights(model, tmp_path / "mine.safetensors")
    assert main(["export", "--model", str(weights), "--imgsz", str(SIZE)]) == 0
    said = capsys.readouterr()
    assert "mine.onnx" in said.out
    assert main(["export", "--model", str(weights), "--out", "other.pt"]) == 2
    assert capsys.readouterr().err == "mtyolo: error: other.pt: is written as ONNX; name it other.onnx\n"  # at once
    assert f"B x 168 x {5 + len(model.names)}" in said.out  # two anchors at 64 + 16 + 4 cells
    assert main(["val", "--model", "mine.onnx", "--data", str(shapes), "--json", "judged.json"]) == 0
    assert "detect/AP" in json.loads(Path("judged.json").read_text())
    pictures = str(shapes.parent / "images/val")
    assert main(["predict", "-m", "mine.onnx", "-s", pictures, "--out", "drawn"]) == 0
    assert len(list(Path("drawn").glob("*.jpg"))) == 6
    assert main(["val", "--model", "mine.onnx", "--data", str(shapes), "--weights", str(weights)]) == 2
    assert "an exported network takes no weights" in capsys.readouterr().err
