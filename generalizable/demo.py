"""A first look: one network for small photos, trained by two processes, shown on photos that it never saw.

    make demo-meta

The photos are cut from pictures that ship with scikit-image: those to train on from their left two thirds, those to
test on from the rest. The photos to test on are encoded to a file of 6-bit patterns and decoded from it. Ends with
runs/demo-meta/report.png, whose rows are: truth, reconstruction, the same from the file, at three times the resolution,
and the way from the first photo to the last.
"""

import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from evos.command_line import parse_options
from evos.config import check_range
from evos.errors import InputError, exit_on_input_error
from evos.images import read_image, write_image
from evos.runs import open_run, read_json
from evos.runs.folder import check_run_folder
from evos.runs.outputs import check_folder
from generalizable.codec import Codec
from generalizable.encode import decode, encode
from generalizable.instances import picture
from generalizable.patterns import Encoded, fit_levels, interpolate, read_patterns, write_patterns

ROOT = Path(__file__).resolve().parents[1]
PICTURES = ("astronaut", "chelsea", "coffee", "hubble_deep_field", "ihc", "motorcycle_left", "retina", "rocket")
BATCH, SHOWN, BITS = 16, 8, 6


@dataclass(frozen=True)
class DemoConfig:
    """Options of the demonstration."""

    out: str = "runs/demo-meta"
    """Folder for the photos, the run and the report."""

    photos: int = 960
    """Photos to train on, at least 16; a tenth as many, but at least 8, to test on."""

    steps: int = 1500
    """Training steps, at least 1."""

    processes: int = 2
    """Processes that train together, a divisor of 16."""

    overwrite: bool = False
    """Replace an existing run of the same name."""

    def __post_init__(self) -> None:
        check_range("photos", self.photos, BATCH)
        check_range("steps", self.steps, 1)
        if self.processes < 1 or BATCH % self.processes:
            raise InputError("processes", self.processes, f"a divisor of {BATCH}")


def cut(pictures: Sequence[Float[Tensor, "_ _ 3"]], count: int, seed: int) -> list[Float[Tensor, "H W 3"]]:
    """Square pieces of 64 to 144 pixels from anywhere in the pictures, as many of each."""
    generator = torch.Generator().manual_seed(seed)
    pieces = []
    for i in range(count):
        pixels = pictures[i % len(pictures)]
        size, *place = torch.rand(3, generator=generator).tolist()
        side = min(64 + round(80 * size), *pixels.shape[:2])
        top, left = (
            int(fraction * (length - side + 1)) for fraction, length in zip(place, pixels.shape[:2], strict=True)
        )
        pieces.append(pixels[top : top + side, left : left + side])
    return pieces


def write_photos(folder: Path, count: int) -> None:
    """The data set, in folders train and test."""
    import skimage.data

    shipped = Path(skimage.data.__file__).parent
    pictures = [read_image(next(shipped.glob(f"{name}.*"))).pixels[..., :3] for name in PICTURES]
    left = [pixels[:, : 2 * pixels.shape[1] // 3] for pixels in pictures]
    right = [pixels[:, 2 * pixels.shape[1] // 3 :] for pixels in pictures]
    parts = {"train": cut(left, count, seed=0), "test": cut(right, max(SHOWN, count // 10), seed=1)}
    for part, pieces in parts.items():
        (folder / part).mkdir(parents=True, exist_ok=True)
        for i, piece in enumerate(pieces):
            write_image(folder / part / f"{i:04}.png", piece)


def train(config: DemoConfig, photos: Path, run: Path) -> None:
    """Train in processes of torchrun's, as a user would."""
    words = [f"data.root={photos}", f"out={run}", f"train.steps={config.steps}", f"train.batch={BATCH}"]
    words += ["--overwrite"] if config.overwrite else []
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={config.processes}"]
    settings = ["--config", str(ROOT / "configs" / "generalizable" / "demo.yaml")]
    done = subprocess.run([*torchrun, str(Path(__file__).with_name("main.py")), *settings, *words])
    if done.returncode:
        raise SystemExit(done.returncode)


def decoded(codec: Codec, signals: Iterable[Encoded], scale: int = 1) -> Float[Tensor, "B H W 3"]:
    """The photos of these patterns."""
    return torch.stack([decode(codec, signal, scale) for signal in signals])


def described(
    codec: Codec,
    truth: Float[Tensor, "B H W 3"],
    exact: Float[Tensor, "B H W 3"],
    rounded: Float[Tensor, "B H W 3"],
    file: Path,
) -> str:
    """What the file of patterns takes, and how near to the truth are photos from it and from 32-bit patterns."""
    psnr, psnr_of_file = (codec.task.psnr(each.flatten(1, 2), truth.flatten(1, 2)).mean() for each in (exact, rounded))
    return (
        f"{len(truth)} of them in {file}: {8 * file.stat().st_size / truth[..., 0].numel():.2f} bits a pixel, "
        f"{psnr_of_file:.2f} dB; from 32-bit patterns {psnr:.2f} dB"
    )


def report(codec: Codec, patterns: Sequence[Encoded], *photos: Float[Tensor, "B h w 3"]) -> Float[Tensor, "H W 3"]:
    """The picture: a row for each of ``photos``, and two for what ``patterns`` give at three times the resolution."""
    shown = patterns[:SHOWN]
    between = [interpolate(shown[0], shown[-1], i / (len(shown) - 1)) for i in range(len(shown))]
    small = torch.stack([each[: len(shown)] for each in photos])
    large = torch.stack([decoded(codec, shown, 3), decoded(codec, between, 3)])
    rows = torch.cat([repeat(small, "r b h w c -> r b (h 3) (w 3) c"), large])
    return rearrange(rows, "r b h w c -> (r h) (b w) c")


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    config = parse_options(DemoConfig, argv, "make demo-meta", __doc__ or "")
    out = Path(config.out)
    run, photos = out / "run", out / "photos"
    for folder in (out, run):
        check_run_folder(folder, resume=False, overwrite=config.overwrite)
    check_folder(photos, ("train/*.png", "test/*.png"), config.overwrite)
    open_run(out, {"demo-meta": asdict(config)}, resume=False, overwrite=config.overwrite)
    shutil.rmtree(photos, ignore_errors=True)  # an earlier demonstration may have had more of them
    write_photos(photos, config.photos)
    train(config, photos, run)
    codec = Codec.load(run, "cpu")
    patterns = encode(codec, str(photos / "test"))
    file = out / "patterns.safetensors"
    write_patterns(file, patterns, codec, fit_levels(patterns, BITS))
    coded = read_patterns(file, codec)
    pictures = [picture(photos / "test" / f"{name}.png", codec.options.data.size) for name in patterns]
    truth = rearrange(pictures, "b c h w -> b h w c")
    exact, rounded = decoded(codec, patterns.values()), decoded(codec, [coded[name] for name in patterns])
    write_image(out / "report.png", report(codec, list(patterns.values()), truth, exact, rounded))
    metrics = read_json(run / "metrics.json")
    first = metrics["curve"][0]
    print(
        f"unseen photos: {first['psnr']:.2f} dB after {first['step']} steps, {metrics['psnr']:.2f} dB after "
        f"{metrics['steps']}; {metrics['train_seconds']:.0f} s of training in {config.processes} processes"
    )
    print(described(codec, truth, exact, rounded, file))
    print(f"truth, reconstruction, from the file, at 3x, and the way from the first to the last: {out / 'report.png'}")


if __name__ == "__main__":
    main()
