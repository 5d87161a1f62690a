"""Every example runs as it is, and prints what its text promises."""

from __future__ import annotations

import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"

Run = Callable[..., str]


@pytest.fixture
def output_of(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example as Python runs a file, and gives what it prints. Without the seconds of another process."""

    def run(name: str, *arguments: object) -> str:
        path = str(EXAMPLES / name)
        monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
        runpy.run_path(path, run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_three_lines_build_train_and_predict_in_a_process_of_their_own(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "three_lines.py"), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    last = done.stdout.splitlines()[-1]
    assert "boxes (" in last
    assert "keypoints (" in last
    assert (tmp_path / "found.jpg").stat().st_size > 1000


@pytest.mark.slow
def test_features_from_anywhere_enter_and_teach_the_adapters(output_of: Run) -> None:
    said = output_of("own_features.py")
    assert "maps: [(2, 3, 40, 40, 7), (2, 3, 20, 20, 7), (2, 3, 10, 10, 7)]" in said
    assert "decoded: (2, 6300, 7)" in said
    assert "layers that were not built: 10" in said
    assert "adapters learn: True" in said


@pytest.mark.slow
def test_own_extractor_trains_and_is_loaded_again(output_of: Run, tmp_path: Path) -> None:
    last = output_of("own_extractor.py", tmp_path).splitlines()[-1]
    assert last == "trained 2 epochs; features enter at strides [8, 16, 32]"


@pytest.mark.slow
def test_an_own_loop_over_a_store_lowers_the_loss_and_leaves_the_extractor_and_the_detector(
    output_of: Run, tmp_path: Path
) -> None:
    from mtyolo import load

    last = output_of("own_loop.py", tmp_path).splitlines()[-1]
    first, final = (float(number) for number in last.removeprefix("loss ").split(";")[0].split(" -> "))
    assert final < 0.9 * first
    state = load(tmp_path / "mine.safetensors").state_dict()
    counts = {name: int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert not [name for name, count in counts.items() if name.startswith(("graph.", "branches.detect.")) and count]
    assert all(count == 32 for name, count in counts.items() if name.startswith("adapters."))


def test_every_example_is_run_by_a_test() -> None:
    tests = "".join(path.read_text() for path in Path(__file__).parent.rglob("test_*.py"))
    missing = [path.name for path in EXAMPLES.glob("*.py") if path.name not in tests]
    assert not missing
