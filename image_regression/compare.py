"""Strategies × schedules × seeds on anybody's pictures, as in EVOS Table 1; or config files × inputs × seeds.

    python image_regression/compare.py --config configs/image_regression/table1.txt --input FOLDER --out runs/a
    python image_regression/compare.py --config configs/image_regression/sobolev_set5.txt --inputs FOLDER --out runs/b

With ``--configs`` a run has the options of one of these files, and those given to the comparison beat it; the table has
a column for each input.

Every run is a folder of its own, so the same command given again goes on where a comparison stopped, and one with more
``--steps`` goes on with the finished runs, their schedules stretched to the new end. With several GPUs
(``--devices cuda:0,cuda:1``, or auto) it runs one process a device. An input that can't be read is left out, and the
exit status is 2. Writes table.md, table.csv and psnr_over_time.png.
"""

import sys
from pathlib import Path

import torch

from evos.errors import InputError, exit_on_input_error
from evos.runs import Stopped, Stopper, open_run, resolve_device
from image_regression.jobs import (
    CompareConfig,
    listed_steps,
    make_config_jobs,
    make_jobs,
    run_jobs,
    without_recipe,
    words,
)
from image_regression.options import GROWING, from_values, given_values
from image_regression.run import check_lpips
from image_regression.tables import plot, write_input_tables, write_tables


def all_devices(text: str) -> list[str]:
    """The devices named, or every GPU, or the CPU."""
    if text != "auto":
        return [str(resolve_device(name)) for name in words(text)] or ["cpu"]
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or ["cpu"]


@exit_on_input_error
def main(argv: list[str] | None = None) -> None:
    """The program."""
    given, parts = given_values(argv, CompareConfig)
    options = from_values(given, parts, CompareConfig)
    config = options.run
    assert isinstance(config, CompareConfig)
    if config.configs is not None:
        if tables := {"strategies", "schedules", "at_steps"} & set(given):
            raise InputError("--configs", config.configs, f"no --{tables.pop()} beside it")
        jobs = make_config_jobs(config, given, parts)
    elif named := next((name for name in given if name.partition(".")[0] == "selector"), None):
        raise InputError(f"--{named}", given[named], "--strategies and --schedules in a comparison")
    else:
        jobs = make_jobs(without_recipe(config, given), options)
    devices = all_devices(config.devices)
    # Given again, the same comparison goes on; another one in the same folder is refused.
    resume = Path(config.out).exists() and not config.overwrite
    free = ("devices", "device", "resume", "overwrite", "quiet", "out", "save_every")
    growing = () if any(job.options.run.polish for job in jobs) else GROWING
    run = open_run(
        Path(config.out), options.resolved(), resume=resume, overwrite=config.overwrite, free=free, growing=growing
    )
    pictures = (None if job.picture is None else Path(job.picture) for job in jobs if job.options.run.lpips)
    check_lpips(pictures, config.kind)
    lpips_steps = tuple(listed_steps(config)) if config.lpips and config.configs is None else ()
    with Stopper() as stopper:
        try:
            results = run_jobs(jobs, devices, stopper, lpips_steps)
        except Stopped as stopped:
            print("stopped; the same command goes on", file=sys.stderr)
            raise SystemExit(stopped.exit_code) from None
    done = [(job, result) for job, result in zip(jobs, results, strict=True) if not isinstance(result, InputError)]
    failures = {str(result): result for result in results if isinstance(result, InputError)}
    if not done:
        raise next(iter(failures.values()))
    if config.configs is None:
        write_tables(run.path, config, done)
    else:
        write_input_tables(run.path, done)
    plot(run.path, done)
    print((run.path / "table.md").read_text())
    for failure in failures:
        print(f"error: {failure}", file=sys.stderr)
    if failures:
        raise SystemExit(2)


if __name__ == "__main__":
    main()
