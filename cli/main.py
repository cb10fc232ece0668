"""The command `isotrain`. Each command is one file; heavy imports happen inside them."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, wraps
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
import typer.main

from .. import RunError, UserError
from ..albert_core.processes.signals import interrupted_by_signals, run_program
from ..albert_core.terminal.console import say
from ..albert_core.terminal.invocation import command
from ..albert_core.terminal.text import brief, error_line, quoted
from ..kernels.names import meant
from .commands.bench import bench
from .commands.compare import compare
from .commands.config import config
from .commands.conformance import conformance
from .commands.doctor import doctor
from .commands.export import export
from .commands.gpu_check import gpu_check
from .commands.history import history
from .commands.list import list_names
from .commands.parity import parity
from .commands.predict import predict
from .commands.push import push
from .commands.report import report
from .commands.show import show
from .commands.train import train
from .commands.tt import tt_estimate, tt_formats, tt_losses
from .exits import Exit
from .help import HelpfulCommand, HelpfulGroup
from .streams import settle_streams

app = typer.Typer(
    name="isotrain",
    cls=HelpfulGroup,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    help="The same training on every device: how fast each is against its limit, and whether the losses agree.",
)


# Some releases of typer contain their own click, so its errors are named through typer's exports.
_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory")
_USAGE_ERROR: Any = typer.BadParameter.__base__


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        say(f"isotrain {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and end.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    del version, debug


def _interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Says that Ctrl-C or a similar signal ended the command, since typer only sets the exit code."""

    @wraps(command)
    def run(*args: Any, **kwargs: Any) -> None:
        try:
            # Not at the top of the file, where `isotrain --help` would wait for them.
            from ..backends import import_devices_late
            from ..backends.host.cache import settle_home

            settle_home()
            import_devices_late()
            # `train` handles signals itself.
            with nullcontext() if command is train else interrupted_by_signals():
                command(*args, **kwargs)
        except KeyboardInterrupt as interrupt:
            how = f"; {interrupt}" if interrupt.args else ""
            say(f"isotrain: interrupted{how}", err=True)
            raise typer.Exit(Exit.STOPPED) from interrupt

    return run


_PANELS: tuple[tuple[str, dict[str, Callable[..., None]]], ...] = (
    ("Train and use", {"train": train, "predict": predict, "export": export, "push": push}),
    ("Measure and compare", {"bench": bench, "compare": compare, "history": history}),
    ("Check a device", {"doctor": doctor, "conformance": conformance, "gpu-check": gpu_check}),
    ("Show", {"report": report, "show": show, "list": list_names, "config": config}),
    ("Tenstorrent", {"tt-losses": tt_losses, "tt-formats": tt_formats, "tt-estimate": tt_estimate}),
)
for _panel, _commands in _PANELS:
    for _name, _command in _commands.items():
        app.command(_name, cls=HelpfulCommand, rich_help_panel=_panel)(_interruptible(_command))
for _registered in parity.registered_commands:
    assert _registered.callback is not None, "every command is a function"
    _registered.callback = _interruptible(_registered.callback)
app.add_typer(parity, name="parity", rich_help_panel="Measure and compare")


@cache
def _built() -> Any:
    """The commands as typer builds them from their functions, which takes a twentieth of a second."""
    return typer.main.get_command(app)


def main(arguments: list[str] | None = None) -> None:
    """Runs the command line. Wrong input ends with one line on stderr and exit code 2, a failed run with exit code 1.

    Args:
        arguments: For calls from Python. Without them, this is the program itself and handles the process's signals.

    Raises:
        SystemExit: Always, with one of `Exit`.
    """
    if arguments is not None:
        _run(list(arguments))
    run_program(lambda: _run(sys.argv[1:]), Exit.STOPPED)


def _run(given: list[str]) -> NoReturn:
    settle_streams()
    try:
        Path.cwd()
    except FileNotFoundError:
        # Libraries would fail in a folder that doesn't exist.
        _fail(UserError("the current folder was removed; change to one that is there"), False, Exit.UNUSABLE)
    _settle_processes(given)
    # --debug may be anywhere, since it is usually added to the end of a repeated line.
    debug = "--debug" in given
    given = [argument for argument in given if argument != "--debug"]
    try:
        code = _built()(args=given, prog_name="isotrain", standalone_mode=False)
    except UserError as error:
        _fail(error, debug, Exit.UNUSABLE)
    except RunError as error:
        _fail(error, debug, Exit.FAILED)
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(Exit.STOPPED)
    except BrokenPipeError:
        # The reader is gone (`isotrain config | head`).
        sys.exit(Exit.FAILED)
    except OSError as error:
        refused = _refused(error)
        _fail(refused, debug, Exit.FAILED if isinstance(refused, RunError) else Exit.UNUSABLE)
    except _USAGE_ERROR as error:
        _fail_usage(error, debug)
    except Exception as error:  # noqa: BLE001 (the last stop: every error becomes a line and an exit code)
        _fail(_out_of_memory(error) or error, debug, Exit.FAILED)
    else:
        sys.exit(code if isinstance(code, int) else Exit.DONE)


def _refused(error: OSError) -> RunError | UserError:
    """The error for what the system refused: a full disk, a folder that can't be written, a name that is too long."""
    from ..albert_core.runs.files import is_disk_error

    if is_disk_error(error):
        return RunError(f"{error}; free space or choose another disk")
    # The system's message names the file.
    named = f"{quoted(error.filename)}: " if error.filename is not None else ""
    reason = error.strerror or str(error) or type(error).__name__
    return UserError(f"{named}{reason}; choose another file or folder, or mend its permissions")


def _fail_usage(error: Any, debug: bool) -> NoReturn:
    """Ends with an error about options. A command without arguments shows its help."""
    if type(error).__name__ == "NoArgsIsHelpError":
        error.show()
        sys.exit(Exit.UNUSABLE)
    words = error.ctx.command_path.split()[1:] if error.ctx is not None else []
    said = error.format_message().rstrip(".?").replace(". Did you mean ", "; did you mean ")
    if getattr(error, "possibilities", None) and getattr(error, "option_name", None):
        said = f"{said.partition(' (')[0]}; {meant(error.option_name, error.possibilities)}".rstrip("; ?")
    end = "?" if "; did you mean " in said else ";"
    _fail(UserError(f"{said}{end} `{command(*words, '--help')}` lists what there is"), debug, Exit.UNUSABLE)


def _out_of_memory(error: Exception) -> RunError | None:
    """The error for a lack of memory, in the words of any library; None for other errors."""
    said = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not any(words in said.lower() for words in _NO_MEMORY):
        return None
    reason = f" ({quoted(said)})" if said else ""
    return RunError(
        f"there is not enough memory{reason}; lower batch_size, eval_batch_size, max_length or mlp_hidden_size"
    )


def _settle_processes(given: list[str]) -> None:
    """Every command except `train` works in one process. If a launcher started several, only the first continues."""
    if given[:1] == ["train"] or os.environ.get("WORLD_SIZE", "1") == "1":
        return
    if os.environ.get("RANK", "").lstrip("0").isdecimal():
        sys.exit(Exit.DONE)
    say("isotrain: this command works in one process; the others that were started with it end", err=True)
    # Workers inherit the environment, and those of parity train.
    for name in list(os.environ):
        if name in ("RANK", "LOCAL_RANK", "WORLD_SIZE") or name.startswith("TORCHELASTIC_"):
            del os.environ[name]


def _fail(error: Exception, debug: bool, code: Exit) -> NoReturn:
    if debug:
        raise error
    message = error_line(error)
    if not isinstance(error, (UserError, RunError)):
        message += " (add --debug for the traceback)"
    say(f"isotrain: error: {brief(message)}", err=True)
    sys.exit(code)
