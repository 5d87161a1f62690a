"""The command line's front door: a table of commands, of which only the chosen one is imported."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from mtyolo.errors import MtyoloError

COMMANDS = {
    "check": "What a data set holds: images, objects of each task and class, mistakes in labels, pictures.",
    "train": "Train a model on a data set, in stages; frozen parts first, if asked.",
    "val": "Judge a model: box, mask and keypoint average precision.",
    "predict": "Find objects in images: drawn pictures and json.",
    "compare": "Runs side by side: their metrics, the gain over others, curves over the epochs.",
    "bench": "How fast models are here, side by side, on images and on features that are there already.",
    "export": "Write a model to an ONNX file, checked against the model.",
    "extract": "Run a model's frozen extractor once over a data set and store its features.",
    "features": "What a feature store holds, and whether it is intact.",
    "show": "What a model is made of: parts, shapes, parameters, FLOPs, and where features enter.",
    "demo": "The whole in a few minutes: drawn data, a frozen ImageNet extractor, three metrics, pictures.",
}
"""Name -> one line of help. `mtyolo train` calls the function `train` of `mtyolo/cli/train.py`."""

USER_ERROR, INTERRUPTED = 2, 130
"""Exit codes: 2 as for wrong usage everywhere; 128 + SIGINT."""

# typer brings its own click, or the installed one, depending on its version: both have this chain of errors.
UsageError: Any = typer.BadParameter.__bases__[0]


class LazyGroup(TyperGroup):
    """Lists commands from the table, and imports one when it is run."""

    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return TyperCommand(cmd_name, help=COMMANDS[cmd_name]) if cmd_name in COMMANDS else None

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            close = get_close_matches(args[0], COMMANDS, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(COMMANDS)}"
            ctx.fail(f"no command is called {args[0]!r}; {remedy}")
        return args[0], load_command(args[0]), args[1:]


def load_command(name: str) -> Any:
    """Import one command's file. Its EXAMPLES, a line each, stand below its help."""
    module = import_module(f"mtyolo.cli.{name}")
    examples = "\n\n".join(["[bold]Examples[/bold]", *(f"  {line}" for line in module.EXAMPLES)])
    command = typer.Typer(add_completion=False, rich_markup_mode="rich")
    command.command(name, help=COMMANDS[name], epilog=examples)(getattr(module, name))
    return typer.main.get_command(command)


app = typer.Typer(
    cls=LazyGroup,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="`mtyolo COMMAND --help` explains a command, with examples.",
)


@app.callback()
def mtyolo(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False,
) -> None:
    """Multi-task YOLOv5 on features: boxes, masks and keypoints from any feature extractor."""
    if version:
        from importlib.metadata import version as installed

        typer.echo(f"mtyolo {installed('mtyolo')}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. What a person can act on is one sentence on stderr, and 2."""
    try:
        code = app(arguments, prog_name="mtyolo", standalone_mode=False)
    except MtyoloError as error:
        return _refuse(str(error), getattr(error, "exit_code", USER_ERROR))
    except UsageError as error:
        return _refuse(f"{error.format_message()} ({_help_for(error)})")
    except OSError as error:
        if error.errno is None:
            raise
        place = "" if error.filename is None else f"{error.filename}: "
        return _refuse(f"{place}{error.strerror}")
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    if code == INTERRUPTED:  # newer typers return it, older ones raise
        return _refuse("interrupted", INTERRUPTED)
    return code if isinstance(code, int) else 0


def run() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no letter for a name or a bar ends no training
    sys.exit(main())


def _refuse(sentence: str, code: int = USER_ERROR) -> int:
    print("mtyolo: error:", " ".join(sentence.splitlines()), file=sys.stderr)
    return code


def _help_for(error: Any) -> str:
    context = getattr(error, "ctx", None)
    return f"see {context.command_path if context else 'mtyolo'} --help"
