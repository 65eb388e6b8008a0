"""The error type for bad input: one line naming the argument, the value given and what is allowed."""

import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from functools import wraps
from typing import NoReturn


class InputError(ValueError):
    """Bad input from the user: front ends print it as one line and exit with status 2.

    Args:
        argument: name of the option, file or key at fault, e.g. ``"--keep_ratio"``.
        got: the value given.
        allowed: what is allowed, in words.
    """

    def __init__(self, argument: str, got: object, allowed: str) -> None:
        self.argument, self.got, self.allowed = argument, got, allowed
        text = f"{argument}: got {got!r}" if not isinstance(got, str) or not got else f"{argument}: got {got}"
        super().__init__(" ".join(f"{text}; allowed: {allowed}".split()))

    def __reduce__(self) -> tuple[type["InputError"], tuple[str, object, str]]:
        # By default an exception is unpickled from its message alone, which this constructor does not accept.
        return type(self), (self.argument, self.got, self.allowed)


def unknown_name(argument: str, got: str, known: Iterable[str]) -> InputError:
    """The error for an unknown name, suggesting the closest valid one."""
    names = sorted(known)
    near = get_close_matches(got, names, n=1, cutoff=0.5)
    listed = "one of " + ", ".join(names)
    if near:
        return InputError(argument, got, f"did you mean {near[0]}?" + (f" {listed}" if len(names) <= 12 else ""))
    return InputError(argument, got, listed)


def exit_on_input_error(main: Callable[..., None]) -> Callable[..., None]:
    """Decorate a program's main: an InputError becomes one line on stderr and exit status 2.

    Where the reader of the output closes it early, as ``head`` does, the program ends silently with status 1.
    """

    @wraps(main)
    def wrapped(*args: object, **kwargs: object) -> None:
        try:
            main(*args, **kwargs)
            sys.stdout.flush()
        except InputError as error:
            _exit(error)
        except BrokenPipeError:
            if not _is_reader_gone():  # the broken pipe is another one, such as a worker's
                raise
            # Python would flush the rest again on exit and report the error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise SystemExit(1) from None

    return wrapped


def _is_reader_gone() -> bool:
    """Whether stdout was closed by its reader; tested by writing an empty line."""
    try:
        print(flush=True)
    except BrokenPipeError:
        return True
    return False


def _exit(error: InputError) -> NoReturn:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(2)
