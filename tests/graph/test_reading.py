"""Layer lists: official sizes, and what a wrong line says."""

from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from mtyolo.config.model import shipped_configs
from mtyolo.errors import ConfigError
from mtyolo.graph.network import Graph, default_entry
from mtyolo.graph.reading import make_activation, read_graph, scaled_channels

GIVEN_BY_USERS = Path(__file__).parent / "graphs"

STOCK = (shipped_configs() / "yolov5n.yaml").read_text()


def write(folder: Path, old: str = "", new: str = "") -> Path:
    assert old in STOCK
    path = folder / "graph.yaml"
    path.write_text(STOCK.replace(old, new, 1))
    return path


def test_the_stock_neck_takes_layers_4_6_and_9() -> None:
    assert default_entry(read_graph(shipped_configs() / "yolov5n.yaml")) == (4, 6, 9)


def test_strides_and_channels_are_known_for_every_layer_without_running() -> None:
    levels = Graph(read_graph(shipped_configs() / "yolov5n.yaml")).levels
    assert [tuple(levels[layer]) for layer in (0, 4, 6, 9, 17, 20, 23)] == [
        (2, 16), (8, 64), (16, 128), (32, 256), (8, 64), (16, 128), (32, 256),
    ]  # fmt: skip


def test_channels_are_rounded_up_to_a_multiple_of_eight() -> None:
    scaled = [scaled_channels(channels, width) for channels, width in ((64, 0.25), (72, 0.25), (64, 0.05), (64, 1.0))]
    assert scaled == [16, 24, 8, 64]


@pytest.mark.parametrize(("depth", "repeats"), [(0.1, 1), (0.5, 2), (2, 6)])
def test_repeats_are_scaled_by_the_depth_and_single_layers_stay_single(depth: float, repeats: int) -> None:
    layers = read_graph(yaml.safe_load(STOCK) | {"depth_multiple": depth}).layers
    assert (layers[0].repeats, layers[2].repeats) == (1, repeats)


def test_modules_may_be_called_as_in_older_lists(tmp_path: Path) -> None:
    blocks = [layer.block for layer in read_graph(write(tmp_path)).layers]
    for old, new in (("C3", "models.common.C3"), ("nn.Upsample", "torch.nn.Upsample")):
        assert [layer.block for layer in read_graph(write(tmp_path, old, new)).layers] == blocks


def test_of_two_layers_of_one_stride_that_the_neck_takes_the_later_counts(tmp_path: Path) -> None:
    graph = Graph(read_graph(write(tmp_path, "[[-1, 4], 1, Concat", "[[-1, 3, 4], 1, Concat"))).eval()
    seen: list[Tensor] = []
    graph.layers["4"].register_forward_hook(lambda layer, given, output: seen.append(output))
    taken = graph.run(torch.rand(1, 3, 64, 64), {})[1]
    assert list(taken) == [8, 16, 32]
    assert taken[8] is seen[0]


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("SPPF", "SPPFF", r"graph.yaml:\d+: layer 9: unknown module 'SPPFF'; did you mean 'SPPF'"),
        ("backbone:", "backbon:", r"graph.yaml:\d+: unknown key 'backbon' in a graph; did you mean 'backbone'"),
        ("[-1, 3, C3, [128]]", "[-1, 3, C3]", r"layer 2 must be \[from, number, module, arguments\]"),
        ("[-1, 3, C3, [128]]", "[7, 3, C3, [128]]", "layer 2 takes layer 7, which does not come before it"),
        ("[-1, 3, C3, [128]]", "[2, 3, C3, [128]]", "layer 2 takes layer 2, which does not come before it"),
        ("[-1, 3, C3, [128]]", "[-4, 3, C3, [128]]", "layer 2 takes layer -2, which does not come before it"),
        ("[-1, 3, C3, [128]]", "['1', 3, C3, [128]]", "layer 2: 'from' must be a layer number or a list of them"),
        ("[-1, 3, C3, [128]]", "[-1, 0, C3, [128]]", "repeats must be at least 1, got 0"),
        ("[-1, 3, C3, [128]]", "[-1, 3, C3, []]", "first argument of C3 is its output channels"),
        ("[-1, 3, C3, [128]]", "[-1, 3, Detect, [128]]", r"graph.yaml:\d+: Detect must be the last layer"),
        ("depth_multiple: 0.33", "depth_multiple: -1", "depth_multiple must be a number above zero, got -1"),
        ("nc: 80", "nc: 0", "nc must be a number above zero, got 0"),
        ("  - [10, 13, 16, 30, 33, 23]", "  - [10, 13, 16, 30]", "anchors must be a list"),
        ("  - [10, 13, 16, 30, 33, 23]  # stride 8\n", "", "anchors for 2 levels, but the head takes 3"),
        ("[[17, 20, 23], 1, Detect, [nc, anchors]]", "[-1, 1, Conv, [64]]", "the last layer must be one of Detect"),
        ("nc: 80", "activation: os.system('x')\nnc: 80", "activation .* is not known"),
    ],
)
def test_a_wrong_line_is_named(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        read_graph(write(tmp_path, old, new))


def test_anchors_are_pairs_or_only_how_many_there_are() -> None:
    assert read_graph(yaml.safe_load(STOCK) | {"anchors": 4}).anchors == 4
    for wrong in ([[10, 13, 16]] * 3, 0, True):
        with pytest.raises(ConfigError, match="anchors must be a list"):
            read_graph(yaml.safe_load(STOCK) | {"anchors": wrong})


def test_layers_that_do_not_fit_together_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "[[-1, 6], 1, Concat, [1]]", "[[-1, 4], 1, Concat, [1]]")
    with pytest.raises(ConfigError, match=r"graph.yaml:\d+: layer 12 \(Concat\) can not take"):
        Graph(read_graph(path))


def test_wrong_arguments_of_a_block_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "[-1, 3, C3, [128]]", "[-1, 3, C3, [128, 1, 1, 1, 1, 1]]")
    with pytest.raises(ConfigError, match="layer 2: C3"):
        Graph(read_graph(path))


def test_activations_are_read_without_running_them() -> None:
    for text in ("nn.LeakyReLU(0.1)", "torch.nn.LeakyReLU(negative_slope=0.1)"):
        assert make_activation(text).negative_slope == 0.1
    with pytest.raises(ConfigError, match="arguments not understood"):
        make_activation("nn.LeakyReLU(__import__('os').getpid())")


def test_the_chosen_activation_is_used_and_the_libraries_default_left_alone() -> None:
    from torch import nn

    from mtyolo.graph.blocks import Conv

    graph = Graph(read_graph(GIVEN_BY_USERS / "s-leakyrelu.yaml"))
    kinds = {type(part) for part in graph.modules() if isinstance(part, nn.SiLU | nn.LeakyReLU)}
    assert kinds == {nn.LeakyReLU}
    assert isinstance(Conv.default_act, nn.SiLU)
    assert not Conv.default_act.inplace
