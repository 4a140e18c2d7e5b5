"""The command line: `t2drl COMMAND key=value ...`, and what every command shares.

Exit status: 0 when done, 1 after one line about a user's mistake or about NaN, 128 + n when signal n ended the run.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from lightning_t2drl import __version__
from lightning_t2drl.errors import NonFiniteError, UserError
from lightning_t2drl.run.commands import COMMANDS, import_from_here, run, spelt_out


def main(arguments: Sequence[str] | None = None) -> None:
    """The console command `t2drl`; ends the process with the exit status above where that is not 0."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _main(given)
        sys.stdout.flush()
    except (UserError, NonFiniteError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(128 + signal.SIGINT) from None
    except BrokenPipeError:  # whoever read the output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


def _main(given: list[str]) -> None:
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return
    if given[0] == "--version":
        print(__version__)
        return
    command, *arguments = given
    if command not in COMMANDS:
        from lightning_t2drl.checks import nearest

        raise UserError(f"{command}: no such command{nearest(command, COMMANDS)}; there are {', '.join(COMMANDS)}")
    from lightning_t2drl.run.overrides import read

    words = read(arguments)
    if words.multirun and not COMMANDS[command].sweeps:
        raise UserError(f"-m: {command} has no sweeps")
    if words.multirun and words.show:
        raise UserError("--cfg: shows the config of one run; give each key one value and leave out -m")
    if words.help:
        from lightning_t2drl.run.help import command_help

        print(command_help(command, COMMANDS[command], words.config_dirs))
    elif words.show:
        import yaml

        from lightning_t2drl.run.compose import compose

        import_from_here()
        shown = [*(f"--config-dir={directory}" for directory in words.config_dirs), *words.overrides]
        print(yaml.safe_dump(compose(command, spelt_out(command, shown)).plain, sort_keys=False), end="")
    elif words.multirun:
        from lightning_t2drl.run.sweep import sweep

        sweep(command, words)
    else:
        run(command, arguments)


def _usage() -> str:
    lines = [
        "T2DRL: two-timescale model caching and resource allocation at the edge.",
        "",
        "usage: t2drl COMMAND [-m] [--config-dir=DIR] [KEY=VALUE ...]",
        "",
        *(f"  {name:<11}{command.about}" for name, command in COMMANDS.items()),
        "",
        "t2drl COMMAND --help lists what there is to choose. Two to begin with:",
        "",
        *(f"  t2drl {name} {COMMANDS[name].example}" for name in ("train", "evaluate")),
    ]
    return "\n".join(lines)
