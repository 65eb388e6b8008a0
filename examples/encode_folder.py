"""A folder of images to patterns, and back at a finer grid, with a trained run of generalizable/main.py.

    python examples/encode_folder.py --run runs/many --input photos --out decoded --scale 3

Prints the PSNR of each image at its own resolution and writes the finer one.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from evos.images import write_image
from evos.metrics import psnr
from evos.runs.outputs import check_absent
from generalizable.codec import Codec
from generalizable.encode import decode, encode, read_signals
from generalizable.instances import stack


def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="Encode a folder of images to patterns and decode them.")
    parser.add_argument("--run", required=True, help="folder of a trained run")
    parser.add_argument("--input", required=True, help="folder of images")
    parser.add_argument("--out", type=Path, required=True, help="folder of the decoded images")
    parser.add_argument("--scale", type=int, default=1, help="decode on a grid this many times as fine")
    args = parser.parse_args(argv)

    codec = Codec.load(args.run)
    patterns = encode(codec, args.input)  # name -> tensors and form: all that is needed to decode
    check_absent([args.out / f"{name}.png" for name in patterns], overwrite=False, argument="--out")
    for name, form, instances in read_signals(codec, args.input):
        squares = codec.task.cells(stack(instances).signal)  # of one picture, "N P C"
        truth = codec.task.join(squares, form, scale=1)
        quality = psnr(decode(codec, patterns[name], scale=1), truth)
        print(f"{name}: {patterns[name].numbers} numbers, {quality:.2f} dB")
        path = args.out / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_image(path, decode(codec, patterns[name], args.scale))


if __name__ == "__main__":
    main()
