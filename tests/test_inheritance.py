"""Weights of an earlier run in a model with more branches, or other classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mtyolo.api import build, open_model
from mtyolo.checkpoint import save_weights
from mtyolo.errors import CheckpointError
from mtyolo.model import Model

NAMES = {0: "cat", 1: "dog", 2: "cow"}


def config(**changes: Any) -> dict[str, Any]:
    extractor = {"name": "features", "levels": {8: 16, 16: 24, 32: 32}}
    return {"extractor": extractor, "detector": {"graph": "yolov5n.yaml"}, "names": NAMES, **changes}


@pytest.fixture
def earlier(tmp_path: Path) -> tuple[Path, Model]:
    torch.manual_seed(0)
    model = build(config())
    return save_weights(model, tmp_path / "earlier.safetensors"), model


def test_what_was_learned_comes_along_and_new_branches_are_fresh(earlier: tuple[Path, Model]) -> None:
    path, before = earlier
    torch.manual_seed(1)
    fresh = build(config(tasks={"segment": {}, "keypoint": {"points": 5}}))
    torch.manual_seed(1)
    model = build(config(tasks={"segment": {}, "keypoint": {"points": 5}}), weights=path)
    learned, started = before.state_dict(), fresh.state_dict()
    for key, tensor in model.state_dict().items():
        assert torch.equal(tensor, learned.get(key, started[key])), key
    new = model.state_dict().keys() - learned.keys()
    assert {key.split(".")[1] for key in new} == {"segment", "keypoint"}


def test_a_keypoint_branch_gets_heatmaps_later(tmp_path: Path) -> None:
    before = build(config(tasks={"keypoint": {"points": 5, "heatmaps": False}}))
    model = build(
        config(tasks={"keypoint": {"points": 5}}), weights=save_weights(before, tmp_path / "earlier.safetensors")
    )
    learned, state = before.state_dict(), model.state_dict()
    assert all(torch.equal(state[key], tensor) for key, tensor in learned.items())
    assert {key.split(".")[2] for key in state.keys() - learned.keys()} == {"heatmaps"}


def test_heatmaps_that_see_other_levels_are_refused(tmp_path: Path) -> None:
    levels = {"name": "features", "levels": {8: 64, 16: 128, 32: 256}}
    parts = {"extractor": levels, "adapters": {"type": "identity"}, "tasks": {"keypoint": {}}}
    before = build(config(**parts, detector={"graph": "yolov5n.yaml", "entry": {17: 8, 20: 16, 23: 32}}))
    path = save_weights(before, tmp_path / "earlier.safetensors")
    with pytest.raises(CheckpointError, match="heat-maps of its keypoint branch see other levels; name"):
        build(config(**parts, detector={"graph": "yolov5n.yaml", "entry": {4: 8, 6: 16, 9: 32}}), weights=path)


def test_classes_are_matched_by_name(earlier: tuple[Path, Model]) -> None:
    path, before = earlier
    model = build(config(names={0: "horse", 1: "cow"}), weights=path)
    for own, theirs in zip(model.branches["detect"].layers, before.branches["detect"].layers, strict=True):
        for kind in ("weight", "bias"):
            rows = own.get_parameter(kind).unflatten(0, (3, -1))
            known = theirs.get_parameter(kind).unflatten(0, (3, -1))
            assert torch.equal(rows[:, :5], known[:, :5])
            assert torch.equal(rows[:, 6], known[:, 7])
            assert not torch.equal(rows[:, 5], known[:, 5])


def test_data_with_other_classes_than_the_weights_names_the_route_and_it_works(
    earlier: tuple[Path, Model], tmp_path: Path
) -> None:
    path, data = earlier[0], {"train": ".", "names": ["cat", "hound", "cow"], "kpt_shape": [2, 3]}
    with pytest.raises(CheckpointError, match=r"'hound' is unknown to it.* name its model file .*--weights") as said:
        open_model(path, data=data)
    assert f"--weights {path}" in str(said.value)
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({key: config()[key] for key in ("extractor", "detector")}))
    model = open_model(tmp_path / "model.yaml", data=data, weights=path)
    assert model.names == {0: "cat", 1: "hound", 2: "cow"}
    assert model.fresh_classes == ("hound",)


def test_what_was_not_taught_is_unknown_under_another_name_too(tmp_path: Path) -> None:
    counted = build(config(names=["0", "1"]))
    counted.config = counted.config.with_unknown(("1",))
    path = save_weights(counted, tmp_path / "counted.safetensors")
    assert build(config(names=["cat", "dog"]), weights=path).fresh_classes == ("dog",)
    assert build(counted.config.model_copy(update={"names": {0: "cat", 1: "dog"}})).fresh_classes == ()


def test_the_official_weights_that_adapters_are_aligned_to_are_remembered(tmp_path: Path, test_data: Path) -> None:
    weights = str(test_data / "weights" / "yolov5n.pt")
    before = build(config(detector={"graph": "yolov5n.yaml", "weights": weights}, names=None))
    path = save_weights(before, tmp_path / "aligned.safetensors")
    model = build(config(names=None, tasks={"segment": {}}), weights=path)
    assert model.config.detector.weights == weights


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"detector": {"graph": "yolov5s.yaml"}}, "name the adapters of the model file that it was trained with"),
        ({"adapters": {"type": "conv", "depth": 3}}, "name the adapters of the model file"),
        ({"extractor": None}, r"has no graph\.layers\.0\..*name the detector.graph and detector.entry"),
    ],
)
def test_other_parts_are_refused_by_name(earlier: tuple[Path, Model], changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError, match=sentence):
        build(config(**changes), weights=earlier[0])


def test_branches_of_other_sizes_are_refused(tmp_path: Path) -> None:
    before = build(config(tasks={"segment": {"prototypes": 16}, "keypoint": {"points": 5}}))
    path = save_weights(before, tmp_path / "earlier.safetensors")
    with pytest.raises(CheckpointError, match=r"branches.segment.*the model needs.*name tasks.segment as it was"):
        build(config(tasks={"segment": {"prototypes": 32}}), weights=path)
    with pytest.raises(CheckpointError, match=r"branches.keypoint.*name tasks.keypoint as it was trained, or leave"):
        build(config(tasks={"keypoint": {"points": 17}}), weights=path)
    build(config(), weights=path)


def test_files_that_are_no_such_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file"):
        open_model("yolov5n.yaml", weights=tmp_path / "nowhere.safetensors")
    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(CheckpointError, match="damaged, or not a safetensors file"):
        open_model("yolov5n.yaml", weights=tmp_path / "text.safetensors")
