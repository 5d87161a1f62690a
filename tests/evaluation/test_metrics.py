from __future__ import annotations

import json
import math

import pytest
from rich.console import Console

from mtyolo.evaluation.metrics import Metrics, TaskMetrics

NAN = math.nan


def metrics() -> Metrics:
    return Metrics(
        {
            "detect": TaskMetrics(0.3, 0.5, 0.25, images=40, objects=337, per_class={"person": 0.4}),
            "segment": TaskMetrics(0.1, 0.2, 0.05, images=40, objects=337),
            "keypoint": TaskMetrics(NAN, NAN, NAN, images=2, objects=0),
        },
        {"preprocess": 0.001, "forward": 0.02, "postprocess": 0.003},
    )


def test_fitness_is_the_mean_over_tasks_that_had_something_to_find():
    assert metrics().fitness == pytest.approx(0.2)
    assert math.isnan(Metrics({"keypoint": metrics().tasks["keypoint"]}).fitness)


def test_the_dictionary_survives_strict_json():
    values = json.loads(json.dumps(metrics().as_dict(), allow_nan=False))
    assert values["detect/AP"] == 0.3
    assert (values["segment/AP50"], values["segment/AP75"]) == (0.2, 0.05)
    assert values["keypoint/AP"] is None
    assert values["keypoint/OKS"] is None
    assert "detect/OKS" not in values
    assert (values["detect/images"], values["detect/objects"]) == (40, 337)
    assert values["seconds/forward"] == 0.02
    assert values["fitness"] == pytest.approx(0.2)


def test_the_table_shows_numbers_and_leaves_unknown_ones_open():
    console = Console(width=100)
    with console.capture() as capture:
        console.print(metrics().table())
    rows = {line.split("│")[1].strip(): line for line in capture.get().splitlines() if line.startswith("│")}
    assert [part.strip() for part in rows["detect"].split("│")[1:-1]] == [
        "detect",
        "40",
        "337",
        "0.300",
        "0.500",
        "0.250",
        "",
    ]
    assert [part.strip() for part in rows["keypoint"].split("│")[4:-1]] == ["-", "-", "-", "-"]
    assert metrics().table().caption == "an image: preprocess 1.0 ms · forward 20.0 ms · postprocess 3.0 ms"
    boxes = Metrics({"detect": metrics().tasks["detect"]}).table()
    assert [column.header for column in boxes.columns] == ["task", "images", "objects", "AP", "AP50", "AP75"]


def test_a_notebook_shows_a_line():
    assert repr(metrics()) == "Metrics(detect AP 0.300, segment AP 0.100, keypoint AP -)"


def test_few_classes_are_shown_one_by_one_and_many_are_not():
    found = metrics()
    found.tasks["segment"].per_class = {"person": 0.125, "[red]": 0.5}
    console = Console(width=100)
    with console.capture() as capture:
        console.print(found.class_table())
    rows = [line.strip("│").split("│") for line in capture.get().splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row] for row in rows] == [
        ["person", "0.400", "0.125", "-"],
        ["[red]", "-", "0.500", "-"],
    ]
    found.tasks["detect"].per_class = {str(number): 0.5 for number in range(18)}
    assert found.class_table() is not None
    found.tasks["detect"].per_class["18"] = 0.5
    assert found.class_table() is None
    assert Metrics({"keypoint": metrics().tasks["keypoint"]}).class_table() is None
