"""What a stage trains, and that all else stands still."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from mtyolo.assembly import build
from mtyolo.config.model import shipped_configs
from mtyolo.config.plan import PlanConfig, StageConfig, read_plan
from mtyolo.config.training import TrainConfig, read_config
from mtyolo.errors import ConfigError
from mtyolo.model import Model
from mtyolo.training.objectives.tasks import TasksObjective
from mtyolo.training.records.checkpoints import Position
from mtyolo.training.stages import freeze, lr_scales, plan_stages, stage_epochs, what_is_left
from mtyolo.training.train import train

MakeModel = Callable[[], Model]


def plan_of(*stages: dict[str, Any]) -> PlanConfig:
    return read_plan({"stages": [{"name": str(number)} | stage for number, stage in enumerate(stages)]})


def moved(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {name for name in before if not torch.equal(before[name], after[name])}


def inside(prefixes: tuple[str, ...], names: set[str]) -> set[str]:
    return {name for name in names if name.startswith(prefixes)}


DETECTOR = ("graph.", "branches.detect.")

WHAT_MOVES: dict[str, list[tuple[str, ...]]] = {
    "freeze-then-unfreeze": [("branches.segment.", "branches.keypoint."), ("",)],
    "refine": [("branches.segment.", "branches.keypoint."), ("",)],
    "one-task-then-joint": [("branches.detect.",), ("branches.segment.",), ("branches.keypoint.",), ("",)],
    "head-first": [("branches.",), ("",)],
    "new-classes": [("branches.",), ("",)],
    "all-at-once": [("",)],
    "demo": [("",)],
    "gradual-unfreeze": [
        ("branches.",),
        ("branches.", *(f"graph.layers.{number}." for number in (17, 18, 20, 21, 23))),
        ("branches.", *(f"graph.layers.{number}." for number in (10, 13, 14, 17, 18, 20, 21, 23))),
        ("",),
    ],
}
"""Plan -> for each stage, what moves in a model without extractor."""


def test_every_shipped_plan_is_tested() -> None:
    shipped = {path.stem for path in (shipped_configs() / "plans").glob("*.yaml")}
    shipped -= {name for name in shipped if name.startswith("distill-")}  # tests/distill
    shipped -= {name for name in shipped if name.startswith("align")}  # test_alignment.py
    assert shipped == set(WHAT_MOVES)


def distinctly(stage: StageConfig) -> StageConfig:
    """The same parts for an epoch, at rates under which no movement is lost in rounding, as that of a norm at 1.0 is
    under a ten-thousandth."""
    scales = {part: factor and max(factor, 0.1) for part, factor in stage.lr_scale.items()}
    return stage.model_copy(update={"epochs": 1, "optimizer": "adamw", "lr": 0.004, "lr_scale": scales})


@pytest.mark.parametrize("name", sorted(WHAT_MOVES))
def test_in_each_stage_of_a_plan_all_that_it_names_moves_and_nothing_else(
    name: str, make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    """Every single weight: no parameter of this model has a gradient of zero."""
    plan = read_plan(name)
    model = make_model()
    weights = {key for key, _ in model.named_parameters()}
    statistics = {key for key, _ in model.named_buffers()} - {"branches.detect.anchors"}
    expected = WHAT_MOVES[name]
    assert len(plan.stages) == len(expected)
    for number, (stage, prefixes) in enumerate(zip(plan.stages, expected, strict=True)):
        before = {key: value.clone() for key, value in model.state_dict().items()}
        single = plan.model_copy(update={"stages": [distinctly(stage)]})
        train(model, shapes, plan=single, config=config, out=tmp_path / str(number), progress=False)
        changed = moved(before, model.state_dict())
        movable = weights if stage.norms == "frozen" else weights | statistics
        assert changed - inside(prefixes, movable) == set(), f"stage {stage.name}: moved what it should not"
        assert inside(prefixes, movable) - changed == set(), f"stage {stage.name}: did not move"


def test_frozen_detector_is_bit_identical_with_its_statistics_and_average(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items() if name.startswith(DETECTOR)}
    plan = plan_of({"freeze": ["detector"], "epochs": 3, "optimizer": "adamw"})
    run = train(model, shapes, plan=plan, config=config, out=tmp_path, progress=False)
    state = torch.load(run.out / "state.pt", weights_only=True)
    for name, value in before.items():
        assert torch.equal(state["model"][name], value), name
        assert torch.equal(state["ema"][f"module.{name}"], value), name
    assert "running_var" in " ".join(before), "BatchNorm statistics are among them"


def test_the_average_does_not_follow_what_a_later_stage_freezes(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    plan = plan_of({"epochs": 1, "lr": 0.1}, {"epochs": 2, "freeze": ["detector"]})
    run = train(make_model(), shapes, plan=plan, config=config, out=tmp_path, progress=False)
    state = torch.load(run.out / "state.pt", weights_only=True)
    for name, value in state["model"].items():
        if name.startswith(DETECTOR):
            assert torch.equal(state["ema"][f"module.{name}"], value), name


def test_no_gradient_is_computed_below_the_lowest_trained_part(make_model: MakeModel, shapes: Path) -> None:
    from mtyolo.data.dataset import Dataset
    from mtyolo.data.loader import make_loader
    from mtyolo.data.split import load_split

    model = make_model()
    (stage,) = plan_stages(plan_of({"train": ["segment", "detector.neck"]}), TrainConfig(), model)
    freeze(model, stage)
    split = load_split(shapes, "train")
    batch = next(iter(make_loader(Dataset(split, 64), 2, shuffle=False, workers=0, seed=0)))
    seen: list[Tensor] = []
    hook = model.graph.layers["9"].register_forward_hook(lambda module, inputs, output: seen.append(output))
    losses = TasksObjective(("detect", "segment"), TrainConfig().gains)(model, batch)
    hook.remove()
    assert not seen[0].requires_grad, "the backbone's output is no part of the graph of gradients"
    torch.stack(list(losses.tasks.values())).sum().backward()
    assert all(parameter.grad is None for parameter in model.graph.layers["9"].parameters())
    assert all(parameter.grad is None for parameter in model.branches["detect"].parameters())
    assert all(parameter.grad is not None for parameter in model.graph.layers["13"].parameters())


def test_frozen_norms_keep_their_statistics_while_their_weights_train(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, shapes, plan=plan_of({"norms": "frozen"}), config=config, out=tmp_path, progress=False)
    changed = moved(before, model.state_dict())
    assert not [name for name in changed if "running" in name]
    assert "graph.layers.0.conv.weight" in changed


def test_norms_of_named_parts_keep_their_statistics(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    model = make_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, shapes, plan=plan_of({"norms": ["detector"]}), config=config, out=tmp_path, progress=False)
    statistics = [name for name in moved(before, model.state_dict()) if "running" in name]
    assert statistics
    assert all(name.startswith(("branches.segment.", "branches.keypoint.")) for name in statistics)
    with pytest.raises(ConfigError, match=r"plan: stage '0': norms: .*neckk"):
        plan_stages(plan_of({"norms": ["detector.neckk"]}), TrainConfig(), model)


@pytest.mark.parametrize("epochs", range(2, 12))
def test_shares_of_a_whole_run_add_up_to_its_epochs(epochs: int) -> None:
    halves = stage_epochs(plan_of({"share": 0.5}, {"share": 0.5}), TrainConfig(epochs=epochs))
    assert sum(halves) == epochs
    assert abs(halves[0] - halves[1]) <= 1


def test_shares_of_more_than_a_whole_run_are_refused_and_runs_that_began_with_them_go_on(tmp_path: Path) -> None:
    stages = [{"name": "one", "share": 0.8}, {"name": "two", "share": 0.8}]
    with pytest.raises(ConfigError, match=r"plan: the shares of one, two add up to 1\.6, and 1 is the whole run"):
        read_plan(stages)
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"stages": stages}))
    with pytest.raises(ConfigError, match=r"p\.yaml: the shares of one, two add up to 1\.6"):
        read_plan(tmp_path / "p.yaml")
    begun = PlanConfig.model_validate({"stages": stages})  # as a state has it
    assert stage_epochs(begun, TrainConfig(epochs=3)) == [2, 3]
    with pytest.raises(ConfigError, match=r"add up to 1\.6"):
        read_plan(begun)
    own = {"name": "middle", "model": "yolov5s.yaml", "stages": stages}
    teacher = {"teachers": [{"weights": "middle", "output": {"kl": 1}}]}
    with pytest.raises(ConfigError, match=r"plan: assistant 'middle': the shares of one, two add up to 1\.6"):
        read_plan({"stages": [{"name": "last", "distill": teacher}], "assistants": [own]})
    thirds = [{"name": name, "share": 0.334} for name in "abc"]
    assert len(read_plan([*thirds, {"name": "d", "share": 0.9, "epochs": 2}]).stages) == 4


def test_epochs_are_given_or_shared_and_the_rest_is_split() -> None:
    plan = plan_of({"epochs": 5}, {"share": 0.2}, {}, {})
    assert stage_epochs(plan, TrainConfig(epochs=20)) == [5, 4, 5, 6]
    assert stage_epochs(plan, TrainConfig(epochs=20, freeze_epochs=2)) == [2, 4, 7, 7]
    assert stage_epochs(plan, TrainConfig(epochs=3)) == [5, 1, 1, 1], "each stage has at least one"


@pytest.mark.parametrize(
    ("stages", "first", "epochs"), [([{}], 5, 1), ([{}, {}], 5, 5), ([{}, {"share": 0.5}, {}], 4, 5), ([{}, {}], 6, 5)]
)
def test_a_first_stage_that_leaves_nothing_to_the_others_is_refused(
    stages: list[dict[str, Any]], first: int, epochs: int
) -> None:
    with pytest.raises(ConfigError, match=rf"freeze_epochs: {first} are the first stage's.* but the run has {epochs}"):
        stage_epochs(plan_of(*stages), TrainConfig(epochs=epochs, freeze_epochs=first))


@pytest.mark.parametrize("stages", [[{}], [{}, {"epochs": 3}]])
def test_a_first_stage_may_have_all_that_no_other_asks_for(stages: list[dict[str, Any]]) -> None:
    assert stage_epochs(plan_of(*stages), TrainConfig(epochs=4, freeze_epochs=4))[0] == 4


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ({"train": ["detecter"]}, "plan: stage '0': train: this model has no part 'detecter'; did you mean 'detector'"),
        ({"freeze": ["detector.99"]}, "plan: stage '0': freeze: this model has no part 'detector.99'"),
        ({"lr_scale": {"bakbone": 0.1}}, "stage '0': lr_scale: this model has no part 'bakbone'"),
        ({"norms": ["neck"]}, "stage '0': norms: this model has no part 'neck'"),
        ({"train": ["adapters"]}, "stage '0' trains nothing: the model has none of adapters that is not frozen"),
        (
            {"freeze": ["detector", "segment", "keypoint"]},
            "stage '0' trains nothing: the model has nothing that is not",
        ),
        ({"train": []}, "stage '0' trains nothing: the model has nothing that is not"),
    ],
)
def test_a_part_that_is_not_there_is_named(
    stage: dict[str, Any], message: str, make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train(make_model(), shapes, plan=plan_of(stage), config=config, out=tmp_path, progress=False)


def test_layers_that_features_replace_have_nothing_to_freeze() -> None:
    """As in distill-features, which freezes the first blocks of the backbone."""
    extractor = {"name": "features", "levels": {8: 4, 16: 4, 32: 4}}
    model = build({"extractor": extractor, "detector": {"graph": "yolov5n.yaml"}})
    first = plan_stages(read_plan("distill-features"), TrainConfig(), model)[0]
    assert all(first.trains(key) for key, _ in model.named_parameters())
    with pytest.raises(ConfigError, match=r"plan: stage '0': freeze: this model has no part 'detector\.25'"):
        plan_stages(plan_of({"freeze": ["detector.25"]}), TrainConfig(), model)
    with pytest.raises(ConfigError, match=r"plan: stage '0': train: this model has no part 'detector\.2'"):
        plan_stages(plan_of({"train": ["detector.2"]}), TrainConfig(), model)


@pytest.mark.parametrize("order", [1, -1])
def test_the_innermost_part_decides_the_learning_rate(order: int, make_model: MakeModel) -> None:
    model = make_model()
    scale = dict([("detector", 0.1), ("detector.17", 0.5), ("detect", 0.2), ("segment", 2.0)][::order])
    (stage,) = plan_stages(plan_of({"lr_scale": scale}), TrainConfig(), model)
    freeze(model, stage)
    scales = lr_scales(model, stage)
    assert scales["graph.layers.0.conv.weight"] == 0.1
    assert scales["graph.layers.17.cv1.conv.weight"] == 0.5
    assert {value for name, value in scales.items() if name.startswith("branches.detect")} == {0.2}
    assert {value for name, value in scales.items() if name.startswith("branches.segment")} == {2.0}
    assert {value for name, value in scales.items() if name.startswith("branches.keypoint")} == {1.0}


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("task_weights: {detect: .inf}\nstages: [{name: one}]\n", "task_weights.detect"),
        ("stages:\n- {name: one, lr: .inf}\n", "stages.0.lr"),
        ("stages:\n- {name: one, align: .nan}\n", "stages.0.align"),
        ("stages:\n- {name: one, lr_scale: {detector: .inf}}\n", "stages.0.lr_scale.detector"),
        ("stages:\n- {name: one, distill: {soft: .inf, teachers: [{weights: a, output: {mse: 1}}]}}\n", "distill.soft"),
    ],
)
def test_a_number_without_end_is_named_with_its_line(content: str, key: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(content)
    with pytest.raises(ConfigError, match=rf"plan\.yaml:\d: .*{key}: Input should be .*, got (inf|nan)"):
        read_plan(tmp_path / "plan.yaml")


def test_options_of_align_are_refused_where_nothing_is_aligned() -> None:
    with pytest.raises(ConfigError, match=r"fused is an option of align, and stage '0' does not align"):
        plan_of({"arguments": {"fused": 1.0}})
    plan_of({"arguments": {"fused": 1.0}, "align": 2.0})


def test_an_unknown_plan_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="no such plan here or in mtyolo; did you mean 'freeze-then-unfreeze'"):
        read_plan("freeze-then-unfreze")


@pytest.mark.parametrize("wrong", [5, True, {1, 2}, 0.5])
def test_what_is_no_plan_at_all_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError, match=r"plan: expected a file, the name of a plan of mtyolo, or a list of stages"):
        read_plan(wrong)


def test_a_name_too_long_for_a_file_is_no_plan() -> None:
    with pytest.raises(ConfigError, match="no such plan here or in mtyolo"):
        read_plan("x" * 5000)


def test_momentum_forgets() -> None:
    with pytest.raises(ConfigError, match="momentum: Input should be less than 1"):
        read_config({"momentum": 1, "optimizer": "adamw"})


@pytest.mark.parametrize(
    ("position", "words"),
    [
        (Position(), "goes on with epoch 1, stage 0"),
        (Position(stage=1, epoch=1, batch=3), "goes on with epoch 4, stage 1, after 3 of its batches"),
        (Position(stage=0, epoch=2), "goes on with epoch 3, stage 1"),
        (Position(stage=1, epoch=2), "nothing is left to do"),
        (Position(stage=2), "nothing is left to do"),
    ],
)
def test_a_resumed_run_says_what_comes_next(
    position: Position, words: str, make_model: MakeModel, config: TrainConfig
) -> None:
    stages = plan_stages(plan_of({"epochs": 2}, {"epochs": 2}), config, make_model())
    assert what_is_left(position, stages).startswith(words)


@pytest.mark.parametrize("name", ["", "../x", "[/]", "one\n", "one\ntwo", " one", ".", "a" * 51])
def test_a_stage_whose_name_is_none_of_a_file_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"plan: stages\.0\.name: stages are called by at most 50 letters"):
        plan_of({"name": name})


@pytest.mark.parametrize("name", ["1", "heads_only-2", "Schritt 1.5", "köpfe", "a" * 50])
def test_a_stage_may_be_called_as_people_call_it(name: str) -> None:
    assert plan_of({"name": name}).stages[0].name == name
