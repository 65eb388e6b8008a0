"""Renamed and removed options, so that the error for an old one names its replacement."""

from collections.abc import Iterable

from evos.errors import InputError, unknown_name

RENAMED = {
    "size": "longer_side",
    "cfs_share": "cfs_ratio",
    "lr_schedule": "schedule",
    "lr_decay": "decay",
    "data.test_share": "data.test_ratio",
    "train.eval_every": "eval_every",
    "train.save_every": "save_every",
    "selector.mutation_share": "selector.mutation_ratio",
    "selector.mutation_share_end": "selector.mutation_ratio_end",
    "selector.uniform_share": "selector.uniform_ratio",
    "selector.restart_share": "selector.restart_ratio",
    "selector.anchor_share": "selector.anchor_ratio",
}
"""New names by old ones."""

REMOVED = {
    "selector.key_schedule": "key_interval_end equal to key_interval for what was fixed",
    "selector.budget": "selector.keep_ratio, or selector=tiles for rays",
    "selector.evaluation": "selector=error for one signal or selector=tiles for rays for what was streaming",
    "selector.draw": "selector=error for what was proportional",
    "selector.adapt": "selector=tiles, which adapts",
    "selector.importance_cap": "nothing in its place: weighting by inverse odds did not pay",
    "selector.fitness": "selector=nint for what was update",
    "selector.direction": "nothing in its place",
    "selector.frequency": "nothing in its place",
}
"""Replacements of removed options, by old name."""


def unknown_option(name: str, known: Iterable[str], shown: str = "option", dashes: str = "") -> InputError:
    """The error for an unknown option: names the new name of an old one, else the closest valid name.

    Args:
        name: the option as given, without dashes.
        known: all valid names.
        shown: the argument that the error names.
        dashes: ``"--"`` where the error is to show names with them.
    """
    known = list(known)
    if RENAMED.get(name) in known:
        return InputError(shown, dashes + name, f"{dashes}{RENAMED[name]}, its name now")
    if name in REMOVED:
        return InputError(shown, dashes + name, f"it is gone; {REMOVED[name]}")
    return unknown_name(shown, dashes + name, [dashes + each for each in known])
