"""The classic contract: official sizes, official checkpoints, official numbers."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from mtyolo.assembly import assemble, build
from mtyolo.checkpoint import load
from mtyolo.config.model import shipped_configs
from mtyolo.errors import CheckpointError
from mtyolo.graph.network import Graph
from mtyolo.graph.official import read_official
from mtyolo.model import Model
from mtyolo.resolution import resolve

GRAPHS = Path(__file__).parent / "graph" / "graphs"

OFFICIAL_PARAMETERS = {
    "yolov5n.yaml": 1_872_157,
    "yolov5s.yaml": 7_235_389,
    "yolov5m.yaml": 21_190_557,
    "yolov5l.yaml": 46_563_709,
    "yolov5x.yaml": 86_749_405,
    "yolov5n6.yaml": 3_246_940,
    "yolov5s6.yaml": 12_626_620,
    "yolov5n-seg.yaml": 1_991_549,
    "yolov5s-seg.yaml": 7_621_277,
    "bifpn.yaml": 46_825_853,
    "p2.yaml": 47_493_372,
    "p7.yaml": 144_281_723,
    "s-ghost.yaml": 3_897_605,
    "s-transformer.yaml": 7_235_645,
}


@pytest.mark.parametrize(("name", "parameters"), OFFICIAL_PARAMETERS.items())
def test_graphs_have_the_official_number_of_parameters(name: str, parameters: int) -> None:
    path = next(path for path in (shipped_configs() / name, GRAPHS / name) if path.exists())
    with torch.device("meta"):
        model = assemble(resolve(path))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize("path", sorted(GRAPHS.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_variant_assembles(path: Path) -> None:
    with torch.device("meta"):
        assert assemble(resolve(path)).tasks == ("detect",)


@pytest.mark.parametrize("path", sorted(shipped_configs().glob("*.yaml")), ids=lambda path: path.stem)
def test_every_shipped_model_file_assembles(path: Path) -> None:
    config = resolve(path)
    if config.detector.graph["width_multiple"] > 0.5:
        with torch.device("meta"):
            assemble(config, weights=False)
    else:
        assert assemble(config, weights=False).tasks


@pytest.fixture(scope="module")
def official(test_data: Path) -> Model:
    return load(test_data / "weights/yolov5n.pt").eval()


@pytest.fixture(scope="module")
def reference(test_data: Path) -> dict[str, np.ndarray]:
    return dict(np.load(test_data / "reference/yolov5n_forward_reference.npz"))


def images_of(reference: dict[str, np.ndarray], name: str) -> torch.Tensor:
    return torch.from_numpy(reference[f"{name}_input"])[None].float() / 255


@pytest.mark.parametrize("name", ["bus", "zidane"])
def test_decoded_rows_agree_with_the_official_network(official: Model, reference: dict, name: str) -> None:
    with torch.no_grad():
        outputs = official(images_of(reference, name))
        decoded = official.decode(outputs)[0]
    assert decoded.shape == (25200, 85)
    assert [tuple(level.shape) for level in outputs.detect] == [(1, 3, side, side, 85) for side in (80, 40, 20)]
    rows = decoded[torch.from_numpy(reference[f"{name}_rows"].astype(np.int64))]
    expected = torch.from_numpy(reference[f"{name}_decoded"]).float()
    assert (rows[:, :4] - expected[:, :4]).abs().max() < 1e-2
    assert (rows[:, 4:] - expected[:, 4:]).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["bus", "zidane"])
def test_tapped_layers_agree_with_the_official_network(test_data: Path, reference: dict, name: str) -> None:
    checkpoint = read_official(test_data / "weights/yolov5n.pt")
    layers = (4, 6, 9, 17, 20, 23)
    for tapped in (layers[:3], layers[3:]):
        graph = Graph(checkpoint.graph, wanted=tapped).eval()
        graph.layers.load_state_dict(
            {key[6:]: value for key, value in checkpoint.tensors.items() if key.split(".")[1] in graph.layers}
        )
        with torch.no_grad():
            outputs = graph(images_of(reference, name), {})
        for layer in tapped:
            value = outputs[graph.levels[layer].stride].flatten()
            index = torch.from_numpy(reference[f"{name}_layer{layer}_index"].astype(np.int64))
            expected = torch.from_numpy(reference[f"{name}_layer{layer}_value"]).float()
            assert (value[index] - expected).abs().max() < 1e-4


def test_training_and_evaluation_decode_alike(official: Model) -> None:
    official = copy.deepcopy(official)  # training mode moves BatchNorm statistics
    images = torch.rand(1, 3, 640, 640)
    with torch.no_grad():
        shapes = [official.train(mode).decode(official(images)).shape for mode in (True, False)]
    assert shapes == [(1, 25200, 85), (1, 25200, 85)]


def test_more_branches_leave_the_detectors_numbers_untouched(test_data: Path, official: Model) -> None:
    several = build("yolov5n-multitask.yaml", weights=test_data / "weights/yolov5n.pt").eval()
    assert several.tasks == ("detect", "segment", "keypoint")
    images = torch.rand(2, 3, 128, 96)
    with torch.no_grad():
        expected, got = official(images), several(images)
    for ours, theirs in zip(got.detect, expected.detect, strict=True):
        assert torch.equal(ours, theirs)
    assert got.segment is not None
    assert got.segment.prototypes.shape == (2, 32, 32, 24)


def test_a_segmentation_checkpoints_last_layer_splits_into_two_branches(tmp_path: Path) -> None:
    """A combined output layer, as official -seg files have it, computed whole and by our two branches."""
    torch.manual_seed(0)
    model = build("yolov5n-seg.yaml").eval()
    path, combined = save_like_official(model, tmp_path / "seg.pt")
    loaded = load(path).eval()
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        outputs = loaded(images)
        for level, (stride, fused) in enumerate(outputs.fused.items()):
            batch, _, height, width = fused.shape
            whole = combined[level](fused).view(batch, 3, 117, height, width).permute(0, 1, 3, 4, 2)
            assert torch.allclose(outputs.detect[level], whole[..., :85], atol=1e-5), stride
            assert torch.allclose(outputs.segment.coefficients[level], whole[..., 85:], atol=1e-5)
        assert torch.equal(outputs.segment.prototypes, model(images).segment.prototypes)
        without = build({"detector": {"graph": "yolov5n-seg.yaml"}, "tasks": {"detect": {}}}, weights=path).eval()
        assert torch.equal(without(images).detect[0], outputs.detect[0])
    fewer = {"detector": {"graph": "yolov5n-seg.yaml"}, "tasks": {"segment": {"prototypes": 16}}}
    with pytest.raises(CheckpointError, match=r"has 32 mask prototypes, the model 16; set .*prototypes: 32"):
        build(fewer, weights=path)


def save_like_official(model: Model, path: Path) -> tuple[Path, list[torch.nn.Conv2d]]:
    """Pickle a segmentation model the way the official project does: one module tree with a combined output layer."""
    combined = []
    for detect, masks in zip(model.branches["detect"].layers, model.branches["segment"].layers, strict=True):
        layer = torch.nn.Conv2d(detect.in_channels, 3 * 117, 1)
        for kind in ("weight", "bias"):
            rows = [getattr(part, kind).detach().unflatten(0, (3, -1)) for part in (detect, masks)]
            getattr(layer, kind).data = torch.cat(rows, 1).flatten(0, 1)
        combined.append(layer)
    head = torch.nn.Module()
    head.m = torch.nn.ModuleList(combined)
    head.proto = model.branches["segment"].prototypes
    head.nc = 80
    strides = torch.tensor([8.0, 16.0, 32.0])
    head.register_buffer("anchors", model.anchors / strides[:, None, None])
    whole = torch.nn.Module()
    whole.model = torch.nn.ModuleList([*model.graph.layers.values(), head])
    whole.yaml = dict(model.graph.spec.content)
    whole.stride = strides
    whole.names = [f"class{number}" for number in range(80)]
    torch.save({"model": whole.half(), "ema": None}, path)
    whole.float()
    return path, combined
