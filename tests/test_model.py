"""The assembled model: where features enter, what it refuses, its parts, its file of weights."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mtyolo.assembly import build
from mtyolo.checkpoint import load, save_weights
from mtyolo.config.model import AdaptersConfig, shipped_configs
from mtyolo.errors import CheckpointError, ConfigError, DataError
from mtyolo.graph.official import read_official
from mtyolo.graph.transfer import transfer, unknown_classes
from mtyolo.original_layers import alignment_teacher

NECK = {"extractor": {"name": "features", "levels": {8: 64, 16: 128, 32: 256}}, "detector": {"graph": "yolov5n.yaml"}}


def neck(**changes: object) -> dict[str, object]:
    return {**NECK, **changes}


def features(size: int = 64, batch: int = 1) -> dict[int, torch.Tensor]:
    return {stride: torch.rand(batch, channels, size // stride, size // stride)
            for stride, channels in ((8, 64), (16, 128), (32, 256))}  # fmt: skip


def test_the_teachers_layers_through_identity_adapters_give_the_official_numbers(test_data: Path) -> None:
    """Features in place of layers 4, 6, 9 are the same network: shown with the original layers' own outputs."""
    weights = test_data / "weights/yolov5n.pt"
    config = neck(adapters={"type": "identity"})
    model = build(config, weights=weights).eval()
    official = load(weights).eval()
    images = torch.rand(2, 3, 96, 64)
    with torch.no_grad():
        pyramid = alignment_teacher(model)(images)
        got, expected = model(pyramid=pyramid), official(images)
    for ours, theirs in zip(got.detect, expected.detect, strict=True):
        assert torch.equal(ours, theirs)


def test_features_of_a_first_layer_pass_with_their_own_channels() -> None:
    model = build("yolov5n-8channels.yaml").eval()
    outputs = model(pyramid={1: torch.rand(1, 8, 64, 64)})
    assert [tuple(level.shape[2:4]) for level in outputs.detect] == [(8, 8), (4, 4), (2, 2)]


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"detector": {"graph": "yolov5n.yaml", "entry": {4: 8}}}, "there is no extractor"),
        (neck(detector={"graph": "yolov5n.yaml", "entry": {4: 16}}), "layer 4 has stride 8, not 16"),
        (neck(detector={"graph": "yolov5n.yaml", "entry": {}}), "entry is empty"),
        (neck(detector={"graph": "yolov5q.yaml"}), "no file 'yolov5q.yaml'"),
        (neck(detector={"graph": "yolov5n.yaml", "weight": "x"}), "unknown key 'detector.weight'; did you mean"),
        (neck(tasks={"segmentation": {}}), "unknown key 'tasks.segmentation'; did you mean 'segment'"),
        (neck(tasks={"keypoint": {"points": 0}}), "tasks.keypoint.points"),
        (neck(tasks={"keypoint": {"sigmas": [math.inf] * 17}}), "tasks.keypoint.sigmas.0: Input should be a finite"),
        (neck(tasks={"keypoint": {"sigmas": [0.1]}}), "tasks.keypoint.sigmas has 1 entries for 17 points"),
        (neck(tasks={"keypoint": {"skeleton": [[0, 17]]}}), "skeleton joins points 0 to 17; there are 17, from 0"),
        (neck(tasks={"keypoint": {"skeleton": [[-1, 1]]}}), "skeleton joins points -1 to 1; there are 17, from 0"),
        (neck(tasks={"keypoint": {"classes": [80]}}), "there is no class 80; they go from 0 to 79"),
        (neck(tasks={"keypoint": {"classes": ["person"]}}), "tasks.keypoint.classes"),
        (neck(tasks={"keypoint": {"heatmap": True}}), "unknown key 'tasks.keypoint.heatmap'; did you mean 'heatmaps'"),
        ({"extractor": {"name": "features"}, "detector": {"graph": "yolov5n.yaml"}}, "need their levels"),
        ({"tasks": {}}, "the key 'detector' is missing"),
        (neck(detector={"graph": "yolov5n.yaml", "weights": "nowhere.pt"}), "nowhere.pt: no such file"),
    ],
)
def test_a_wrong_model_file_is_named(config: dict[str, object], sentence: str) -> None:
    with pytest.raises((ConfigError, CheckpointError), match=sentence):
        build(config)


def test_arguments_of_ones_own_classes_come_back_from_json_as_they_were() -> None:
    adapters = AdaptersConfig(arguments={"limit": math.inf, "names": ["a"]})
    assert AdaptersConfig.model_validate_json(adapters.model_dump_json()) == adapters


def test_a_wrong_key_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "model.yaml").write_text("detector:\n  graph: yolov5n.yaml\n  entri: {4: 8}\n")
    with pytest.raises(ConfigError, match=r"model.yaml:3: unknown key 'detector.entri'; did you mean 'entry'"):
        build(tmp_path / "model.yaml")


def test_sizes_that_do_not_divide_are_refused_with_a_remedy() -> None:
    model = build("yolov5n.yaml")
    with pytest.raises(DataError, match=r"384x637 pixels .* multiple of 32, for example 384x640"):
        model(torch.rand(1, 3, 384, 637))


@pytest.mark.parametrize(
    ("images", "sentence"),
    [
        (torch.zeros(1, 3, 64, 64, dtype=torch.uint8), "divide by 255"),
        (torch.rand(3, 64, 64), r"expected images \[B, 3, H, W\]"),
        (torch.rand(1, 4, 64, 64), r"expected images \[B, 3, H, W\]"),
        (None, "give images, or pyramid"),
        (features(), r"got dict; features come by name: model\(pyramid=\{8"),
    ],
)
def test_wrong_images_are_refused(images: Any, sentence: str) -> None:
    with pytest.raises((DataError, ConfigError), match=sentence):
        build("yolov5n.yaml")(images)


def test_features_into_a_model_of_images_are_refused() -> None:
    with pytest.raises(ConfigError, match="takes images"):
        build("yolov5n.yaml")(pyramid=features())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_features_enter_in_any_precision(dtype: torch.dtype) -> None:
    model = build(neck(adapters={"type": "identity"})).eval()
    given = {stride: level.to(dtype) for stride, level in features().items()}
    with torch.no_grad():
        outputs, expected = model(pyramid=given), model(pyramid={stride: one.float() for stride, one in given.items()})
        assert torch.equal(outputs.detect[0], expected.detect[0])
        assert model.bfloat16()(pyramid=given).detect[0].dtype == torch.bfloat16


def test_wrong_feature_shapes_are_named() -> None:
    model = build(neck())
    wrong = features(640) | {8: torch.rand(1, 40, 79, 79)}
    with pytest.raises(
        (DataError, ConfigError),
        match="stride 8: expected 64 channels of 80x80 for a 640x640 input, got 40 channels of 79x79",
    ):
        model(pyramid=wrong, size=(640, 640))
    with pytest.raises((DataError, ConfigError), match="stride 16"):
        model(pyramid={8: torch.rand(1, 64, 8, 8)})


def test_parts_are_known_by_name() -> None:
    model = build(neck(tasks={"segment": {}, "keypoint": {"points": 5}}))
    assert [prefix for prefix, _ in model.part("detector")] == ["graph", "branches.detect"]
    assert [prefix for prefix, _ in model.part("detector.17")] == ["graph.layers.17"]
    assert [prefix for prefix, _ in model.part("detector.24")] == ["branches.detect"]
    assert len(model.part("detector.neck")) == 14
    for name in ("detector.backbone", "detector.4", "necks", "keypoints"):
        with pytest.raises(ConfigError, match=f"no part '{name}'"):
            model.part(name)
    with pytest.raises(ConfigError, match="did you mean 'keypoint'"):
        model.part("keypoints")


def test_weights_are_one_file_that_builds_the_same_model_again(tmp_path: Path) -> None:
    model = build(neck(tasks={"segment": {}, "keypoint": {"points": 5}}), names={0: "cat", 1: "dog"}).eval()
    again = load(save_weights(model, tmp_path / "weights.safetensors")).eval()
    assert (again.names, again.tasks, again.keypoints) == (model.names, model.tasks, 5)
    pyramid = features()
    with torch.no_grad():
        assert torch.equal(model.decode(model(pyramid=pyramid)), again.decode(again(pyramid=pyramid)))
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]


def test_weights_of_keypoints_from_before_there_were_heatmaps_open_without_them(tmp_path: Path) -> None:
    model = build(neck(tasks={"keypoint": {"heatmaps": False}}))
    keypoint = model.config.tasks.keypoint.model_copy(update={"heatmaps": True})  # as if the file did not say
    tasks = model.config.tasks.model_copy(update={"keypoint": keypoint})
    model.config = model.config.model_copy(update={"tasks": tasks})
    again = load(save_weights(model, tmp_path / "weights.safetensors"))
    assert again(pyramid=features()).keypoint.heatmaps is None
    assert again.config.tasks.keypoint.heatmaps is False
    assert load(save_weights(again, tmp_path / "again.safetensors"))(pyramid=features()).keypoint.heatmaps is None


def test_the_keypoint_branch_sees_the_features_that_replace_layers() -> None:
    model = build(neck(tasks={"keypoint": {}}, adapters={"type": "identity"}))
    given = {stride: level.requires_grad_() for stride, level in features(batch=2).items()}
    outputs = model(pyramid=given)
    assert outputs.keypoint.heatmaps.shape == (2, 17, 8, 8)
    assert outputs.taken.keys() == {8, 16, 32}
    # Balancers ask for each task's gradient on what its branch saw: none is on the way to another.
    shared = [*outputs.fused.values(), *outputs.taken.values()]
    gradients = torch.autograd.grad(outputs.keypoint.heatmaps.square().sum(), shared, retain_graph=True)
    assert all(gradient.any() for gradient in gradients)
    none = torch.autograd.grad(outputs.fused[32].sum(), list(outputs.taken.values()), allow_unused=True)
    assert none == (None, None, None)


def test_where_features_enter_behind_what_the_neck_takes_heatmaps_see_the_rest() -> None:
    config = neck(
        extractor={"name": "features", "levels": {8: 64, 16: 128, 32: 256}},
        detector={"graph": "yolov5n.yaml", "entry": {17: 8, 20: 16, 23: 32}},
        tasks={"keypoint": {}},
    )
    outputs = build(config)(pyramid=features())
    assert outputs.taken == {}
    assert outputs.keypoint.heatmaps.shape == (1, 17, 8, 8)


def test_of_two_layers_of_one_stride_heatmaps_see_the_later() -> None:
    graph = dict(build("yolov5n.yaml").config.detector.graph)
    graph["head"] = [list(layer) for layer in graph["head"]]
    taken = next(layer for layer in graph["head"] if layer[0] == [-1, 4])
    taken[0] = [-1, 3, 4]  # 3 and 4 have stride 8
    model = build({"detector": {"graph": graph}, "tasks": {"keypoint": {}}})
    outputs = model(torch.rand(1, 3, 64, 64))
    assert outputs.taken.keys() == {8, 16, 32}
    assert outputs.keypoint.heatmaps.shape[2:] == (8, 8)


def test_models_without_heatmaps_take_nothing_along() -> None:
    for tasks in ({"keypoint": {"heatmaps": False}}, {"segment": {}}):
        assert build(neck(tasks=tasks))(pyramid=features()).taken is None


def test_files_that_are_no_weights_are_named(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "text.safetensors").write_text("not weights")
    with pytest.raises(CheckpointError, match="damaged, or not a safetensors file"):
        load(tmp_path / "text.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="has no model inside"):
        load(tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load(tmp_path / "nowhere.safetensors")


def test_where_a_run_has_no_best_weights_the_last_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.safetensors: no such file \(looked at [^;]*\)$"):
        load(tmp_path / "best.safetensors")
    save_weights(build(neck()), tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"no such file .*; .*last\.safetensors is there: of epochs that"):
        load(tmp_path / "best.safetensors")


def test_a_folder_in_the_place_of_weights_is_said_to_be_one_and_its_weights_are_named(tmp_path: Path) -> None:
    def refusal(call: Callable[[], object]) -> str:
        with pytest.raises(CheckpointError, match=f"^{tmp_path}: is a folder; give ") as error:
            call()
        return str(error.value)

    calls = (lambda: load(tmp_path), lambda: build(neck(), weights=tmp_path), lambda: build(tmp_path))
    assert all(refusal(call).endswith("give a file of weights, .pt or .safetensors") for call in calls)
    for name in ("last", "best"):  # the better one where both are there
        save_weights(build(neck()), tmp_path / f"{name}.safetensors")
        assert all(refusal(call).endswith(f"give {tmp_path}/{name}.safetensors") for call in calls)


def test_classes_are_matched_by_name_when_the_list_differs(test_data: Path) -> None:
    weights = test_data / "weights/yolov5n.pt"
    model, official = (
        build("yolov5n.yaml", weights=weights, names={0: "dog", 1: "unheard of", 2: "person"}),
        load(weights),
    )
    ours = model.branches["detect"].layers[0].weight.unflatten(0, (3, -1))
    theirs = official.branches["detect"].layers[0].weight.unflatten(0, (3, -1))
    assert torch.equal(ours[:, :5], theirs[:, :5])
    assert torch.equal(ours[:, [5, 7]], theirs[:, [5 + 16, 5 + 0]])
    assert model.fresh_classes == ("unheard of",)


def test_classes_that_are_only_counted_are_taken_in_order_where_there_are_as_many() -> None:
    animals, counted = {0: "cat", 1: "dog"}, {0: "0", 1: "1"}
    assert unknown_classes(animals, counted) == unknown_classes(counted, animals) == ()
    assert unknown_classes(animals, {0: "0"}) == ("0",)
    assert unknown_classes(animals, {0: "dog", 1: "cow"}) == ("cow",)
    assert unknown_classes(animals, {0: "dog", 1: "cow"}, untaught=["dog"]) == ("dog", "cow")


def test_a_first_layer_for_features_is_fresh_under_official_weights(test_data: Path) -> None:
    weights = test_data / "weights/yolov5n.pt"
    ours, official = build("yolov5n-8channels.yaml", weights=weights).state_dict(), load(weights).state_dict()
    assert [key for key in official if not torch.equal(ours[key], official[key])] == ["graph.layers.0.conv.weight"]


def test_a_checkpoint_of_another_graph_is_refused(test_data: Path) -> None:
    with pytest.raises(CheckpointError, match=r"model\..* is \[.*\], the model needs"):
        build("yolov5s.yaml", weights=test_data / "weights/yolov5n.pt")
    graph = yaml.safe_load((shipped_configs() / "yolov5n.yaml").read_text())
    graph["backbone"][0] = [-1, 1, "Conv", [64, 3, 2]]
    with pytest.raises(CheckpointError, match=r"model\.0\.conv\.weight is .* 6\], the model needs .* 3\]"):
        build({"detector": {"graph": graph}}, weights=test_data / "weights/yolov5n.pt")
    with pytest.raises(CheckpointError, match="has 24 layers, the model's graph 33"):
        build("yolov5n6.yaml", weights=test_data / "weights/yolov5n.pt")


def test_a_checkpoint_that_lacks_a_tensor_is_refused(test_data: Path) -> None:
    official = read_official(test_data / "weights/yolov5n.pt")
    tensors = {name: tensor for name, tensor in official.tensors.items() if name != "model.3.conv.weight"}
    with pytest.raises(CheckpointError, match=r"yolov5n\.pt: has no model\.3\.conv\.weight; the model's graph is not"):
        transfer(replace(official, tensors=tensors), build("yolov5n.yaml"))


@pytest.mark.parametrize("config", [None, '{"detector": ', '{"detector": {"graph": {}}, "newer": 1}'])
def test_weights_that_say_nothing_sensible_of_their_model_are_refused(config: str | None, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(1)}, path, {"format": "mtyolo/1"} | ({} if config is None else {"config": config}))
    with pytest.raises(CheckpointError, match=r"does not say what model it holds: .*written by a newer mtyolo\?"):
        load(path)


@pytest.mark.parametrize("name", ["best.pt", "best", "best.SAFETENSORS"])
def test_weights_under_a_name_by_which_they_could_not_be_read_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=rf"{name}: weights are written as .*; name it best\.safetensors"):
        save_weights(build("yolov5n.yaml"), tmp_path / name)
    assert not list(tmp_path.iterdir())
