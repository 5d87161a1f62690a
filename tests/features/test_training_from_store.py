"""Training from a store against training online with the same frozen extractor."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import safe_open
from tiny_features import make_images, own_extractor_model, write_own_extractor

from mtyolo.api import build, open_model, train, validate
from mtyolo.checkpoint import save_weights
from mtyolo.cli.main import main
from mtyolo.config.model import ExtractorConfig
from mtyolo.config.training import AugmentConfig, TrainConfig
from mtyolo.data.records import Problems, Split, labels_of, without_keypoints
from mtyolo.data.split import load_split
from mtyolo.errors import CheckpointError, ConfigError, DataError, StoreError
from mtyolo.evaluation.validate import validate as validation
from mtyolo.extractors import make_extractor
from mtyolo.features.dataset import StoreDataset
from mtyolo.features.planning import ExtractOptions
from mtyolo.features.reader import FeatureStore
from mtyolo.features.standin import source_of, stand_in
from mtyolo.features.writer import extract
from mtyolo.model import Model
from mtyolo.structures import Batch
from mtyolo.training.objectives.tasks import TasksObjective
from mtyolo.training.records.checkpoints import read_state
from mtyolo.training.records.judging import Judge
from mtyolo.training.settings import Settings
from mtyolo.training.train import train as loop

SIZE = 64
PLAN = {"stages": [{"name": "frozen", "train": ["adapters", "detector", "keypoint"], "augment": False}]}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A data file of ten images; its folder holds a module with an extractor of one's own."""
    torch.set_num_threads(1)
    path = make_images(tmp_path / "data", 10)
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"val": content["train"]}))
    write_own_extractor(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield path
    sys.modules.pop("own_extractor", None)


def make_model(data: Path, **options: Any) -> Model:
    torch.manual_seed(1)
    model = build(own_extractor_model(), data=data, trust=True, **options)
    torch.manual_seed(2)
    for name, parameter in sorted(model.named_parameters()):
        if not name.startswith("extractor."):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def test_mirrored_views_of_points_without_flip_idx_are_refused(data: Path, tmp_path: Path) -> None:
    """As of a folder of photos, where nothing stands against mirroring."""
    split, model = load_split(data, "train"), make_model(data)
    photos = Split(
        "train",
        [replace(record, labels=labels_of([], [], masks=False, points=None)) for record in split.records],
        {},
        Problems(),
    )
    source = source_of(model.config.extractor)  # type: ignore[arg-type]
    extract(model.extractor, [photos], tmp_path / "views", SIZE, ExtractOptions(views=6, source=source))  # type: ignore[arg-type]
    store, blind = FeatureStore.open(tmp_path / "views"), replace(split, points=2, flip_idx=None)
    with pytest.raises(StoreError, match=r"views: \d+ of its views of train are mirrored.*add flip_idx"):
        StoreDataset(store, blind, AugmentConfig())
    StoreDataset(store, replace(blind, flip_idx=[1, 0]), AugmentConfig())
    StoreDataset(store, without_keypoints(blind), AugmentConfig())
    StoreDataset(store, blind)  # the first view is plain


@pytest.fixture
def store(data: Path, tmp_path: Path) -> Path:
    model = make_model(data)
    assert model.extractor is not None
    assert model.config.extractor is not None
    options = ExtractOptions(dtype="fp32", source=source_of(model.config.extractor))
    extract(model.extractor, [load_split(data, split) for split in ("train", "val")], tmp_path / "store", SIZE, options)  # type: ignore[arg-type]
    return tmp_path / "store"


def test_classes_that_fill_themselves_have_no_weights_of_imagenet(data: Path, tmp_path: Path) -> None:
    own = ExtractorConfig(name="own_extractor:Frozen")
    assert source_of(own).keys() == {"name", "arguments"}
    assert source_of(ExtractorConfig(name="timm/resnet18"))["weights"] == "imagenet"
    (tmp_path / "mine.safetensors").write_bytes(b"weights")
    filled = own.model_copy(update={"weights": str(tmp_path / "mine.safetensors")})
    made = source_of(own)
    for number, source in enumerate((made, made | {"weights": "imagenet"}, made | {"weights": "none"})):
        folder = tmp_path / str(number)
        extract(
            make_extractor(own, (), trust=True), [load_split(data, "val")], folder, SIZE, ExtractOptions(source=source)
        )
        stand_in(folder)(own)
        stand_in(folder)(own.model_copy(update={"weights": "none"}))
        with pytest.raises(StoreError, match=r"weights none, the model file says mine\.safetensors"):
            stand_in(folder)(filled)


@pytest.fixture
def config() -> TrainConfig:
    return TrainConfig(epochs=2, imgsz=SIZE, batch=4, workers=0, device="cpu", val_every=2)


def test_each_stage_leaves_truth_beside_what_was_found_in_features(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    train(make_model(data, features=store), data, plan=PLAN, config=config, out=out, features=store, progress=False)
    assert (out / "val_frozen.jpg").stat().st_size > 1000


def test_a_picture_that_can_not_be_drawn_costs_no_more(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def lost(*_: Any, **given: Any) -> Any:
        raise DataError(f"photo of {given['features']} is gone")

    out, judge = tmp_path / "run", Judge(validation, lost)
    loop(make_model(data, features=store), data, plan=PLAN, config=config, out=out, features=store, judge=judge)
    assert "val_frozen.jpg is not drawn: photo of" in capsys.readouterr().out
    assert read_state(out)["position"]["stage"] == 1


def losses_of_steps(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, float]]:
    """Filled with every step's loss components while training runs."""
    steps: list[dict[str, float]] = []
    original = TasksObjective.__call__

    def recorded(self: TasksObjective, model: Model, batch: Any) -> Any:
        losses = original(self, model, batch)
        steps.append({name: float(value.detach()) for name, value in losses.components.items()})
        return losses

    monkeypatch.setattr(TasksObjective, "__call__", recorded)
    return steps


def test_losses_from_the_store_are_those_of_training_online_step_by_step(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = losses_of_steps(monkeypatch)
    train(make_model(data), data, plan=PLAN, config=config, out=tmp_path / "online", progress=False)
    online, stored = list(steps), steps
    steps.clear()
    model = make_model(data, features=store)
    train(model, data, plan=PLAN, config=config, out=tmp_path / "stored", features=store, progress=False)
    assert len(online) == len(stored) == 6
    assert online[0] != pytest.approx(online[-1], rel=1e-3), "the steps must teach something"
    for one, other in zip(online, stored, strict=True):
        assert other == pytest.approx(one, rel=1e-5, abs=1e-5)


def test_what_was_trained_from_a_store_predicts_on_images(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path
) -> None:
    run = train(
        make_model(data, features=store),
        data,
        plan=PLAN,
        config=config,
        out=tmp_path / "run",
        features=store,
        progress=False,
    )
    with safe_open(run.best, framework="pt") as file:
        assert not any(name.startswith("extractor.") for name in file.keys())  # noqa: SIM118
    opened = open_model(run.best, data=data, trust=True)
    reference = make_model(data)
    assert opened.extractor is not None
    assert reference.extractor is not None
    ours, theirs = opened.extractor.state_dict(), reference.extractor.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    metrics = validate(opened, data, size=SIZE, batch=4)
    final = {name: value for name, value in run.results[-1].items() if name == "detect/AP"}
    assert metrics.as_dict()["detect/AP"] == pytest.approx(final["detect/AP"], abs=1e-4)


def test_a_stage_reads_features_only_of_images_that_are_labelled_for_its_tasks(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = StoreDataset(FeatureStore.open(store), load_split(data, "train"))
    images, content = [record.path for record in whole.split.records], yaml.safe_load(data.read_text())
    for name, numbers, tasks in (("points", range(6, 10), ["keypoint"]), ("boxes", range(6), ["detect"])):
        (tmp_path / f"{name}.txt").write_text("".join(f"{images[number]}\n" for number in numbers))
        own = content | {"train": str(tmp_path / f"{name}.txt"), "tasks": tasks}
        joined = {} if name == "points" else {"join": [str(tmp_path / "points.yaml")]}
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(own | joined))
    seen: list[Batch] = []
    original = TasksObjective.__call__
    monkeypatch.setattr(
        TasksObjective, "__call__", lambda self, model, batch: (seen.append(batch), original(self, model, batch))[1]
    )
    plan = {"stages": [PLAN["stages"][0] | {"tasks": ["keypoint"], "train": ["adapters", "keypoint"]}]}
    given, mixed = make_model(data, features=store), tmp_path / "boxes.yaml"
    loop(given, mixed, plan=plan, config=config, out=tmp_path / "run", features=store, progress=False)
    assert [sorted(batch.indices.tolist()) for batch in seen] == [[0, 1, 2, 3]] * 2, "four images, a batch an epoch"
    for batch in seen:
        assert batch.targets.labelled["keypoint"].all()
        for place, index in enumerate(batch.indices.tolist()):
            (expected,) = whole[6 + index].pyramid[8]  # type: ignore[index]
            assert torch.equal(batch.pyramid[8][place], expected)  # type: ignore[index]


def test_a_run_from_a_store_resumes_without_the_extractor(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model(data, features=store)
    run = train(model, data, plan=PLAN, config=config, out=tmp_path / "run", features=store, progress=False)
    (tmp_path / "own_extractor.py").unlink()
    again = train(resume=run.out, progress=False)
    assert again.results == run.results


def test_a_run_whose_store_was_moved_goes_on_where_it_is_now(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model(data, features=store)
    run = train(model, data, plan=PLAN, config=config, out=tmp_path / "run", features=store, progress=False)
    moved = store.rename(tmp_path / "moved")
    with pytest.raises(
        StoreError, match=r"store: the store of .*run is not there; name its new folder with --features"
    ):
        train(resume=run.out, progress=False)
    assert train(resume=run.out, features=moved, progress=False).results == run.results
    assert main(["train", "--resume", str(run.out), "--features", str(moved)]) == 0
    manifest = (moved / "manifest.json").read_text()
    (moved / "manifest.json").write_text(manifest.replace('"size": 64', '"size": 96'))
    with pytest.raises(StoreError, match="made at 96 px, the model asks for 64 px"):
        train(resume=run.out, features=moved, progress=False)


def test_a_run_on_images_goes_on_with_images(data: Path, store: Path, config: TrainConfig, tmp_path: Path) -> None:
    run = train(make_model(data), data, plan=PLAN, config=config, out=tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match="was started on images and goes on with them; leave --features out"):
        train(resume=run.out, features=store, progress=False, trust=True)


def test_without_a_size_training_takes_that_of_the_store(data: Path, store: Path, tmp_path: Path) -> None:
    model = make_model(data, features=store)
    default = TrainConfig(epochs=1, batch=4, workers=0, device="cpu")
    run = train(model, data, plan=PLAN, config=default, out=tmp_path / "run", features=store, progress=False)
    assert Settings.of_run(read_state(run.out), run.out).parsed()[0].imgsz == SIZE


def test_the_extractor_is_neither_loaded_nor_needed(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path
) -> None:
    sys.modules.pop("own_extractor", None)
    (tmp_path / "own_extractor.py").unlink()
    model = make_model(data, features=store)
    run = train(model, data, plan=PLAN, config=config, out=tmp_path / "run", features=store, progress=False)
    assert run.last.exists()
    assert "own_extractor" not in sys.modules


def test_an_extractor_that_does_not_run_is_not_counted_among_what_trains(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, plan = make_model(data), {"stages": [{"name": "all", "augment": False}]}
    own = sum(one.numel() for key, one in model.named_parameters() if not key.startswith("extractor."))
    loop(model, data, plan=plan, config=config, out=tmp_path / "run", features=store)
    assert f"trains all ({own:,} of {own:,} parameters)" in capsys.readouterr().out


def test_weights_that_changed_since_are_found_when_the_model_is_opened(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path
) -> None:
    run = train(
        make_model(data, features=store),
        data,
        plan=PLAN,
        config=config,
        out=tmp_path / "run",
        features=store,
        progress=False,
    )
    text = (tmp_path / "own_extractor.py").read_text()
    (tmp_path / "own_extractor.py").write_text(text.replace("manual_seed(seed)", "manual_seed(seed + 1)"))
    sys.modules.pop("own_extractor", None)
    with pytest.raises(CheckpointError, match="trained on features of an extractor with weights"):
        open_model(run.best, trust=True)


def test_stages_that_need_pixels_or_train_the_extractor_are_refused(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model(data, features=store)
    for stage, words in (
        ({"train": ["extractor", "adapters"]}, "trains the extractor, but its features are stored"),
        ({"augment": {"hue": 0.2}}, r"augment\.hue: 0\.2 needs pixels"),
    ):
        with pytest.raises(ConfigError, match=words):
            loop(
                model,
                data,
                plan={"stages": [{"name": "one"} | stage]},
                config=config,
                out=tmp_path / "run",
                features=store,
                progress=False,
            )


def test_a_model_that_needs_images_is_refused_with_the_store(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path
) -> None:
    own = own_extractor_model()
    partly = build(own | {"detector": own["detector"] | {"entry": {9: 32}}}, data=data, trust=True)
    for model, error, words in (
        (build({"detector": own["detector"]}, data=data), StoreError, "this model has no extractor, so it takes"),
        (partly, ConfigError, r"layers before the entry .* enter at layer 9; .*\{4: 8\} .* leave --features out"),
    ):
        with pytest.raises(error, match=f"^{store}: {words}"):
            loop(model, data, config=config, out=tmp_path / "run", features=store, progress=False)


def test_a_model_of_images_is_refused_with_the_store_as_soon_as_it_is_opened(
    data: Path, store: Path, tmp_path: Path
) -> None:
    config = {"detector": own_extractor_model()["detector"]}
    weights = save_weights(build(config, data=data), tmp_path / "images.safetensors")
    for call in (
        lambda: build(config, data=data, features=store),
        lambda: open_model(weights, features=store),
        lambda: validate(weights, data, features=store),
    ):
        with pytest.raises(StoreError, match=f"^{store}: this model has no extractor, .* leave --features out"):
            call()


def test_a_store_of_another_size_or_extractor_is_refused(
    data: Path, store: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model(data, features=store)
    larger = config.model_copy(update={"imgsz": 96})
    with pytest.raises(StoreError, match="made at 64 px, the model asks for 96 px"):
        loop(model, data, plan=PLAN, config=larger, out=tmp_path / "run", features=store, progress=False)
    with pytest.raises(StoreError, match=r"extractor's arguments \{\"seed\": 0\}, the model file says \{\"seed\": 5\}"):
        build(own_extractor_model(seed=5), data=data, features=store)
    other = build(own_extractor_model(seed=5), data=data, trust=True)
    with pytest.raises(StoreError, match="made with the extractor's weights"):
        loop(other, data, plan=PLAN, config=config, out=tmp_path / "run", features=store, progress=False)
