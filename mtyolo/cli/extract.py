"""`mtyolo extract`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtyolo.cli import options
from mtyolo.cli.chance import is_drawn
from mtyolo.cli.estimate import say_estimate
from mtyolo.cli.output import say

if TYPE_CHECKING:
    from mtyolo.config.model import ExtractorConfig
    from mtyolo.data.records import Split
    from mtyolo.data.sources import DataSource
    from mtyolo.features.planning import ExtractOptions
    from mtyolo.features.reader import FeatureStore
    from mtyolo.model import Model

EXAMPLES = (
    "mtyolo extract --model yolov5n-lite0.yaml --data coco_mini.yaml --out features --dry-run",
    "mtyolo extract -m yolov5n-lite0.yaml -d coco_mini.yaml --out features --imgsz 320 --dtype int8",
    "mtyolo train -m yolov5n-lite0.yaml -d coco_mini.yaml --features features --imgsz 320",
    "mtyolo extract -m yolov5n-lite0-early.yaml -d photos/ --out features --views 24 --targets"
    "  # then train --plan align",
    "torchrun --nproc-per-node 8 -m mtyolo extract -m yolov5s-resnet50.yaml -d coco.yaml --out features",
)
SPLITS = ("train", "val")
MOST_VIEWS = 1000
"""An epoch needs one; more than this is a slip of the keyboard, and would fill any disk."""

Out = Annotated[Path, typer.Option("--out", help="The store's folder. One that is there already is completed.")]
SplitNames = Annotated[
    str | None,
    typer.Option("--splits", help="Which splits of the data, with commas between.", show_default="train, val if any"),
]
Views = Annotated[
    int,
    typer.Option(
        min=1, max=MOST_VIEWS, help="How often to store each image: plain, then with crops, colours and mirrors."
    ),
]
Dtype = Annotated[str, typer.Option(help="fp16, bf16, fp32, or int8: half the bytes of fp16.")]
Batch = Annotated[int, typer.Option(min=1, help="Images at once; on a CPU the extractor takes them in fours.")]
Workers = Annotated[int, typer.Option(min=1, help="Threads that read images.")]
Targets = Annotated[
    bool,
    typer.Option(
        "--targets", help="Also what the layers gave that the features replace: then adapters can be aligned."
    ),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Time a few images and say what the store would cost and bring; write none.")
]
Images = Annotated[
    int | None,
    typer.Option(min=1, help="With --dry-run: for so many images.", show_default="those of the splits"),
]


def extract(
    model: options.Model,
    data: options.Data,
    out: Out = Path("features"),
    splits: SplitNames = None,
    views: Views = 1,
    dtype: Dtype = "fp16",
    imgsz: options.ImageSize = None,
    batch: Batch = 16,
    workers: Workers = 2,
    device: options.Device = "auto",
    targets: Targets = False,
    weights: options.Weights = None,
    trust: options.Trust = False,
    strict: options.Strict = False,
    dry_run: DryRun = False,
    images: Images = None,
    json: options.Json = None,
) -> None:
    from accelerate import PartialState

    from mtyolo.data.sources import read_data
    from mtyolo.device import find_device
    from mtyolo.errors import ConfigError
    from mtyolo.features.manifest import REPLACED, dtype_of
    from mtyolo.features.planning import ExtractOptions
    from mtyolo.features.replaced import ReplacedLayers, in_rows_of, target_options
    from mtyolo.features.standin import source_of
    from mtyolo.geometry import fitting_side
    from mtyolo.opening import open_model

    process = PartialState(cpu=device == "cpu")
    opened = open_model(model, data=data, weights=weights, trust=trust)
    if opened.extractor is None or opened.config.extractor is None:
        raise ConfigError(f"{model}: has no extractor, so there are no features to store; see model_cfgs/ for some")
    if process.is_main_process and opened.config.extractor.imports and model.suffix != ".safetensors":
        _warn_of_chance(opened, opened.config.extractor)
    settings = ExtractOptions(
        dtype=dtype_of(dtype),
        views=views,
        batch=batch,
        workers=workers,
        device=process.device if device == "auto" and process.num_processes > 1 else find_device(device),
        source=source_of(opened.config.extractor),
        share=(process.process_index, process.num_processes),
    )
    asked = fitting_side(imgsz, opened.largest_stride) if imgsz is not None else None
    given = _given_features(model, opened, out, settings, asked, targets=targets, dry_run=dry_run)
    source = read_data(data)
    aloud = process.is_main_process
    found = _load(source, _names(source, splits, given), strict=strict, aloud=aloud, views=views)
    size = asked or fitting_side(opened.usual_size, opened.largest_stride)
    if given is not None:
        found, size = [in_rows_of(given, split) for split in found], given.manifest.size
    replaced = ReplacedLayers(opened) if targets else None
    if dry_run:
        from mtyolo.features.estimate import estimate

        say_estimate(estimate(opened, found, size, settings, replaced), settings, images, json)
        return
    if given is None:
        _write(opened.extractor, found, out, size, settings)
    if replaced is not None:
        _write(replaced, found, out / REPLACED, size, target_options(settings), given)
    process.wait_for_everyone()
    if process.is_main_process:
        from mtyolo.cli.features import print_info
        from mtyolo.features.verify import info

        print_info(info(out), json)


def _warn_of_chance(model: Model, config: ExtractorConfig) -> None:
    """A class of one's own may draw its weights at random; then this store is all that is left of them."""
    from mtyolo.extractors.base import Extractor

    assert isinstance(model.extractor, Extractor)
    if is_drawn(model.extractor, config):
        say(
            f"warning: {config.name} has other weights each time it is made, so no model trained on this store can be "
            "used with images; save them as .safetensors, and name that file under extractor.weights"
        )


def _given_features(
    path: Path, model: Model, out: Path, settings: ExtractOptions, size: int | None, *, targets: bool, dry_run: bool
) -> FeatureStore | None:
    """The store in `out`, where the model takes features that another program makes; None where it makes its own."""
    from mtyolo.errors import ConfigError
    from mtyolo.extractors.base import GIVEN
    from mtyolo.features.replaced import open_given

    if model.config.extractor is None or model.config.extractor.name != GIVEN:
        return None
    if not targets or dry_run:
        raise ConfigError(
            f"{path}: its features come from elsewhere, so there is nothing to extract{' or time' if dry_run else ''}; "
            "--targets alone stores beside them what the layers gave that they replace"
        )
    if settings.views > 1:
        raise ConfigError(f"--views {settings.views}: features that come from elsewhere have one view; leave it out")
    return open_given(out, model, size)


def _names(source: DataSource, splits: str | None, given: FeatureStore | None) -> list[str]:
    """Of the splits to extract."""
    from mtyolo.data import sources
    from mtyolo.errors import ConfigError

    known = SPLITS if given is None else tuple(given.manifest.splits)
    if splits is None:
        named = [name for name in sources.SPLITS if name in known and source.has(name)]
    else:
        named = [name.strip() for name in splits.split(",") if name.strip()]
    if not named:
        raise ConfigError(
            f"{source.place()}: has none of the splits {', '.join(known)}, so there is nothing to extract"
        )
    strange = next((name for name in named if given is not None and name not in known), None)
    if strange is not None:
        raise ConfigError(f"--splits {strange}: the store of features has {', '.join(known)}; write it there first")
    return named


def _load(source: DataSource, names: list[str], *, strict: bool, aloud: bool, views: int) -> list[Split]:
    from mtyolo.data.records import UNMIRRORED
    from mtyolo.data.split import load_split

    found = [load_split(source, name, strict=strict) for name in names]
    for split in found:
        if aloud and (wrong := split.problems.summary()):
            say(wrong)
        if aloud and views > 1 and not split.may_mirror:
            say(f"{split.name}: note: {UNMIRRORED}")
    return found


def _write(
    extractor: Any,
    splits: list[Split],
    out: Path,
    size: int,
    settings: ExtractOptions,
    beside: FeatureStore | None = None,
) -> None:
    """beside: a store whose names of images are taken over."""
    from mtyolo.cli.output import progress_bar
    from mtyolo.features.manifest import REPLACED
    from mtyolo.features.writer import extract as write

    index, processes = settings.share
    # Shards are dealt out in turn, so every process has about the same number of images.
    total, done = sum(len(split) for split in splits) // processes, 0
    names = None
    if beside is not None:
        names = {split.name: [row.name for row in beside.index(split.name).rows] for split in splits}
    label = f"extract {out.name}" if out.name == REPLACED else "extract"
    with progress_bar(label if processes == 1 else f"{label} {index + 1}/{processes}") as progress:

        def report(images: int) -> None:
            nonlocal done
            done += images
            progress(done, max(done, total))

        written = write(extractor, splits, out, size, settings, report, names)
    say(f"{written.images} images in {written.shards} shards written; {written.kept} shards were there already")
