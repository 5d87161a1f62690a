"""Replacement of layer outputs, and pruning."""

import pytest
import torch

from mtyolo.config.model import shipped_configs
from mtyolo.errors import ConfigError
from mtyolo.graph.network import INPUT, Graph
from mtyolo.graph.reading import read_graph
from mtyolo.structures import Level

SPEC = read_graph(shipped_configs() / "yolov5n.yaml")


def test_replacing_layers_with_their_own_outputs_changes_nothing() -> None:
    torch.manual_seed(0)
    whole = Graph(SPEC).eval()
    taps = Graph(SPEC, wanted=(4, 6, 9)).eval()
    neck = Graph(SPEC, entry={4: 8, 6: 16, 9: 32}).eval()
    taps.load_state_dict(whole.state_dict(), strict=False)
    neck.load_state_dict(whole.state_dict(), strict=False)
    images = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        expected, got = whole(images, {}), neck(None, taps(images, {}))
    for stride in (8, 16, 32):
        assert torch.equal(expected[stride], got[stride])


def test_layers_that_nothing_needs_are_not_built() -> None:
    neck = Graph(SPEC, entry={4: 8, 6: 16, 9: 32})
    assert set(neck.layers) == {str(number) for number in range(10, 24)}
    assert not neck.needs_images


def test_entry_in_the_middle_of_the_backbone_keeps_what_follows() -> None:
    graph = Graph(SPEC, entry={4: 8})
    assert set(graph.layers) == {str(number) for number in range(5, 24)}
    assert not graph.needs_images


def test_entry_that_leaves_a_path_to_the_image_needs_images_too() -> None:
    graph = Graph(SPEC, entry={6: 16, 9: 32})
    assert graph.needs_images
    images = torch.rand(1, 3, 64, 64)
    fused = graph.eval()(images, {16: torch.rand(1, 128, 4, 4), 32: torch.rand(1, 256, 2, 2)})
    assert fused[8].shape == (1, 64, 8, 8)


def test_a_first_layer_for_features_multiplies_all_strides() -> None:
    graph = Graph(SPEC, entry={INPUT: 2}, channels=7)
    assert [level.stride for level in graph.wanted_levels] == [16, 32, 64]
    assert graph.layers["0"].conv.in_channels == 7


def test_layers_that_lead_to_an_output_are_known_and_whether_features_do() -> None:
    whole, entered = Graph(SPEC), Graph(SPEC, entry={4: 8})
    assert whole.leading_to(1) == ([whole.layers["0"], whole.layers["1"]], False)
    assert entered.leading_to(4) == ([], True)
    assert entered.leading_to(5) == ([entered.layers["5"]], True)


def test_features_of_a_first_layer_go_before_images() -> None:
    graph, given = Graph(SPEC, entry={INPUT: 1}, channels=7).eval(), {1: torch.rand(1, 7, 64, 64)}
    assert torch.equal(graph(torch.rand(1, 3, 64, 64), given)[8], graph(None, given)[8])


def test_what_adapters_must_produce_is_told_fine_to_coarse() -> None:
    assert Graph(SPEC, entry={9: 32, 4: 8}).entry_levels == (Level(8, 64), Level(32, 256))


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ({4: 16}, "layer 4 has stride 8, not 16; write 4: 8 "),
        ({99: 8}, "there is no layer 99; the graph has layers 0 to 23$"),
        ({8: 32, 9: 32}, "each stride once"),
        ({4: 8, 6: 16, 9: 32, 1: 4}, "nothing takes the output of layer 1"),
        ({INPUT: 1, 4: 8}, "input stands alone"),
    ],
)
def test_wrong_entries_are_named(entry: dict[int, int], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        Graph(SPEC, entry=entry)
