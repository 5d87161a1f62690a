"""Official files are read without running what is pickled in them."""

import collections
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from mtyolo.errors import CheckpointError
from mtyolo.graph.official import read_official, read_pickled


def test_the_official_file_is_read(test_data: Path) -> None:
    official = read_official(test_data / "weights/yolov5n.pt")
    parameters = sum(
        tensor.numel()
        for name, tensor in official.tensors.items()
        if not name.endswith(("running_mean", "running_var", "num_batches_tracked", "anchors"))
    )
    assert parameters == 1_872_157
    assert official.names[0] == "person"
    assert official.anchors[2].tolist() == [[116, 90], [156, 198], [373, 326]]


def test_other_families_are_refused_by_name(test_data: Path) -> None:
    with pytest.raises(CheckpointError, match="not a classic YOLOv5 checkpoint"):
        read_official(test_data / "weights/yolo11n-pose.pt")


def test_of_a_stopped_training_the_averaged_weights_are_taken(tmp_path: Path) -> None:
    models = []
    for value in (1.0, 2.0):
        model = torch.nn.Module()
        model.yaml, model.names, model.model = {}, ["thing"], torch.nn.Sequential(torch.nn.Linear(1, 1))
        model.model[0].bias.data.fill_(value)
        models.append(model)
    for content, value in (({"model": models[0], "ema": models[1]}, 2), ({"model": models[0], "ema": None}, 1)):
        torch.save(content, tmp_path / "last.pt")
        assert read_pickled(tmp_path / "last.pt").tensors["model.0.bias"].tolist() == [value]


class Bomb:
    """Pickles as a call that leaves a trace when it is run."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.trace,))


@pytest.mark.parametrize("legacy", [False, True])
def test_what_is_pickled_is_never_run(tmp_path: Path, legacy: bool) -> None:
    trace, file = tmp_path / "trace", tmp_path / "bomb.pt"
    torch.save({"model": Bomb(trace)}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError):
        read_official(file)
    assert not trace.exists()
    pickle.loads(pickle.dumps(Bomb(trace)))
    assert trace.exists(), "the bomb itself must work, or this test proves nothing"


def test_eval_by_name_is_never_run(tmp_path: Path) -> None:
    trace = tmp_path / "trace"

    class Call:
        def __reduce__(self) -> tuple[object, ...]:
            return (eval, (f"open({str(trace)!r}, 'w')",))

    torch.save(collections.OrderedDict(model=Call()), tmp_path / "call.pt")
    with pytest.raises(CheckpointError):
        read_official(tmp_path / "call.pt")
    assert not trace.exists()


def test_damaged_and_foreign_files_give_one_sentence(tmp_path: Path, test_data: Path) -> None:
    whole = (test_data / "weights/yolov5n.pt").read_bytes()
    cases = {"empty.pt": b"", "text.pt": b"<html>404</html>", "cut.pt": whole[: len(whole) // 2]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(CheckpointError, match=name):
            read_official(tmp_path / name)
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("model/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript"):
        read_official(tmp_path / "script.pt")
    with pytest.raises(CheckpointError, match="no such file"):
        read_official(tmp_path / "nowhere.pt")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "tensors.pt")
    with pytest.raises(CheckpointError, match="holds no model"):
        read_official(tmp_path / "tensors.pt")
