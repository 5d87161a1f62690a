"""Writing, reading, damage and repair."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_features import SIZE, TinyExtractor, make_images
from torch import Tensor

from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.records import Split
from mtyolo.data.split import load_split
from mtyolo.errors import ConfigError, MtyoloError, StoreError
from mtyolo.features.dataset import make_store_loader
from mtyolo.features.index import SplitIndex
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.residency import Residency
from mtyolo.features.shards import Contents, Row, read_contents, write_shard
from mtyolo.features.verify import info, verify
from mtyolo.features.writer import extract

MakeStore = Callable[..., FeatureStore]


class OnTiny:
    """Stands for a model: the store looks at its extractor, and at what its model file calls it."""

    def __init__(self, extractor: object) -> None:
        self.extractor = extractor
        self.config = SimpleNamespace(extractor=SimpleNamespace(name="mine"))


def check(model: OnTiny, directory: Path, split: Split, size: int) -> None:
    FeatureStore.open(directory).check(model, split, size)


def contents(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def online(split: Split) -> dict[int, torch.Tensor]:
    batch = next(iter(make_loader(Dataset(split, SIZE), len(split), shuffle=False, workers=0, seed=0)))
    assert batch.images is not None
    with torch.no_grad():
        return TinyExtractor()(batch.images.float() / 255)


@pytest.mark.parametrize(("dtype", "tolerance"), [("fp32", 1e-6), ("fp16", 2e-3), ("bf16", 2e-2), ("int8", 1.5e-2)])
@pytest.mark.parametrize("residency", ["stream", "ram"])
def test_stored_features_are_those_of_the_extractor(
    make_store: MakeStore, split: Split, dtype: str, tolerance: float, residency: str
) -> None:
    store = FeatureStore.open(make_store(dtype=dtype).directory, residency)  # type: ignore[arg-type]
    loader = make_store_loader(store, split, 10, augment=None, shuffle=False, seed=0)
    batch = next(iter(loader))
    assert batch.images is None
    assert batch.pyramid is not None
    for stride, expected in online(split).items():
        assert batch.pyramid[stride].dtype == torch.float32
        assert batch.pyramid[stride].is_contiguous(memory_format=torch.channels_last), "as convolutions take it"
        torch.testing.assert_close(batch.pyramid[stride], expected, rtol=tolerance, atol=tolerance)


def test_int8_takes_half_the_bytes_of_fp16_and_errs_by_at_most_half_a_step(make_store: MakeStore, split: Split) -> None:
    small, large = make_store("int8", dtype="int8"), make_store("fp16", dtype="fp16")
    path = small.directory / "train" / "00000.safetensors"
    stored = load_file(path)
    halves = load_file(large.directory / "train" / "00000.safetensors")
    assert stored["8"].nbytes * 2 == halves["8"].nbytes
    restored = stored["8"].float() * stored["8.step"][..., None, None] + stored["8.low"][..., None, None]
    error = (restored - online(split)[8][:4]).abs()
    assert (error <= stored["8.step"][..., None, None] * 0.501 + 1e-6).all()


def test_values_too_large_for_fp16_are_refused_and_bf16_is_named(split: Split, tmp_path: Path) -> None:
    extractor = TinyExtractor()
    extractor.convolutions[0].bias.data += 1e6
    with pytest.raises(StoreError, match=r"stride 8: .*1e\+06.*fp16.*bf16"):
        extract(extractor, [split], tmp_path / "store", SIZE)
    extract(extractor, [split], tmp_path / "wide", SIZE, ExtractOptions(dtype="bf16"))


def test_two_processes_write_the_same_store_as_one(make_store: MakeStore, split: Split, tmp_path: Path) -> None:
    one = make_store("one")
    for process in (1, 0):
        extract(TinyExtractor(), [split], tmp_path / "two", SIZE, ExtractOptions(batch=4, share=(process, 2)))
    assert contents(tmp_path / "two") == contents(one.directory)


def test_the_same_extraction_twice_at_once_is_refused(split: Split, tmp_path: Path) -> None:
    tried = []

    class Impatient(TinyExtractor):
        def forward(self, images: Tensor) -> dict[int, Tensor]:
            if not tried:
                tried.append("once")
                with pytest.raises(MtyoloError, match="train: another process is writing there; wait for it"):
                    extract(TinyExtractor(), [split], tmp_path / "store", SIZE)
            return super().forward(images)

    extract(Impatient(), [split], tmp_path / "store", SIZE)
    assert tried
    assert verify(tmp_path / "store", [split]) == []


def test_a_manifest_half_written_by_a_killed_process_goes(make_store: MakeStore, split: Split) -> None:
    store = make_store()
    before = contents(store.directory)
    (store.directory / ".manifest.json.4711").write_bytes(b"{")
    extract(TinyExtractor(), [split], store.directory, SIZE, ExtractOptions(batch=4))
    assert contents(store.directory) == before


def test_a_second_extraction_writes_nothing(make_store: MakeStore, split: Split) -> None:
    store = make_store()
    before = contents(store.directory)
    told: list[int] = []
    options = ExtractOptions(batch=4)
    written = extract(TinyExtractor(), [split], store.directory, SIZE, options, report=told.append)
    assert (written.images, written.shards, written.kept) == (0, 0, 3)
    assert sum(told) == 10, "what is kept is done, too"
    assert contents(store.directory) == before


def test_shards_beyond_the_last_go_when_the_data_has_become_less(make_store: MakeStore, split: Split) -> None:
    store, fewer = make_store(), replace(split, records=split.records[:5])
    extract(TinyExtractor(), [fewer], store.directory, SIZE, ExtractOptions(batch=4))
    left = sorted(path.name for path in (store.directory / "train").iterdir())
    assert left == ["00000.safetensors", "00001.safetensors"]
    assert verify(store.directory, [fewer]) == []


def flip_byte(path: Path, position: int) -> None:
    whole = bytearray(path.read_bytes())
    whole[position] ^= 0x10
    path.write_bytes(whole)


def read_all(directory: Path, split: Split, residency: Residency) -> None:
    store = FeatureStore.open(directory, residency)
    list(make_store_loader(store, split, 4, augment=None, shuffle=False, seed=0))


def flip_data(path: Path) -> None:
    flip_byte(path, -100)


def flip_header(path: Path) -> None:
    flip_byte(path, path.read_bytes().index(b"height") + 10)


def flip_padding(path: Path) -> None:
    header_length = int.from_bytes(path.read_bytes()[:8], "little")
    whole = bytearray(path.read_bytes())
    assert whole[7 + header_length] == ord(" "), "this test flips a space after the header's text"
    whole[7 + header_length] = ord("\n")
    path.write_bytes(whole)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1000)


def lengthen(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (flip_data, "bytes changed|checksum"),
        (flip_header, "damaged or not understood"),
        (flip_padding, "bytes changed|checksum"),
        (truncate, "cut off: .* expected"),
        (lengthen, "too long: .* expected"),
        (empty, "cut off: 0 bytes"),
        (Path.unlink, "missing"),
    ],
)
def test_damage_is_named_by_training_and_verify_and_repaired_alone(
    make_store: MakeStore, split: Split, damage: Callable[[Path], None], words: str
) -> None:
    store = make_store()
    before = contents(store.directory)
    path = store.directory / "train" / "00001.safetensors"
    damage(path)
    residencies: tuple[Residency, ...] = ("stream", "ram")
    for residency in residencies:
        with pytest.raises(StoreError, match=rf"00001\.safetensors: .*({words}).*mtyolo extract") as caught:
            read_all(store.directory, split, residency)
        assert "\n" not in str(caught.value)
    assert [sentence for sentence in verify(store.directory) if "00001.safetensors" in sentence]
    assert len(verify(store.directory)) == 1
    written = extract(TinyExtractor(), [split], store.directory, SIZE, ExtractOptions(batch=4))
    assert (written.shards, written.kept) == (1, 2)
    assert contents(store.directory) == before
    assert verify(store.directory, [split]) == []


def test_every_single_byte_of_a_shard_is_guarded(make_store: MakeStore) -> None:
    store = make_store()
    path = store.directory / "train" / "00002.safetensors"
    whole = path.read_bytes()
    random = np.random.default_rng(0)
    header = int.from_bytes(whole[:8], "little") + 8
    for position in [*range(12), *random.integers(header, size=60), *random.integers(len(whole), size=40)]:
        flip_byte(path, int(position))
        assert len(verify(store.directory)) == 1, f"byte {position}"
        path.write_bytes(whole)
    assert verify(store.directory) == []


@pytest.mark.parametrize("tensor", ["8", "8.low", "8.step"])
def test_values_that_are_not_finite_are_found_in_ranges_and_in_all_views(make_store: MakeStore, tensor: str) -> None:
    directory = make_store(dtype="int8" if "." in tensor else "fp16", views=2).directory
    path = directory / "train" / "00001.safetensors"
    table, tensors = read_contents(path), load_file(path)
    tensors[tensor][5] = np.nan  # the second view of the third image
    write_shard(path, tensors, table)
    (problem,) = verify(directory)
    assert "the features of 1 of 4 images are not finite, first of 0006.png" in problem


def test_another_picture_of_equal_length_and_time_is_found_by_verify(make_store: MakeStore, split: Split) -> None:
    store, path = make_store(), split.records[5].path
    status, whole = path.stat(), path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    check(OnTiny(TinyExtractor()), store.directory, split, SIZE)
    (problem,) = verify(store.directory, [split])
    assert "0005.png: its content differs" in problem


def test_the_row_of_an_image_is_that_of_the_longest_name() -> None:
    rows = [Row(name=name, height=4, width=4) for name in ("b/0.png", "0.png", "a/b/0.png")]
    index = SplitIndex("train", [Contents(rows=rows)], made_here=False)
    found = [index.find(Path(path)) for path in ("/data/a/b/0.png", "/data/b/0.png", "/data/c/0.png", "/data/1.png")]
    assert found == [2, 0, 1, None]


def test_a_shard_of_another_store_is_refused(make_store: MakeStore, split: Split, tmp_path: Path) -> None:
    store = make_store()
    extract(TinyExtractor(seed=1), [split], tmp_path / "other", SIZE, ExtractOptions(batch=4))
    shutil.copy(tmp_path / "other/train/00001.safetensors", store.directory / "train")
    with pytest.raises(StoreError, match=r"00001\.safetensors: belongs to another store"):
        FeatureStore.open(store.directory).index("train")
    assert len(verify(store.directory)) == 1


def test_a_wrong_extractor_size_or_level_is_named(make_store: MakeStore, split: Split) -> None:
    directory = make_store().directory
    check(OnTiny(TinyExtractor()), directory, split, SIZE)
    with pytest.raises(StoreError, match="weights seed 0, not seed 1"):
        check(OnTiny(TinyExtractor(seed=1)), directory, split, SIZE)
    with pytest.raises(StoreError, match="made at 64 px, the model asks for 128 px"):
        check(OnTiny(TinyExtractor()), directory, split, 128)
    fewer = TinyExtractor()
    fewer.levels = TinyExtractor.levels[:2]
    with pytest.raises(StoreError, match=r"has levels .*32: 12.*the model's extractor has \{8: 6, 16: 8\}"):
        check(OnTiny(fewer), directory, split, SIZE)
    other = TinyExtractor()
    other.identity["name"] = "resnet18"
    with pytest.raises(StoreError, match="made with the extractor tiny, not resnet18"):
        check(OnTiny(other), directory, split, SIZE)
    with pytest.raises(StoreError, match="no extractor"):
        check(OnTiny(None), directory, split, SIZE)
    with pytest.raises(StoreError, match="has no split val, only train"):
        check(OnTiny(TinyExtractor()), directory, Split("val", split.records, split.names, split.problems), SIZE)


class Plain(TinyExtractor):
    """As people write theirs: it does not say what it is."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        del self.identity


def test_a_class_that_says_nothing_of_itself_is_known_by_its_name_and_weights(split: Split, tmp_path: Path) -> None:
    extract(Plain(), [split], tmp_path / "store", SIZE, ExtractOptions())
    check(OnTiny(Plain()), tmp_path / "store", split, SIZE)
    with pytest.raises(StoreError, match=r"made with the extractor's weights \w+, not \w+; run mtyolo extract into an"):
        check(OnTiny(Plain(seed=1)), tmp_path / "store", split, SIZE)
    manifest = tmp_path / "store" / "manifest.json"
    content = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(content | {"extractor": {"name": "lab-cpp"}, "versions": {}}))
    with pytest.raises(StoreError, match="made with the extractor lab-cpp, not mine; give a store of the features"):
        check(OnTiny(Plain()), tmp_path / "store", split, SIZE)
    manifest.write_text(json.dumps(content | {"extractor": {"name": "mine"}, "versions": {}}))
    with pytest.raises(StoreError, match="belongs to another store"):  # the shards, after name and size fit
        check(OnTiny(Plain()), tmp_path / "store", split, SIZE)


def test_a_folder_with_other_features_is_not_written_over(make_store: MakeStore, split: Split) -> None:
    store = make_store()
    for extractor, size, options, words in (
        (TinyExtractor(seed=1), 96, ExtractOptions(), r"weights seed 0, not seed 1\); give another folder"),
        (TinyExtractor(), 96, ExtractOptions(), r"64 px, not 96 px\); give --imgsz 64 to go on with it, or another"),
        (TinyExtractor(), SIZE, ExtractOptions(dtype="int8"), r"stored as fp16, not as int8\); give --dtype fp16 to"),
        (TinyExtractor(), 96, ExtractOptions(views=2), "64 px, not 96 px.*; give --imgsz 64 --views 1 to go on"),
    ):
        with pytest.raises(StoreError, match=f"holds other features .*{words}"):
            extract(extractor, [split], store.directory, size, options)


class Broken(TinyExtractor):
    def forward(self, images: torch.Tensor) -> dict[int, torch.Tensor]:
        raise RuntimeError("out of memory")


def test_an_extraction_that_failed_at_its_first_batch_keeps_nobody_out(split: Split, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        extract(Broken(seed=1), [split], tmp_path, 96, ExtractOptions(dtype="int8"))
    assert (tmp_path / "manifest.json").exists()
    assert extract(TinyExtractor(), [split], tmp_path, SIZE, ExtractOptions()).images == len(split)
    assert verify(tmp_path) == []
    assert FeatureStore.open(tmp_path).manifest.extractor["weights"] == "seed 0"


def test_a_manifest_that_another_program_wrote_first_stays(make_store: MakeStore, split: Split) -> None:
    directory = make_store().directory
    shutil.rmtree(directory / "train")
    content = json.loads((directory / "manifest.json").read_text()) | {"versions": {}}
    (directory / "manifest.json").write_text(json.dumps(content))
    with pytest.raises(StoreError, match="holds other features"):
        extract(TinyExtractor(seed=1), [split], directory, SIZE, ExtractOptions())


def test_features_of_other_arguments_or_another_module_are_not_written_beside(
    make_store: MakeStore, split: Split
) -> None:
    """Where the weights are the same; a store that says nothing of them, as earlier ones, goes on."""
    said = {"name": "mine:Net", "arguments": '{"crop": 1}', "weights": "none"}
    store, silent = make_store(source=said), make_store("silent")
    for source, words in (
        (said | {"arguments": '{"crop": 2}'}, r"arguments \{\"crop\": 1\}, not \{\"crop\": 2\}\); give another folder"),
        (said | {"name": "yours:Net"}, r"made with the extractor mine:Net, not yours:Net\); give another folder"),
    ):
        with pytest.raises(StoreError, match=f"holds other features .*{words}"):
            extract(TinyExtractor(), [split], store.directory, SIZE, ExtractOptions(source=source))
        with pytest.raises(StoreError, match=r"64 px, not 96 px.*; give another folder"):
            extract(TinyExtractor(), [split], store.directory, 96, ExtractOptions(source=source))
    for directory, source in ((silent.directory, said), (store.directory, {}), (store.directory, said)):
        options = ExtractOptions(batch=4, source=source)
        assert extract(TinyExtractor(), [split], directory, SIZE, options).kept == 3
    assert store.manifest.fingerprint == silent.manifest.fingerprint


def test_a_size_that_does_not_divide_is_refused_with_the_nearest(split: Split, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"multiple of the largest stride, 32; use 96"):
        extract(TinyExtractor(), [split], tmp_path / "store", 100)


def test_changed_images_are_found_and_only_their_shard_is_made_again(
    make_store: MakeStore, split: Split, images: Path
) -> None:
    store = make_store()
    kept = {name: text for name, text in contents(store.directory).items() if "00001" not in name}
    path = split.records[5].path
    picture = cv2.imread(str(path))
    picture[0, 0] = 255 - picture[0, 0]
    cv2.imwrite(str(path), picture)
    with pytest.raises(StoreError, match=r"1 of 10 images of train changed .*0005\.png"):
        check(OnTiny(TinyExtractor()), store.directory, split, SIZE)
    assert len(verify(store.directory, [split])) == 1
    written = extract(TinyExtractor(), [split], store.directory, SIZE, ExtractOptions(batch=4))
    assert written.shards == 1
    assert kept.items() <= contents(store.directory).items()
    check(OnTiny(TinyExtractor()), store.directory, split, SIZE)


def test_an_image_that_was_only_touched_or_moved_is_the_same(
    make_store: MakeStore, split: Split, images: Path, tmp_path: Path
) -> None:
    store = make_store()
    for record in split.records:
        os.utime(record.path, (1, 1))
    check(OnTiny(TinyExtractor()), store.directory, split, SIZE)
    shutil.copytree(images.parent, tmp_path / "elsewhere")
    text = images.read_text().replace(str(images.parent), str(tmp_path / "elsewhere"))
    (tmp_path / "elsewhere/data.yaml").write_text(text)
    moved = load_split(tmp_path / "elsewhere/data.yaml", "train")
    assert store.check(OnTiny(TinyExtractor()), moved, SIZE) == list(range(10))


def test_missing_images_are_counted_and_named(make_store: MakeStore, split: Split, tmp_path: Path) -> None:
    store = make_store()
    more = load_split(make_images(tmp_path / "more", 12), "train")
    with pytest.raises(StoreError, match=r"2 of 12 images of train are not in the store, first .*0010\.png"):
        check(OnTiny(TinyExtractor()), store.directory, more, SIZE)


def test_labels_are_read_fresh(make_store: MakeStore, images: Path) -> None:
    store = make_store()
    (images.parent / "labels/train/0000.txt").write_text("0 0.5 0.5 0.2 0.2\n0 0.3 0.3 0.1 0.1\n")
    (images.parent / "labels-pose/train/0000.txt").unlink()
    changed = load_split(images, "train")
    batch = next(iter(make_store_loader(store, changed, 1, augment=None, shuffle=False, seed=0)))
    assert len(batch.targets.classes) == 2


def test_info_counts_what_is_there(make_store: MakeStore) -> None:
    store = make_store()
    (store.directory / "train/00002.safetensors").unlink()
    found = info(store.directory)
    (train,) = found.splits
    assert (train.name, train.images, train.shards, train.present) == ("train", 10, 3, 2)
    assert train.bytes == sum(path.stat().st_size for path in (store.directory / "train").iterdir())


def test_a_folder_without_a_store_says_so(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"no feature store .*manifest\.json.*mtyolo extract"):
        FeatureStore.open(tmp_path)
    (tmp_path / "manifest.json").write_text('{"format": "mtyolo-features/1", "size": 3}')
    with pytest.raises(StoreError, match=r"manifest\.json: extractor: Field required"):
        FeatureStore.open(tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda content: content.pop("format"), "format: Field required"),
        (lambda content: content["extractor"].pop("name"), "extractor: name is missing: say what made the features"),
    ],
)
def test_a_manifest_that_does_not_say_what_it_is_is_refused(
    change: Callable[[dict[str, Any]], object], words: str, make_store: MakeStore
) -> None:
    path = make_store().directory / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(StoreError, match=rf"manifest\.json: {words}.*; see docs/features\.md"):
        FeatureStore.open(path.parent)


def test_strides_that_do_not_divide_are_refused(make_store: MakeStore) -> None:
    path = make_store().directory / "manifest.json"
    path.write_text(path.read_text().replace('"16": 8', '"12": 8'))
    with pytest.raises(StoreError, match="strides must divide the largest, 32, and that the size; 12 does not fit"):
        FeatureStore.open(path.parent)


def test_features_on_a_gpu_need_one(make_store: MakeStore, split: Split) -> None:
    store = FeatureStore.open(make_store().directory, "gpu")
    with pytest.raises(ConfigError, match="residency gpu: the features are used on cpu"):
        store.index("train")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("residency", ["stream", "gpu"])
@pytest.mark.parametrize("dtype", ["fp16", "int8"])
def test_features_come_to_the_gpu_as_they_are_on_the_cpu(
    make_store: MakeStore, split: Split, residency: Residency, dtype: str
) -> None:
    directory = make_store(dtype=dtype).directory
    on_cpu, on_gpu = FeatureStore.open(directory), FeatureStore.open(directory, residency, "cuda")
    pictures = [[on_cpu.whole(row)] for row in range(10)]
    expected, found = on_cpu.read("train", pictures), on_gpu.read("train", pictures)
    for stride in expected:
        assert found[stride].device.type == "cuda"
        torch.testing.assert_close(found[stride].cpu(), expected[stride], rtol=1e-6, atol=1e-6)
