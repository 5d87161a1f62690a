"""`mtyolo train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from mtyolo.cli import options
from mtyolo.cli.automatic import measured_batch, refuse_what_is_not_measured
from mtyolo.cli.chance import say_of_chance
from mtyolo.cli.output import say
from mtyolo.cli.rehearsal import say_rehearsal
from mtyolo.config.plan import read_plan
from mtyolo.config.reading import Document, read_yaml, validate
from mtyolo.config.training import AugmentConfig, TrainConfig

EXAMPLES = (
    "mtyolo train --model yolov5n-lite0.yaml --weights yolov5n.pt --data coco_mini.yaml --epochs 60 --freeze-det",
    "mtyolo train -m yolov5n-multitask.yaml --weights yolov5n.pt -d shapes.yaml --imgsz 320 --device cpu",
    "mtyolo train -m yolov5n-lite0.yaml --weights yolov5n.pt -d coco_mini.yaml --plan align-freeze-unfreeze",
    "mtyolo train --resume runs/train",
    "mtyolo train --resume runs/train --data elsewhere/data.yaml  # where the data was moved",
)
FREEZE_DETECTOR, REFINE, ALIGN_REFINE = "freeze-then-unfreeze", "refine", "align-refine"
"""The plans that --freeze-det stands for."""
AUTOMATIC = "auto"


def _field(name: str, text: str, **limits: Any) -> Any:
    """An option of TrainConfig. It is None where not given, so that it does not override the file of --config."""
    default = TrainConfig.model_fields[name].default
    shown = "none" if default is None else str(default)
    return typer.Option(f"--{name.replace('_', '-')}", help=text, show_default=shown, **limits)


Model = Annotated[
    Path | None,
    typer.Option("--model", "-m", callback=options.model_there, help="A model file (.yaml), .pt or .safetensors."),
]
Data = Annotated[
    Path | None,
    typer.Option(
        "--data",
        "-d",
        callback=options.data_there,
        help="A data file (.yaml): images, labels, class names, keypoints. Beside --resume: where it is now.",
    ),
]
Plan = Annotated[
    str | None,
    typer.Option(
        "--plan",
        help="The stages and what trains in each: a plan file (.yaml), or one that ships with mtyolo by its name.",
        show_default=f"{FREEZE_DETECTOR} where the detector has official weights (head-first where nothing is fresh, "
        "new-classes where it knows none of the classes), else all-at-once",
    ),
]
FreezeDet = Annotated[
    bool,
    typer.Option(
        "--freeze-det",
        help=f"First train all but the detector, then all: --plan {FREEZE_DETECTOR}; for .safetensors {REFINE}, or "
        f"{ALIGN_REFINE} where features enter an official detector.",
    ),
]
FreezeEpochs = Annotated[int | None, _field("freeze_epochs", "Epochs of the plan's first stage.", min=1)]
Epochs = Annotated[int | None, _field("epochs", "Epochs of the whole run.", min=1)]
ImageSize = Annotated[
    int | None,
    _field("imgsz", "Side of the square network input, in pixels; of weights that mtyolo trained, theirs.", min=1),
]
Batch = Annotated[
    str | None, _field("batch", "Images a step, over all processes; auto: as many as the GPU's memory takes.")
]
Accumulate = Annotated[int | None, _field("accumulate", "Steps whose gradients are added up for one update.", min=1)]
Rate = Annotated[float | None, _field("lr", "Learning rate after the warm-up, of parts without a scale.")]
Optimizer = Annotated[str | None, _field("optimizer", "sgd or adamw.")]
Patience = Annotated[int | None, _field("patience", "End a stage after so many epochs without improvement.", min=1)]
ValEvery = Annotated[int | None, _field("val_every", "Validate every so many epochs.", min=1)]
Precision = Annotated[str | None, _field("precision", "auto, fp32, bf16 or fp16. auto: bf16 where a GPU has it.")]
Workers = Annotated[int | None, _field("workers", "Processes that read images; 0: the training's own.", min=0)]
Seed = Annotated[int | None, _field("seed", "Of everything that is drawn at random.")]
Device = Annotated[str | None, _field("device", "auto, cpu, cuda, cuda:1 or mps. auto: an accelerator if any.")]
NoAugment = Annotated[
    bool, typer.Option("--no-augment", help="Images as they are: no mosaic, mirror, scale, shift or colour.")
]
Config = Annotated[
    Path | None,
    typer.Option("--config", help="A file (.yaml) of these and finer options (gains, augment, …); those here win."),
]
Out = Annotated[
    Path | None, typer.Option("--out", help="The run's folder.", show_default="the next free of runs/train, train2, …")
]
Features = Annotated[
    Path | None,
    typer.Option(
        "--features",
        help="A store made by mtyolo extract, in place of running the extractor; its image size holds. Beside "
        "--resume: where it is now.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Try some steps of each stage, say how long all would take, and leave no run."),
]
Resume = Annotated[
    Path | None, typer.Option("--resume", help="The folder of a run to go on with, which knows model, data, options.")
]


def train(
    context: typer.Context,
    model: Model = None,
    data: Data = None,
    plan: Plan = None,
    freeze_det: FreezeDet = False,
    freeze_epochs: FreezeEpochs = None,
    epochs: Epochs = None,
    imgsz: ImageSize = None,
    batch: Batch = None,
    accumulate: Accumulate = None,
    lr: Rate = None,
    optimizer: Optimizer = None,
    patience: Patience = None,
    val_every: ValEvery = None,
    precision: Precision = None,
    workers: Workers = None,
    seed: Seed = None,
    device: Device = None,
    no_augment: NoAugment = False,
    config: Config = None,
    weights: options.Weights = None,
    trust: options.Trust = False,
    features: Features = None,
    out: Out = None,
    resume: Resume = None,
    dry_run: DryRun = False,
) -> None:
    if dry_run and resume is not None:
        raise typer.BadParameter("--dry-run is for a new run; a resumed one says what is left when it goes on")
    if freeze_det and plan is not None:
        raise typer.BadParameter(f"--freeze-det is --plan {FREEZE_DETECTOR}; give one of the two")
    if resume is None and (model is None or data is None):
        raise typer.BadParameter("a new run needs --model and --data; --resume FOLDER goes on with one")
    given = {name: value for name, value in context.params.items() if name in TrainConfig.model_fields}
    automatic = given["batch"] == AUTOMATIC
    if automatic and plan is not None:
        refuse_what_is_not_measured(read_plan(plan))
    if resume is not None:
        others = {"plan": plan, "model": model, "weights": weights, "out": out, "config": config}
        switches = {"freeze_det": freeze_det, "no_augment": no_augment}
        named = [option for option, value in (given | others).items() if value is not None]
        for option in (*named, *(switch for switch, on in switches.items() if on)):
            say(f"--{option.replace('_', '-')} has no effect beside --resume: the run goes on as it began")
    settings = _settings(config, given | {"batch": None} if automatic else given, no_augment)

    from accelerate.utils import set_seed

    from mtyolo.api import train as run_training
    from mtyolo.opening import open_model
    from mtyolo.training.processes import is_first
    from mtyolo.training.settings import with_known_size

    set_seed(settings.seed)  # also of what the model file leaves to chance: fresh adapters and branches
    opened = None
    if model is not None and resume is None:
        opened = open_model(model, data=data, weights=weights, features=features, trust=trust)
    if automatic and opened is not None:
        settings = with_known_size(settings, opened, features)
        settings = settings.model_copy(update={"batch": measured_batch(opened, settings)})
    chosen = plan
    if opened is not None:
        chosen = freezing_plan(weights or model, opened, features) if freeze_det else plan
        say_without_effect(given | {"no_augment": no_augment}, chosen, opened)
        if features is None:
            say_of_chance(opened, weights or model, chosen)
    if dry_run and opened is not None and data is not None:
        own = {"trust": trust}
        say_rehearsal(opened, data, plan=chosen, config=settings, features=features, own=own, out=out)
        return
    begins: dict[str, Any] = {} if resume is not None else {"plan": chosen, "config": settings, "out": out}
    run = run_training(opened, data, **begins, resume=resume, features=features, trust=trust)
    if is_first():
        say(f"weights to use: {run.best}, results: {run.out / 'results.csv'}")


def freezing_plan(path: Path | None, model: Any, features: Path | None) -> str:
    """What --freeze-det means: weights that mtyolo wrote have adapters that know their work, a model file has not.

    path: of these, or of the model file. model: what was opened. features: a store, which aligns if it has what the
    replaced layers gave.
    """
    if path is None or Path(path).suffix != ".safetensors":
        if path is not None and model.config.detector.weights is None:
            say(
                f"warning: --freeze-det: the detector of {path} has no weights, and frozen it stays as random as it "
                "is; name an official checkpoint, --weights yolov5n.pt, or leave --freeze-det out"
            )
        return FREEZE_DETECTOR
    from mtyolo.features.manifest import REPLACED
    from mtyolo.original_layers import follows_official

    aligns = features is None or (features / REPLACED).is_dir()
    return ALIGN_REFINE if aligns and follows_official(model) else REFINE


def say_without_effect(given: dict[str, Any], plan: str | None, model: Any) -> None:
    """Options that every stage of the plan overrules would otherwise be ignored in silence."""
    from mtyolo.training.settings import default_plan

    name = plan or default_plan(model)
    stages = read_plan(name).stages
    for option in ("lr", "optimizer"):
        if given[option] is not None and all(getattr(stage, option) is not None for stage in stages):
            say(f"--{option} has no effect: each stage of the plan {name} names its own; copy the plan to change it")
    if given.get("no_augment") and (
        own := [stage.name for stage in stages if isinstance(stage.augment, AugmentConfig)]
    ):
        say(f"--no-augment has no effect on {', '.join(own)}, where the plan {name} says how pictures vary; copy it")
    fixed = [stage.epochs for stage in stages if stage.epochs is not None]
    if given.get("epochs") is not None and len(fixed) == len(stages):
        say(f"--epochs has no effect: each stage of the plan {name} names its own, {sum(fixed)} in all")


def _settings(file: Path | None, given: dict[str, Any], no_augment: bool) -> TrainConfig:
    """Options of the file, and over them those of the command line."""
    document = read_yaml(file) if file is not None else Document(Path("command line"), {}, {})
    if file is not None:
        validate(TrainConfig, document)
    chosen = {name: value for name, value in given.items() if value is not None}
    if no_augment:
        chosen["augment"] = dict.fromkeys(AugmentConfig.model_fields, 0.0)
    return validate(TrainConfig, Document(Path("command line"), (document.content or {}) | chosen, {}))
