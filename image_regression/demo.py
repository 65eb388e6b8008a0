"""The first thing to run: one photo, a SIREN on the full batch and by EVOS against the recipe fast, one seed.

    make demo

Ends with a table and runs/demo/report.png.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from evos.errors import exit_on_input_error
from evos.images import read_image
from evos.runs import Stopped, Stopper, open_run
from evos.runs.files import replace_file
from evos.runs.folder import check_run_folder
from evos.signals import load
from image_regression.options import parse
from image_regression.report import Curve, Panel, write_report
from image_regression.run import check_lpips, fit_signal
from image_regression.summary import cell, form_of, markdown_table
from image_regression.tables import seconds_to

ROWS = {"full": ["--selector", "full"], "EVOS": ["--selector", "evos"], "fast": ["--recipe", "fast"]}
COLUMNS = {
    **{"psnr": "PSNR (dB)", "ssim": "SSIM", "train_seconds": "training s"},
    "points_evaluated": "points evaluated",
}
"""Of the table: names in the metrics, and headings."""
DEFAULTS = ["--config", str(Path(__file__).parents[1] / "configs" / "image_regression" / "demo.txt")]


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The program; it takes the options of main.py."""

    words = DEFAULTS + (sys.argv[1:] if argv is None else argv)
    base = parse(words).run
    for folder in (Path(base.out), *(Path(base.out, title.lower()) for title in ROWS)):
        check_run_folder(folder, resume=base.resume, overwrite=base.overwrite)
    out = open_run(Path(base.out), {"demo": list(ROWS)}, resume=base.resume, overwrite=base.overwrite).path
    results, panels, curves = {}, [], []
    path = Path(base.input) if base.input else None
    signal = load(path, base.longer_side, base.factor)
    if base.lpips:
        check_lpips([path])
    truth = signal.picture(signal.values)
    with Stopper() as stopper:
        for title, extra in ROWS.items():
            options = parse([*words, *extra])
            folder = out / title.lower()
            try:
                results[title] = fit_signal(
                    signal, replace(options, run=replace(options.run, out=str(folder))), folder, stopper
                )
            except Stopped as stopped:
                raise SystemExit(stopped.exit_code) from None
            reconstruction, selection = (
                read_image(folder / "images" / name).pixels for name in ("reconstruction.png", "selection.png")
            )
            panels.append(Panel(title, reconstruction, None if title == "full" else selection))
            curves.append(Curve(title, results[title]["curve"]))
    write_report(out / "report.png", truth, panels, curves)
    full = results["full"]
    rows = []
    for title, result in results.items():
        reached = seconds_to(full["psnr"], result["curve"])
        time = (
            "not reached" if reached is None else f"{reached:.1f} s ({reached / full['train_seconds']:.0%} of full's)"
        )
        numbers = [cell(form_of(name), result[name]) for name in COLUMNS]
        rows.append([title, *numbers, time])
    table = markdown_table(["", *COLUMNS.values(), "reached full's final PSNR after"], rows)
    replace_file(out / "table.md", table.encode())
    print(
        f"\n{signal.name} {signal.shape}, {base.field}, {base.steps} steps, seed {base.seed}, "
        f"{torch.get_num_threads()} threads\n"
    )
    print(table)
    print(f"pictures and curves: {out / 'report.png'}")


if __name__ == "__main__":
    main()
