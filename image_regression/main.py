"""Fit images, sounds, videos, volumes and shapes with a neural field on the points that a selector chooses.

    python image_regression/main.py --config configs/image_regression/evos.txt --input FILE_OR_FOLDER --out runs/NAME

A folder fits every signal in it and in its subfolders, each in a folder of its own, and writes summary.md and
summary.csv. With ``--kind video`` or ``--kind volume`` its pictures are the frames or slices of one signal.
"""

import sys
from pathlib import Path

from evos.errors import InputError, exit_on_input_error
from evos.metrics import lpips_network
from evos.runs import Stopped, Stopper, resolve_device, resume_command
from evos.signals import find_inputs, is_folder_of_signals
from image_regression.huge import load_signal
from image_regression.options import parse
from image_regression.run import fit_signal
from image_regression.summary import check_summary, sentence, write_summary


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The program."""
    options = parse(argv)
    resolve_device(options.run.device)  # an invalid device is refused once, not once per input
    inputs = find_inputs(options.run.input, kind=options.run.kind)
    out = Path(options.run.out)
    is_folder = is_folder_of_signals(options.run.input, options.run.kind)
    if is_folder:
        check_summary(out)
    results, failures = [], []
    with Stopper() as stopper:
        try:
            for name, path in inputs.items():
                try:
                    folder = out / name if is_folder else out
                    signal = load_signal(path, options, folder)
                    if options.run.lpips and signal.kind == "picture":
                        lpips_network()  # where it can't be had, the one warning comes before training
                    results.append(fit_signal(signal, options, folder, stopper))
                except InputError as error:
                    if not is_folder:
                        raise
                    # One bad input must not abort the others.
                    failures.append(error)
                    print(f"error: {error}", file=sys.stderr)
        except Stopped as stopped:
            words = sys.argv[1:] if argv is None else argv
            command = resume_command(__file__, words, overwrite=options.run.overwrite)
            print(f"stopped; go on with: {command}", file=sys.stderr)
            raise SystemExit(stopped.exit_code) from None
    if is_folder and results:
        write_summary(out, results)
        print((out / "summary.md").read_text())
    for result in [] if is_folder else results:
        print(sentence(result, out))
    if failures:
        raise SystemExit(2)


if __name__ == "__main__":
    main()
