"""The pieces of a step: losses that are left out, batches that are skipped, rates, averages, order of batches."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from accelerate import Accelerator
from one_step import steps_of
from torchjd.aggregation import Sum

from mtyolo.api import build
from mtyolo.balance import AGGREGATORS, make_balancer
from mtyolo.balance.gradient import GradientBalancer
from mtyolo.config.plan import read_plan
from mtyolo.config.training import LossGains, TrainConfig
from mtyolo.data.dataset import Dataset
from mtyolo.data.loader import make_loader
from mtyolo.data.split import load_split
from mtyolo.errors import ConfigError
from mtyolo.model import Model, forward
from mtyolo.structures import Batch
from mtyolo.training.batches.batch_size import largest_batch
from mtyolo.training.batches.loading import StageLoader
from mtyolo.training.batches.splits import open_splits
from mtyolo.training.ema import Ema
from mtyolo.training.objectives.tasks import TasksObjective, losses
from mtyolo.training.optimizer import make_optimizer, set_rates
from mtyolo.training.stages import freeze, plan_stages
from mtyolo.training.train import train
from mtyolo.training.work import make_work

MakeModel = Callable[[], Model]


def first_batch(shapes: Path, size: int = 3) -> Batch:
    split = load_split(shapes, "train")
    return next(iter(make_loader(Dataset(split, 64), size, shuffle=False, workers=0, seed=0)))


def test_a_task_without_a_labelled_image_is_left_out_and_not_zero(make_model: MakeModel, shapes: Path) -> None:
    batch = first_batch(shapes)
    batch.targets.labelled["segment"][:] = False
    found = TasksObjective(("detect", "segment", "keypoint"), LossGains())(make_model(), batch)
    assert list(found.tasks) == ["detect", "keypoint"]
    assert not [name for name in found.components if name.startswith("segment")]


def test_losses_for_an_own_loop_are_those_of_training(make_model: MakeModel, shapes: Path) -> None:
    model, batch = make_model().eval(), first_batch(shapes)
    found = losses(model, forward(model, batch), batch.targets)
    expected = TasksObjective(model.tasks, LossGains())(model, batch)
    assert found.components.keys() == expected.components.keys()
    assert len(repr(found)) < 1500, "without the features"
    for name, value in expected.components.items():
        assert torch.equal(found.components[name], value), name


def test_targets_that_do_not_say_what_is_labelled_count_for_all_tasks(make_model: MakeModel, shapes: Path) -> None:
    model, batch = make_model().eval(), first_batch(shapes)
    outputs = forward(model, batch)
    expected = losses(model, outputs, batch.targets)
    batch.targets.labelled = {}
    found = losses(model, outputs, batch.targets)
    assert list(found.tasks) == ["detect", "segment", "keypoint"]
    assert all(torch.equal(found.tasks[task], value) for task, value in expected.tasks.items())
    with pytest.raises(ConfigError, match="the model has no task 'pose'; it has detect, segment, keypoint"):
        losses(model, outputs, batch.targets, tasks=["pose"])


def test_a_task_is_the_sum_of_its_components(make_model: MakeModel, shapes: Path) -> None:
    found = TasksObjective(("detect",), LossGains())(make_model(), first_batch(shapes))
    assert set(found.components) == {"detect.box", "detect.objectness", "detect.class"}
    components = [value.item() for value in found.components.values()]
    assert found.tasks["detect"].item() == pytest.approx(sum(components), rel=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_gradients_that_are_summed_task_by_task_are_those_of_the_sum(
    precision: str, make_model: MakeModel, shapes: Path
) -> None:
    """Through a whole network, whose coarse features are made from the fine ones: no way is missed or counted twice."""
    model, tasks, batch = make_model().eval(), ("detect", "segment", "keypoint"), first_batch(shapes)
    gradients = []
    for balancer in (make_balancer("fixed", tasks), GradientBalancer(Sum(), {})):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = TasksObjective(tasks, LossGains())(model, batch)
        balancer.backward(losses.tasks, losses.shared, 2.0)
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    tolerance = 1e-5 if precision == "fp32" else 0.05
    for name, expected in gradients[0].items():
        found = gradients[1][name]
        assert found is not None, name
        assert expected is not None, name
        assert (found - expected).norm() <= tolerance * expected.norm() + 1e-7, name


@pytest.mark.parametrize("word", sorted(AGGREGATORS))
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_aggregator_steps_a_whole_network(precision: str, word: str, make_model: MakeModel, shapes: Path) -> None:
    model, tasks = make_model(), ("detect", "segment", "keypoint")
    try:
        balancer = make_balancer(word, tasks)
    except ConfigError as error:
        pytest.skip(str(error))
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = TasksObjective(tasks, LossGains())(model, first_batch(shapes))
        balancer.backward(losses.tasks, losses.shared, 1.0)
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_norms_and_biases_do_not_decay(make_model: MakeModel) -> None:
    model = make_model()
    scales = dict.fromkeys((name for name, _ in model.named_parameters()), 1.0)
    optimizer = make_optimizer(model, scales, TrainConfig(weight_decay=0.1), "sgd")
    decay = {id(one): group["weight_decay"] for group in optimizer.param_groups for one in group["params"]}
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert decay[id(module.weight)] == decay[id(module.bias)] == 0
        if isinstance(module, torch.nn.Conv2d):
            assert decay[id(module.weight)] == 0.1
            assert module.bias is None or decay[id(module.bias)] == 0


def test_a_stage_may_decay_in_its_own_way(make_model: MakeModel, shapes: Path) -> None:
    model, config = make_model(), TrainConfig(imgsz=64, workers=0, device="cpu")
    plan = read_plan({"stages": [{"name": "own", "weight_decay": 0.3}, {"name": "default"}]})
    for stage, expected in zip(plan_stages(plan, config, model), (0.3, config.weight_decay), strict=True):
        freeze(model, stage)
        split = load_split(shapes, "train")
        work = make_work(stage, model, split, plan=plan, config=config, store=None, accelerator=Accelerator(cpu=True))
        assert {group["weight_decay"] for group in work.optimizer.param_groups} == {0.0, expected}


def test_the_rate_warms_up_and_follows_a_cosine_to_its_end() -> None:
    parameter = torch.nn.Parameter(torch.zeros(2, 2))
    config = TrainConfig(lr=0.1, final_lr=0.01, momentum=0.9)
    optimizer = torch.optim.SGD([{"params": [parameter], "scale": 0.5}], lr=0.1, momentum=0.9)
    rates = [set_rates(optimizer, step, 100, 10, 0.1, config) for step in range(101)]
    assert rates[0] < 0.01
    assert max(rates) == rates[10] == pytest.approx(0.1 * (0.01 + 0.99 * (1 + math.cos(math.pi * 0.1)) / 2))
    assert rates[50] == pytest.approx(0.1 * (0.01 + 0.99 / 2))
    assert rates[100] == pytest.approx(0.001)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.0005), "half, as the group's scale says"
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_momentum_warms_up_with_the_rate() -> None:
    parameter, config = torch.nn.Parameter(torch.zeros(2, 2)), TrainConfig(momentum=0.9)
    sgd = torch.optim.SGD([{"params": [parameter], "scale": 1.0}], lr=0.1, momentum=0.9)
    adamw = torch.optim.AdamW([{"params": [parameter], "scale": 1.0}], lr=0.1, betas=(0.9, 0.999))
    for step, expected in ((0, 0.8), (5, 0.85), (10, 0.9), (99, 0.9)):
        for optimizer in (sgd, adamw):
            set_rates(optimizer, step, 100, 10, 0.1, config)
        assert sgd.param_groups[0]["momentum"] == pytest.approx(expected)
        assert adamw.param_groups[0]["betas"] == pytest.approx((expected, 0.999))


@pytest.mark.parametrize(("accumulate", "steps", "warmup"), [(1, 3, 1), (2, 2, 1), (3, 1, 0)])
def test_a_short_stage_warms_up_for_a_third_of_its_steps(
    accumulate: int, steps: int, warmup: int, make_model: MakeModel, shapes: Path, tmp_path: Path
) -> None:
    """Ten pictures, four to a batch; the last step may have fewer batches than the others."""
    work = steps_of(make_model(), shapes, tmp_path, accumulate=accumulate).work
    assert (len(work.loader), work.steps_per_epoch, work.steps, work.warmup) == (3, steps, steps, warmup)


def test_dwa_hears_of_epochs(make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path) -> None:
    plan, config = {"balance": "dwa", "stages": [{"name": "one"}]}, config.model_copy(update={"epochs": 3})
    rows = train(make_model(), shapes, plan=plan, config=config, out=tmp_path, progress=False).results
    weights = [[row[f"weight/{task}"] for task in ("detect", "segment", "keypoint")] for row in rows]
    assert weights[0] == weights[1] == [1, 1, 1]
    assert weights[2] != weights[1]


def test_the_average_reaches_over_a_share_of_the_steps_until_its_decay_is_reached(make_model: MakeModel) -> None:
    model = make_model()
    ema, name = Ema(model, 0.2), "branches.detect.layers.0.bias"
    parameter = model.get_parameter(name)
    expected = parameter.detach().clone()
    for decay in (1 / 10, 2 / 11, 0.2):
        with torch.no_grad():
            parameter.add_(1.0)
        ema.update_parameters(model)
        expected = decay * expected + (1 - decay) * parameter.detach()
    assert torch.allclose(ema.model.get_parameter(name), expected, atol=1e-6)
    still = "graph.layers.0.conv.weight"
    assert torch.equal(ema.model.get_parameter(still), model.get_parameter(still))


def test_the_average_follows_buffers_that_are_put_in_anothers_place(make_model: MakeModel) -> None:
    model = make_model()
    model.register_buffer("seen", torch.zeros(()))
    model.register_parameter("tied", model.get_parameter("graph.layers.0.conv.weight"))
    ema = Ema(model, 0.5)
    start, expected = model.tied.detach().clone(), 0.0
    for step in range(3):
        model.seen = model.seen + 1
        with torch.no_grad():
            model.tied.add_(1.0)
        ema.update_parameters(model)
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * (step + 1)
    assert float(ema.module.seen) == pytest.approx(expected)  # type: ignore[arg-type]
    assert torch.allclose(ema.model.tied, start + expected, atol=1e-5), "once in a step, though it has two names"


def test_batches_are_the_same_when_an_epoch_is_begun_in_its_middle(shapes: Path) -> None:
    def numbers(skip: int) -> list[list[int]]:
        dataset = Dataset(load_split(shapes, "train"), 64)
        loader = StageLoader(make_loader(dataset, 4, shuffle=True, workers=0, seed=3), 3, views=2)
        return [batch.indices.tolist() for batch in loader.epoch(5, skip)]

    whole = numbers(0)
    assert [len(batch) for batch in whole] == [4, 4, 2, 4, 4, 2]
    assert whole[:3] != whole[3:], "each pass has its own order"
    for skip in range(1, 6):
        assert numbers(skip) == whole[skip:]


def test_processes_share_each_batch(shapes: Path) -> None:
    def numbers(process: int, processes: int) -> list[list[int]]:
        dataset = Dataset(load_split(shapes, "train"), 64)
        inner = make_loader(dataset, 4, shuffle=True, workers=0, seed=0)
        loader = StageLoader(inner, 0, process=process, processes=processes)
        return [batch.indices.tolist() for batch in loader.epoch(0)]

    for whole, first, second in zip(numbers(0, 1), numbers(0, 2), numbers(1, 2), strict=True):
        assert sorted(first + second) == sorted(whole)


def test_random_states_are_not_moved_by_beginning_an_epoch(shapes: Path) -> None:
    dataset = Dataset(load_split(shapes, "train"), 64)
    loader = StageLoader(make_loader(dataset, 4, shuffle=True, workers=0, seed=0), 0)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    next(loader.epoch(0))
    assert torch.equal(before, torch.get_rng_state())


def test_a_stage_ends_early_when_its_fitness_stays(
    make_model: MakeModel, shapes: Path, config: TrainConfig, tmp_path: Path
) -> None:
    from mtyolo.training.records.judging import Judge

    class Always:
        fitness = 0.5

        def as_dict(self) -> dict[str, float]:
            return {"fitness": 0.5}

    patient = config.model_copy(update={"epochs": 9, "patience": 2})
    run = train(
        make_model(), shapes, config=patient, out=tmp_path, progress=False, judge=Judge(lambda *_, **__: Always())
    )
    assert [row["epoch"] for row in run.results] == [0, 1, 2, 3]


def test_the_data_must_be_that_of_the_model(make_model: MakeModel, tmp_path: Path, shapes: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(shapes.read_text().replace("1: disc", "1: disc\n  2: star"))
    (tmp_path / "train").symlink_to(shapes.parent / "train")
    for name in ("train.json", "val.json", "val"):
        (tmp_path / name).symlink_to(shapes.parent / name)
    with pytest.raises(ConfigError, match=r"the data has 3 classes, the model 2; 'star'"):
        train(make_model(), other, config=TrainConfig(epochs=1), out=tmp_path / "run", progress=False)


def test_classes_in_another_order_are_no_data_for_this_model(
    make_model: MakeModel, tmp_path: Path, shapes: Path
) -> None:
    swapped = {"path": str(shapes.parent), "names": {0: "disc", 1: "square"}}
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(yaml.safe_load(shapes.read_text()) | swapped))
    said = r"split train: 2 of 2 classes are called differently: 0 is 'disc' in the data and 'square' in the model"
    with pytest.raises(ConfigError, match=said):
        train(make_model(), other, config=TrainConfig(epochs=1), out=tmp_path / "run", progress=False)


def test_a_model_that_only_counts_its_classes_takes_their_names_as_they_come(
    make_model: MakeModel, shapes: Path
) -> None:
    whole = make_model().config
    model = build(whole.model_copy(update={"names": {0: "0", 1: "1"}}))
    train_split, _ = open_splits(shapes, model)
    assert train_split.names == {0: "square", 1: "disc"}


def test_the_largest_batch_is_read_off_a_straight_line() -> None:
    used = [100 + 50 * batch for batch in (1, 2, 4)]
    assert largest_batch((1, 2, 4), used, 100 + 50 * 37) == 36, "even"
    assert largest_batch((1, 2, 4), used, 120) == 1, "at least one"
    assert largest_batch((1, 2, 4), used, 1e9) == 256
