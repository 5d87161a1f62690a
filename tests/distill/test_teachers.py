"""Teachers of every kind in the student's layout."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_families import SMALL, family_file
from tiny_students import SIZE, tiny_model
from torch import Tensor

from mtyolo.assembly import build
from mtyolo.checkpoint import load, save_weights
from mtyolo.config.distill import TeacherConfig
from mtyolo.distill.classes import class_columns
from mtyolo.distill.layout import Cells, Layout, boxes_at, cells_of, choose_classes, from_scores, geometry, to_layout
from mtyolo.distill.teachers import open_teacher
from mtyolo.errors import CheckpointError, ConfigError
from mtyolo.graph.blocks import process_left_as_it_was
from mtyolo.graph.families import open_family
from mtyolo.model import Model
from mtyolo.tasks.maps import joined_rows
from mtyolo.tasks.select import select


def teacher_of(weights: object, **options: object) -> TeacherConfig:
    return TeacherConfig.model_validate({"weights": str(weights), "output": {"scaled": 1}} | options)


@pytest.fixture(scope="session")
def official(test_data: Path) -> Model:
    return load(test_data / "weights" / "yolov5n.pt")


def test_the_official_teacher_says_exactly_what_the_official_network_says(
    yolov5n: str, official: Model, pictures: Tensor
) -> None:
    images = pictures.float() / 255
    lesson = open_teacher(teacher_of(yolov5n), official, 320).lesson(images)
    rows = joined_rows(lesson.outputs.detect)
    assert rows.shape == (2, 6300, 85)
    with torch.no_grad():
        assert torch.equal(rows, joined_rows(official.eval()(images).detect))


def test_a_teacher_stays_in_evaluation_and_takes_no_gradient(yolov5n: str, official: Model, pictures: Tensor) -> None:
    teacher = open_teacher(teacher_of(yolov5n), official, 320)
    teacher.record([17])
    lesson = teacher.train().lesson(pictures.float() / 255)
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not lesson.outputs.detect[0].requires_grad
    assert not lesson.features[17].requires_grad


def test_boxes_survive_the_way_into_rows_and_back() -> None:
    layout = Layout((8,), torch.tensor([[[10.0, 13.0], [33.0, 23.0]]]))
    size, scale = (64, 64), 2.0
    raw = torch.randn(3, 2, 8, 8, 6, generator=torch.Generator().manual_seed(0)).clamp(-1, 2)
    (cells,) = cells_of([raw], layout, size)
    smaller = cells._replace(boxes=cells.boxes / scale)
    (back,) = to_layout({8: smaller}, layout, size, scale).detect
    fits = back[..., 4] > -8
    assert fits.all()
    assert torch.allclose(back[fits], raw[fits], atol=1e-3)


def test_an_anchor_free_box_is_taken_by_the_rows_that_can_express_it() -> None:
    """One box of 20 x 26 around the middle of cell (3, 2) at stride 8."""
    layout = Layout((8,), torch.tensor([[[10.0, 13.0], [16.0, 30.0], [116.0, 90.0]]]))
    boxes = torch.zeros(1, 1, 8, 8, 4)
    boxes[..., 2:] = 1.0
    scores = torch.zeros(1, 1, 8, 8, 2)
    for row, column in ((2, 3), (2, 4), (6, 6)):
        boxes[0, 0, row, column] = torch.tensor([28.0, 20.0, 20.0, 26.0])
        scores[0, 0, row, column] = torch.tensor([0.8, 0.2])
    (found,) = to_layout({8: from_scores(boxes, scores)}, layout, (64, 64), 1.0).detect
    believed = (found[..., 4].sigmoid() > 0.5).nonzero().tolist()
    # The next cell's centre is a whole cell away, out of its reach; the third anchor is more than four times as wide.
    assert believed == [[0, 0, 2, 3], [0, 1, 2, 3]]
    place = geometry(layout, (64, 64))
    rows = joined_rows([found])[0]
    number = 2 * 8 + 3
    box = boxes_at(rows[number : number + 1, :4], type(place)(*(part[number : number + 1] for part in place)))
    assert box[0].tolist() == pytest.approx([28, 20, 20, 26], abs=0.05)
    probabilities = rows[number, 4:].sigmoid()
    assert float(probabilities[0] * probabilities[1]) == pytest.approx(0.8, abs=1e-3)
    assert float(probabilities[0] * probabilities[2]) == pytest.approx(0.2, abs=1e-3)


def test_of_cells_that_fall_together_the_surest_counts() -> None:
    boxes = torch.full((1, 1, 4, 4, 4), 8.0)
    objectness = torch.zeros(1, 1, 4, 4)
    objectness[0, 0, 3, 2], objectness[0, 0, 2, 2] = 0.9, 0.6
    boxes[0, 0, 3, 2] = torch.tensor([44.0, 52.0, 24.0, 24.0])
    cells = Cells(boxes, objectness, torch.full((1, 1, 4, 4, 1), 0.7))
    layout = Layout((16,), torch.tensor([[[12.0, 12.0]]]))
    (found,) = to_layout({16: cells}, layout, (32, 32), 0.5).detect
    assert found.shape == (1, 1, 2, 2, 6)
    assert float(found[0, 0, 1, 1, 4].sigmoid()) == pytest.approx(0.9, abs=1e-4)
    # 22, 26 in the student's pixels; the cell's centre is 24, 24.
    assert (found[0, 0, 1, 1, :2].sigmoid() * 2 - 1).mul(16).tolist() == pytest.approx([-2.0, 2.0], abs=1e-3)


def test_classes_are_reordered_by_name(yolov5n: str, official: Model, pictures: Tensor) -> None:
    images, names = pictures.float() / 255, official.names
    student = tiny_model({number: names[79 - number] for number in range(80)})
    student.branches["detect"].anchors.copy_(official.anchors)
    found = open_teacher(teacher_of(yolov5n), student, 320).lesson(images).outputs.detect[2]
    with torch.no_grad():
        expected = official.eval()(images).detect[2]
    assert torch.equal(found[..., 5:], expected[..., 5:].flip(-1))
    assert torch.equal(found[..., :5], expected[..., :5])


def test_to_a_student_of_some_classes_all_others_are_background() -> None:
    boxes, objectness = torch.zeros(1, 1, 1, 1, 4), torch.full((1, 1, 1, 1), 0.8)
    classes = torch.tensor([0.9, 0.05, 0.5]).view(1, 1, 1, 1, 3)
    found = choose_classes(Cells(boxes, objectness, classes), [2, 1])
    score = found.objectness[..., None] * found.classes
    assert float(found.objectness) == pytest.approx(0.4)
    assert score.flatten().tolist() == pytest.approx([0.4, 0.04])


@pytest.mark.parametrize(
    ("options", "student", "message"),
    [
        ({}, {0: "person", 1: "dgo"}, r"does not know 1 of 2 classes, first 'dgo'; did you mean 'dog'\?"),
        ({"classes": {"persn": "dog"}}, {0: "person"}, r"the student has no 'persn'; did you mean 'person'\?"),
        ({"classes": {"human": "persn"}}, {0: "human"}, r"t\.pt: classes: it has no 'persn'; did you mean 'person'\?"),
        ({"classes": "by-number"}, {0: "person"}, "has 80 classes, the student 1; by-number needs as many"),
    ],
)
def test_classes_that_do_not_match_are_refused(
    options: dict[str, object], student: dict[int, str], message: str, official: Model
) -> None:
    with pytest.raises(ConfigError, match=message):
        class_columns(teacher_of("t.pt", **options), student, official.names, all_needed=True)


def test_a_named_mapping_finds_classes_of_other_names(official: Model) -> None:
    config = teacher_of("t.pt", classes={"human": "person"})
    assert class_columns(config, {0: "dog", 1: "human"}, official.names, all_needed=True) == [16, 0]


def test_a_size_that_the_teacher_can_not_take_is_refused(yolov5n: str, official: Model) -> None:
    with pytest.raises(ConfigError, match=r"300 pixels is no multiple of its largest stride 32"):
        open_teacher(teacher_of(yolov5n, size=300), official, 320)


def test_a_family_of_four_levels_asks_for_pixels_of_its_own_largest_stride(tmp_path: Path) -> None:
    weights, student = family_file(tmp_path, "yolov8n-p6.yaml"), tiny_model()
    with pytest.raises(ConfigError, match=r"160 pixels is no multiple of its largest stride 64; give it a size"):
        open_teacher(teacher_of(weights), student, 160)
    teacher = open_teacher(teacher_of(weights, size=192), student, 160)
    assert teacher.record([20]).keys() == {20}
    found = teacher(torch.rand(1, 3, 160, 160, generator=torch.Generator().manual_seed(0)))
    assert [level.shape[2:4] for level in found.detect] == [(20, 20), (10, 10), (5, 5)]


def test_a_teacher_without_the_students_strides_is_refused_before_training(tmp_path: Path) -> None:
    weights = family_file(tmp_path, "yolov3-tiny.yaml", scales={"": [0.2, 0.05, 256]})
    with pytest.raises(ConfigError, match=r"its head has strides \[16, 32\], none at the student's 8; take a teacher"):
        open_teacher(teacher_of(weights), tiny_model(), SIZE)


@pytest.mark.slow
def test_a_larger_input_gives_its_own_findings_at_the_students_scale(
    yolov5n: str, official: Model, pictures: Tensor
) -> None:
    images = pictures.float() / 255
    found = select(official.decode(open_teacher(teacher_of(yolov5n, size=640), official, 320)(images)), 0.5)
    with torch.no_grad():
        outputs = official.eval()(torch.nn.functional.interpolate(images, (640, 640), mode="bilinear"))
    expected = select(official.decode(outputs), 0.6)
    for one, other in zip(expected, found, strict=True):
        assert len(one.rows) > 0
        for box, kind in zip(one.boxes_xyxy / 2, one.classes, strict=True):
            assert float((other.boxes_xyxy[other.classes == kind] - box).abs().amax(1).min()) < 2


@pytest.mark.slow
@pytest.mark.parametrize("size", [None, 640])
def test_a_yolov8_teacher_speaks_in_the_students_rows(
    size: int | None, test_data: Path, official: Model, pictures: Tensor
) -> None:
    """What its own head gives, after suppression, is what is found in the student's rows."""
    weights = test_data / "weights" / "yolov8n_from_int8.safetensors"
    config = teacher_of(weights, graph="yolov8n.yaml", classes="by-number", size=size)
    teacher = open_teacher(config, official, 320)
    images = pictures.float() / 255
    side = size or 320
    own = torch.nn.functional.interpolate(images, (side, side), mode="bilinear")
    with torch.no_grad():
        rows = teacher.source(own).rows
    rows[..., :4] *= 320 / side
    ones = torch.ones_like(rows[..., :1])
    expected = select(torch.cat((rows[..., :4], ones, rows[..., 4:]), -1), 0.6)
    found = select(official.decode(teacher(images)), 0.5)
    for one, other in zip(expected, found, strict=True):
        assert len(one.rows) > 0
        for box, kind in zip(one.boxes_xyxy, one.classes, strict=True):
            same = other.boxes_xyxy[other.classes == kind]
            assert len(same), f"class {int(kind)} was lost on the way"
            assert float((same - box).abs().amax(1).min()) < 0.05 * 320


def test_in_half_precision_pixels_stay_as_fine_as_they_are(test_data: Path) -> None:
    """Layers alone compute in half: here in bfloat16, which a CPU has, too, and to which 514 is 512 or 516."""
    weights = test_data / "weights" / "yolo11n-pose.pt"
    with Image.open(test_data / "images" / "zidane.jpg") as photo:
        pixels = torch.from_numpy(np.array(photo.convert("RGB").resize((640, 640))))
    images = pixels.permute(2, 0, 1)[None] / 255
    expected = open_family(weights)(images).rows
    with torch.autocast("cpu", torch.bfloat16):
        found = open_family(weights)(images).rows
    sure = expected[..., 4] > 0.25
    assert sure.sum() > 10
    errors = (found - expected)[sure].abs()
    assert float(errors[:, :2].median()) < 0.3, "centres"
    assert float(errors[:, 5:].unflatten(1, (-1, 3))[..., :2].median()) < 0.4, "points"


def test_a_layer_list_that_names_more_than_layers_is_refused(test_data: Path, tmp_path: Path) -> None:
    """The package calls what the list names; load_checkpoint, say, would unpickle a file."""
    content = torch.load(test_data / "weights" / "yolo11n-pose.pt", weights_only=False)["model"]
    content.yaml["backbone"][0][2] = "load_checkpoint"
    path = tmp_path / "evil.pt"
    torch.save({"model": content}, path)
    with pytest.raises(CheckpointError, match="names 'load_checkpoint', which is no layer"):
        open_family(path)
    content.yaml["backbone"][0][2] = "Conv"
    content.yaml["activation"] = "nn.SiLU() if open('x') else None"
    torch.save({"model": content}, path)
    with pytest.raises(CheckpointError, match="is not the plain constructor"):
        open_family(path)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (23, "layer 23 of the teacher is its head and gives no feature map; name one before it, such as 22"),
        (24, "the teacher has no layer 24; its head takes 16, 19, 22"),
        (-1, "the teacher has no layer -1"),
    ],
)
def test_a_layer_of_a_family_that_gives_no_features_is_refused(layer: int, message: str, tmp_path: Path) -> None:
    weights = family_file(tmp_path, "yolo11n-pose.yaml", kpt_shape=[2, 3])
    teacher = open_teacher(teacher_of(weights, output={"keypoints": 1}), tiny_model(keypoint={}), SIZE)
    with pytest.raises(ConfigError, match=message):
        teacher.record([16, layer])


@pytest.mark.parametrize(
    ("graph", "head"),
    [
        ("rtdetr-l.yaml", "RTDETRDecoder"),
        ("yolov8n-obb.yaml", "OBB"),
        ("yolov8n-cls.yaml", "Classify"),
        ("yolov8s-worldv2.yaml", "WorldDetect"),
        ("yoloe-11s.yaml", "YOLOEDetect"),
        ("yolo26n-sem.yaml", "SemanticSegment"),
    ],
)
def test_a_family_whose_head_says_nothing_of_cells_is_refused(graph: str, head: str, tmp_path: Path) -> None:
    weights = tmp_path / "t.safetensors"
    save_file({"model.0.conv.weight": torch.zeros(1)}, weights)
    with pytest.raises(
        CheckpointError, match=rf"{graph}: its head, {head}, can not teach: .*take a detect, segment or"
    ):
        open_teacher(teacher_of(weights, graph=graph, classes="by-number"), tiny_model(), SIZE)


@pytest.mark.parametrize("key", ["channels", "ch"])
def test_a_family_that_looks_at_grey_pictures_is_refused_as_such(key: str, tmp_path: Path) -> None:
    """Versions of the package call it one or the other."""
    with process_left_as_it_was():
        from ultralytics.nn import tasks

        network = tasks.DetectionModel(tasks.yaml_model_load("yolov8n.yaml") | SMALL, ch=1, nc=2, verbose=False)
    network.yaml[key] = network.yaml.pop("channels")
    torch.save({"model": network}, tmp_path / "t.pt")
    with pytest.raises(CheckpointError, match=r"t\.pt: takes pictures of 1 channels, and students look at 3"):
        open_teacher(teacher_of(tmp_path / "t.pt"), tiny_model(), SIZE)


def test_a_teacher_of_another_kind_is_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "list.pt"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(CheckpointError, match=r"list\.pt"):
        open_teacher(teacher_of(path), tiny_model(), SIZE)


def test_plain_tensors_that_torch_saved_are_refused_with_what_is_taken(tmp_path: Path) -> None:
    torch.save({"model.0.conv.weight": torch.zeros(1)}, tmp_path / "t.pt")
    config = teacher_of(tmp_path / "t.pt", graph="yolov8n.yaml", classes="by-number")
    with pytest.raises(
        CheckpointError, match=r"t\.pt: can not be read as plain .*taken from \.safetensors alone, as safet"
    ):
        open_teacher(config, tiny_model(), SIZE)


def test_a_model_that_takes_features_can_not_teach(tmp_path: Path) -> None:
    """It has nothing to look at pictures with."""
    extractor = {"name": "features", "levels": {8: 4, 16: 4, 32: 4}}
    model = build({"extractor": extractor, "detector": {"graph": "yolov5n.yaml"}})
    path = save_weights(model, tmp_path / "t.safetensors")
    with pytest.raises(ConfigError, match=r"teacher .*t\.safetensors: takes features of another program, and teachers"):
        open_teacher(teacher_of(path), tiny_model(), SIZE)


def test_any_mtyolo_model_can_teach(tmp_path: Path) -> None:
    segment = {"segment": {"prototypes": 4, "channels": 8}, "keypoint": {}}
    model = tiny_model(seed=1, **segment).eval()
    teacher = open_teacher(teacher_of(save_weights(model, tmp_path / "t.safetensors")), tiny_model(**segment), SIZE)
    images = torch.rand(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found = teacher(images)
    with torch.no_grad():
        expected = model(images)
    assert torch.equal(found.detect[0], expected.detect[0])
    assert found.segment is not None
    assert expected.segment is not None
    assert torch.equal(found.segment.prototypes, expected.segment.prototypes)
    assert found.keypoint is not None
    assert expected.keypoint is not None
    assert torch.equal(found.keypoint.points[1], expected.keypoint.points[1])
    assert found.keypoint.heatmaps.any()
    assert torch.equal(found.keypoint.heatmaps, expected.keypoint.heatmaps)


def test_heatmaps_of_a_teacher_that_sees_larger_pictures_are_passed_on_as_they_are(tmp_path: Path) -> None:
    model = tiny_model(seed=1, keypoint={}).eval()
    config = teacher_of(save_weights(model, tmp_path / "t.safetensors"), size=2 * SIZE)
    teacher = open_teacher(config, tiny_model(keypoint={}), SIZE)
    found = teacher(torch.rand(1, 3, SIZE, SIZE)).keypoint
    assert found is not None
    assert found.points[0].shape[2:4] == (SIZE // 8, SIZE // 8)
    assert found.heatmaps.shape[2:] == (SIZE // 4, SIZE // 4)
