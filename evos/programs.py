"""The console script `evos`: `evos NAME ...` runs the program of that name.

Applications are imported by module name when they are called; evos itself depends on none of them.
"""

import sys
from collections.abc import Sequence
from importlib import import_module

from evos.errors import InputError, exit_on_input_error, unknown_name

PROGRAMS = {
    "fit": ("image_regression.main", "regress", "fit images, sounds, videos, volumes and shapes"),
    "compare": ("image_regression.compare", "regress", "compare strategies on such signals"),
    "meta": ("generalizable.main", "meta", "learn to represent whole data sets"),
    "encode": ("generalizable.encode", "meta", "turn signals into patterns with a trained model"),
    "search": ("evonas.main", "nas", "evolve networks for dense prediction, or find a field of your own signals"),
    "render": ("generalizable.encode", "meta", "write a fit at any size, or decode patterns=FILE into signals"),
}
"""Module, extra and summary of each program by name."""


def help_text() -> str:
    """Usage and the list of programs."""
    lines = [f"  {name:8}  {summary}" for name, (_, _, summary) in PROGRAMS.items()]
    return "\n".join(["usage: evos PROGRAM [options]; evos PROGRAM --help lists the options", "", *lines])


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """Run the program that the command line names.

    Raises:
        InputError: unknown program, or its extra is not installed.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("-h", "--help"):
        print(help_text())
        return
    name, *rest = words
    if name not in PROGRAMS:
        raise unknown_name("program", name, PROGRAMS)
    module, extra, _ = PROGRAMS[name]
    given = {word.removeprefix("--").split("=")[0] for word in rest}
    if name == "render" and not given & {"patterns", "help", "-h"}:
        module, extra = "image_regression.render", "regress"
    try:
        program = import_module(module)
    except ModuleNotFoundError as error:
        allowed = f'pip install -c constraints.txt -e ".[{extra}]"'
        raise InputError(f"evos {name}", f"no module {error.name}", allowed) from None
    if name == "render" and not rest:
        raise InputError("patterns", None, "patterns=FILE to decode, or RUN of evos fit")
    program.main(rest)
