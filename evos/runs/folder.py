"""The run folder: config.json, metrics.json, checkpoint.pt, report.png, images/ and TensorBoard's event files."""

import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evos.errors import InputError
from evos.renamed_options import RENAMED, unknown_option
from evos.runs.files import HEADER, jsonable, read_json, restored, temporary_path, write_json

FREE_OPTIONS = frozenset({"config", "out", "resume", "overwrite", "quiet", "device", "save_every", "eval_every"})
"""Options that may change between a run and its resumption, because no result depends on them."""

FILES = ("config.json", "config.yaml", "metrics.json", "checkpoint.pt", "report.png")
OWNED = (
    *FILES,
    *(temporary_path(Path(name)).name for name in FILES),
    "events.out.tfevents.*",
    *("config.txt", "summary.md", "summary.csv", "table.md", "table.csv", "psnr_over_time.png"),
    *("best.pt", "network.pt", "field.safetensors", "archive.jsonl", "errors.jsonl", "generations/*.json", "front.csv"),
    *("frames/*.png", "animation.gif"),
    *("pareto.png", "hypervolume.png", "brackets.jsonl", "fields/*.txt"),
    *(f"images/*.{suffix}" for suffix in ("png", "jpg", "wav", "flac", "ogg", "mp3", "npy")),
    *(f"images/reconstruction.{suffix}" for suffix in ("tif", "gif", "mp4", "mov", "mkv", "nii", "nii.gz")),
    "images/mesh.ply",
    *(f"eval/*.{suffix}" for suffix in ("json", "png", "wav")),
)
"""Patterns of all files that a run writes: `overwrite` deletes these and nothing else."""


@dataclass(frozen=True)
class Run:
    """A run folder that is ready to be written to."""

    path: Path
    """The folder."""
    resuming: bool
    """Whether there is a checkpoint to resume from."""

    @property
    def images(self) -> Path:
        """Folder of pictures and sounds (.png, .jpg, .wav, .flac, .ogg, .mp3, .npy); it exists."""
        return self.path / "images"

    @property
    def checkpoint_path(self) -> Path:
        """The one checkpoint file."""
        return self.path / "checkpoint.pt"

    @property
    def metrics_path(self) -> Path:
        """The file of final numbers, for `write_json`."""
        return self.path / "metrics.json"


def open_run(
    path: str | Path,
    options: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    free: Collection[str] = FREE_OPTIONS,
    growing: Collection[str] = (),
) -> Run:
    """Create the run folder, or resume or replace the run in it, and write the resolved options to `config.json`.

    Resuming without a checkpoint starts afresh (`Run.resuming` is False): a kill can come before the first one.

    Args:
        path: the run folder; missing parents are made.
        options: the resolved options; nested dicts are compared as dotted names, e.g. ``optimizer.lr``.
        resume: continue the run in `path`, which must have been started with the same options.
        overwrite: delete the run in `path` first: the files a run writes (`OWNED`), never anything else.
        free: options that may differ on resume, by full dotted name or by its last part.
        growing: numbers that may be larger on resume, by full dotted name, such as the steps; that is said on stderr.

    Raises:
        InputError: the folder is not empty and neither flag is given, or both are; it is not empty but holds no run; an
            option differs from the recorded one on resume; the folder can't be written.
    """
    path = Path(path)
    try:
        recorded = check_run_folder(path, resume=resume, overwrite=overwrite)
        if recorded is not None and resume:
            _check_same(recorded, options, free, growing, path)
        elif recorded is not None:
            for file in list(_owned_files(path)):
                file.unlink()
        path.mkdir(parents=True, exist_ok=True)
        # Before the images folder: a kill in between must not leave a folder that looks foreign.
        write_json(path / "config.json", {**HEADER, "options": options})
        run = Run(path, resuming=(path / "checkpoint.pt").exists())
        run.images.mkdir(exist_ok=True)
    except OSError as error:
        raise InputError("--out", f"{path} ({error.strerror})", "a folder that can be written") from error
    return run


def check_run_folder(path: Path, *, resume: bool, overwrite: bool) -> dict[str, Any] | None:
    """The options of the run in a folder, None where it is new or empty; writes nothing.

    Raises:
        InputError: as `open_run`, but for options that differ.
    """
    if resume and overwrite:
        raise InputError("--overwrite", "both --resume and --overwrite", "one of the two")
    try:
        if not _holds_something(path):
            return None
    except OSError as error:
        raise InputError("--out", f"{path} ({error.strerror})", "a folder that can be written") from error
    if not (resume or overwrite):
        raise InputError("--out", str(path), "a new folder, or --resume, or --overwrite")
    return _recorded_options(path, "--resume" if resume else "--overwrite")


def _holds_something(path: Path) -> bool:
    if not path.exists():
        return False
    leftovers = {temporary_path(Path(name)).name for name in FILES}
    return any(entry.name not in leftovers for entry in path.iterdir())


def _recorded_options(path: Path, flag: str) -> dict[str, Any]:
    refusal = InputError(flag, str(path), "a folder with the config.json of a run, or an empty one")
    try:
        config = read_json(path / "config.json")
    except InputError:
        raise refusal from None
    if not isinstance(config, dict) or not isinstance(config.get("options"), dict):
        raise refusal
    if {key: config.get(key) for key in HEADER} != HEADER:
        raise refusal
    return config["options"]


def _check_same(
    recorded: dict[str, Any], options: dict[str, Any], free: Collection[str], growing: Collection[str], path: Path
) -> None:
    before, now = dict(_flatten(recorded)), dict(_flatten(restored(jsonable(options))))
    for name in before:
        if RENAMED.get(name) in now:
            raise unknown_option(name, now, f"{path}/config.json", "--")
    for name in (*now, *(name for name in before if name not in now)):
        if name in free or name.rpartition(".")[2] in free:
            continue
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        if name in growing and isinstance(old, int) and isinstance(new, int) and new > old:
            print(f"notice: {name}: {old} before, {new} now: schedules are stretched to the new end", file=sys.stderr)
        elif old != new:
            raise InputError(f"--{name}", new, f"{old!r} as {path}/config.json has it, when resuming")


def _flatten(options: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in options.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def _owned_files(path: Path) -> Iterator[Path]:
    """A run's files except config.json, which stays until it is replaced: without it the folder would look foreign."""
    inside = path.resolve()
    for pattern in OWNED:
        for file in path.glob(pattern):
            # A linked images/ folder lies elsewhere and may hold anything.
            if pattern != "config.json" and not file.is_dir() and file.parent.resolve().is_relative_to(inside):
                yield file
