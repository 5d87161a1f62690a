"""What the command line says about itself, and how little it needs for that."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from mtyolo.cli.main import COMMANDS, load_command, main
from mtyolo.config.training import TrainConfig

LISTED_MODULES = (
    "import sys; from mtyolo.cli.main import main; code = main({arguments}); print('\\n'.join(sys.modules))"
)

WITHOUT_TORCH = [
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["train", "--epoch", "3"],
    ["train", "--epochs", "many"],
    ["train", "--model", "a.yaml", "--data", "b.yaml", "--optimizer", "adam"],
    ["predict", "--model", "a.yaml"],
    ["trian"],
]


@pytest.mark.parametrize("arguments", WITHOUT_TORCH, ids=" ".join)
def test_help_and_wrong_options_need_no_torch(arguments: list[str]) -> None:
    code = LISTED_MODULES.format(arguments=arguments)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    modules = set(done.stdout.splitlines())
    assert "mtyolo.cli.main" in modules, done.stderr
    assert not {"torch", "numpy", "timm", "ultralytics"} & modules


def test_only_the_chosen_command_is_imported() -> None:
    code = LISTED_MODULES.format(arguments=["val", "--help"])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    commands = {name for name in COMMANDS if f"mtyolo.cli.{name}" in done.stdout.splitlines()}
    assert commands == {"val"}


def test_help_takes_a_quarter_of_importing_torch_or_less() -> None:
    def seconds(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=120)
        return time.perf_counter() - began

    # The best of a few: other processes can only add to it.
    helped = min(seconds("from mtyolo.cli.main import main; main(['--help'])") for _ in range(3))
    torch = min(seconds("import torch") for _ in range(3))
    assert helped <= torch / 4, f"help {helped:.2f} s, import torch {torch:.2f} s"


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_all_its_options_and_gives_an_example(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = load_command(name)
    subcommands = getattr(command, "commands", {}) or {name: command}
    for subcommand in subcommands.values():
        unexplained = [option.name for option in subcommand.params if not getattr(option, "help", None)]
        assert not unexplained
        assert "mtyolo" in (subcommand.epilog or "")
    assert main([name, "--help"]) == 0
    assert name in capsys.readouterr().out


def test_train_shows_the_defaults_that_the_schema_has() -> None:
    shown = {option.name: option.show_default for option in load_command("train").params}
    fields = {name: field.default for name, field in TrainConfig.model_fields.items() if name in shown}
    assert {"epochs", "imgsz", "batch", "lr", "seed"} <= fields.keys()
    assert {name: shown[name] for name in fields} == {
        name: "none" if default is None else str(default) for name, default in fields.items()
    }


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    import mtyolo

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"mtyolo {mtyolo.__version__}\n"
