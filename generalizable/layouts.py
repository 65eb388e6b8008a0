"""Where a data set keeps its training and its test part: files of pictures and sounds, folders of scenes, tar shards.

Nothing is decoded here. A layout that has no test part of its own holds out every n-th instance in the order of names.
"""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from braceexpand import braceexpand

from evos import images, sounds
from evos.errors import InputError
from evos.folders import find_files, read_list
from generalizable.members import Member, index

SUFFIXES = {"image": images.EXTENSIONS, "sound": sounds.EXTENSIONS}
"""Extensions of the files of the kinds of signal that have one file an instance; a scene is a folder."""
REMOTE = re.compile(r"pipe:|\w+:/")
SCENES = ("learnit", "blender")
TEST_FOLDERS = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class Split:
    """What to train on and to test on: files (for views: scene folders), members of tar files, or, of tar files that
    are not on this machine, the commands and addresses that webdataset reads them through."""

    train: Sequence[Path | Member | str]
    test: Sequence[Path | Member | str]
    skipped: tuple[str, ...] = ()
    """A line for each tar file that can't be read."""


def find(root: str, layout: str, kind: str, test_ratio: float) -> Split:
    """The parts of the data set in ``root``.

    Args:
        layout: one of ``LAYOUTS``; auto looks at what the folder holds.
        kind: image, sound or views.
        test_ratio: fraction of the instances that is held out where the data set has no test part.

    Raises:
        InputError: no such folder, a layout for another kind of data, or nothing found in it.
    """
    path = Path(root)
    if layout == "auto":
        layout = detect(path, kind)
    if (layout in SCENES) == (kind in SUFFIXES):
        raise InputError("layout", layout, f"a layout of {kind} data")
    if layout != "shards" and not path.is_dir():
        raise InputError("root", root, "a folder that exists")
    try:
        split = shards(root, kind, test_ratio) if layout == "shards" else LAYOUTS[layout](path, kind)
    except OSError as error:
        raise InputError("root", f"{root} ({error.strerror})", "a folder that can be read") from error
    if not split.train and not split.test:
        wanted = ", ".join(SUFFIXES[kind]) + " files" if kind in SUFFIXES else "folders with transforms.json"
        raise InputError("root", f"{root}, where layout {layout} finds nothing", wanted)
    return split if split.test else hold_out(split, test_ratio)


def detect(root: Path, kind: str) -> str:
    """The layout of a folder."""
    if REMOTE.match(str(root)) or "{" in root.name or root.suffix == ".tar" or any(root.glob("*.tar")):
        return "shards"
    return DETECTORS[kind](root)


def detect_pictures(root: Path) -> str:
    """The layout of a folder of pictures."""
    if partition_file(root):
        return "celeba"
    return "ffhq" if any((root / name).is_dir() for name in ("images1024x1024", "thumbnails128x128")) else "folder"


def detect_sounds(root: Path) -> str:
    """The layout of a folder of recordings."""
    return "librispeech" if any(root.glob("train-*")) else "folder"


def detect_scenes(root: Path) -> str:
    """The layout of a folder of scenes."""
    return "learnit" if splits_file(root) else "blender"


DETECTORS: dict[str, Callable[[Path], str]] = {
    "image": detect_pictures,
    "sound": detect_sounds,
    "views": detect_scenes,
}
"""How the layout of a folder is found out, by the kind of signal."""


def hold_out(split: Split, test_ratio: float) -> Split:
    """Every n-th instance as the test part."""
    if len(split.train) < 2:
        raise InputError("root", f"{split.train[0]} alone", "at least two instances: some are held out")
    every = min(max(2, round(1 / test_ratio)), len(split.train))
    test = split.train[every - 1 :: every]
    chosen = set(test)
    return Split([path for path in split.train if path not in chosen], test, split.skipped)


def files(folders: Iterable[Path], kind: str) -> list[Path]:
    """The pictures or sounds under some folders, at any depth."""
    return sorted(path for folder in folders for path in find_files(folder, SUFFIXES[kind]))


def find_signals(root: Path, kind: str) -> list[Path]:
    """The files (scenes: folders) under a folder, at any depth."""
    return files([root], kind) if kind in SUFFIXES else scenes(root)


def folder(root: Path, kind: str) -> Split:
    """Any folder of files: its train and test (or val) subfolders where it has them. ImageNette's layout, too."""
    if not (root / "train").is_dir():
        return Split(files([root], kind), [])
    tests = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    return Split(files([root / "train"], kind), files(tests[:1], kind))


def partition_file(root: Path) -> Path | None:
    """CelebA's list of parts."""
    return next(iter([*root.glob("list_eval_partition.*"), *root.glob("Eval/list_eval_partition.*")]), None)


def celeba(root: Path, kind: str) -> Split:
    """CelebA: list_eval_partition names the pictures of training (0), validation (1) and test (2)."""
    listed = partition_file(root)
    if listed is None:
        raise InputError("root", str(root), "CelebA's folder, with list_eval_partition.txt")
    rows = [line.replace(",", " ").split() for line in read_list(listed).splitlines()]
    parts = {row[0]: row[1] for row in rows if len(row) == 2}
    found = files([root], kind)
    return Split(
        [path for path in found if parts.get(path.name) == "0"], [path for path in found if parts.get(path.name) == "2"]
    )


def ffhq(root: Path, kind: str) -> Split:
    """FFHQ: ffhqtrain.txt and ffhqvalidation.txt where they lie in the folder (the composer paper's parts).

    Else, as FFHQ itself says, pictures 0 to 59999 are for training, 60000 to 69999 for validation.
    """
    found = [path for path in files([root], kind) if path.stem.isdigit()]
    lists = [root / "ffhqtrain.txt", root / "ffhqvalidation.txt"]
    if all(path.exists() for path in lists):
        names = [[Path(name).stem for name in read_list(path).split()] for path in lists]
        numbers = [{int(name) for name in part if name.isdigit()} for part in names]
        train, test = ([path for path in found if int(path.stem) in part] for part in numbers)
        return Split(train, test)
    return Split([p for p in found if int(p.stem) < 60000], [p for p in found if int(p.stem) >= 60000])


def librispeech(root: Path, kind: str, part: str = "train-*") -> Split:
    """LibriSpeech: folders train-* (or ``part``), and test-clean or whichever test-* or dev-* is there."""
    tests = [*sorted(root.glob("test-*")), *sorted(root.glob("dev-*"))]
    return Split(files(sorted(root.glob(part)), kind), files(tests[:1], kind))


def splits_file(root: Path) -> Path | None:
    """The list of parts of a ShapeNet class as "learnit" renders it: car_splits.json for the folder cars."""
    names = [
        root / f"{root.name.removesuffix('s')}_splits.json",
        root.parent / f"{root.name.removesuffix('s')}_splits.json",
    ]
    return next((path for path in names if path.exists()), None)


def learnit(root: Path, kind: str) -> Split:
    """A ShapeNet class as Tancik et al. render it ("learnit", CVPR 2021): a folder a scene, and a list of parts."""
    listed = splits_file(root)
    if listed is None:
        raise InputError("root", str(root), f"a folder with {root.name.removesuffix('s')}_splits.json in or beside it")
    try:
        parts = json.loads(read_list(listed))
        train, test = parts["train"], parts.get("test") or parts.get("val") or []
        # A copy of a part of the set is a set.
        there = {path.name for path in root.iterdir() if path.is_dir()}
        train, test = ([root / name for name in names if name in there] for names in (train, test))
        return Split(train, test)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError("root", f"{listed} without lists of scenes", '{"train": [...], "test": [...]}') from None


def blender(root: Path, kind: str) -> Split:
    """A folder of scenes in Blender's format (or one scene); its train and test subfolders where it has them."""
    if not (root / "train").is_dir() or any(root.glob("transforms*.json")):
        return Split(scenes(root), [])
    tests = [root / name for name in TEST_FOLDERS if (root / name).is_dir()]
    return Split(scenes(root / "train"), [scene for test in tests[:1] for scene in scenes(test)])


def scenes(root: Path) -> list[Path]:
    """The folders with a transforms*.json, ``root`` itself or those under it."""
    return (
        [root]
        if any(root.glob("transforms*.json"))
        else sorted({path.parent for path in find_files(root, ("json",)) if path.name.startswith("transforms")})
    )


def shards(root: str, kind: str, test_ratio: float) -> Split:
    """Tar files of samples; those with test or val in their names are the test, else every n-th file of several.

    A lone one is split like a folder. Files on this machine give their members, and damaged ones are left out.
    """
    names = sorted(map(str, Path(root).glob("*.tar"))) if Path(root).is_dir() else list(braceexpand(root))
    for name in names:
        if not (REMOTE.match(name) or Path(name).is_file()):
            raise InputError("root", name, "a tar file")
    tests = [name for name in names if re.search("test|val", name.rpartition("/")[2].lower())]
    split = Split([name for name in names if name not in tests], tests)
    streamed = any(REMOTE.match(name) for name in names)
    if streamed and len(names) < 2:
        raise InputError("root", f"{root} alone", "at least two tar files where they are streamed: some are held out")
    if not tests and len(names) > 1:
        split = hold_out(split, test_ratio)
    if streamed:
        return split
    skipped: list[str] = []
    train, test = (
        [member for name in part for member in index(Path(str(name)), SUFFIXES[kind], skipped)]
        for part in (split.train, split.test)
    )
    if skipped and not train and not test:
        raise InputError("root", f"{root}, whose shards give nothing ({skipped[-1]})", "readable tar files")
    return Split(train, test, tuple(skipped))


LAYOUTS: dict[str, Callable[[Path, str], Split]] = {
    "auto": folder,
    "folder": folder,
    "celeba": celeba,
    "ffhq": ffhq,
    "imagenette": folder,
    "librispeech": librispeech,
    "librispeech100": partial(librispeech, part="train-clean-100"),
    "learnit": learnit,
    "blender": blender,
    "shards": folder,  # see find
}
"""How to find the parts of a data set, by the layout's name."""
