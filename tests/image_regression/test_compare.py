"""Comparisons: strategies x schedules x seeds on a folder of pictures."""

import csv
import json
import math
import os
import shutil
import signal
from pathlib import Path
from statistics import mean, stdev
from time import monotonic, sleep

import numpy as np
import PIL.Image
import pytest

from evos.runs import read_json
from image_regression.compare import main
from image_regression.jobs import CompareConfig, listed_steps, make_jobs
from image_regression.options import parse
from image_regression.tables import reach_full, seconds_to

ROOT = Path(__file__).resolve().parents[2]

STEPS = ["--steps", "12", "--at_steps", "4,8,100"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for name, height in (("a.png", 10), ("b.webp", 12)):
        values = np.random.default_rng(height).integers(0, 256, (height, 8, 3), np.uint8)
        PIL.Image.fromarray(values).save(folder / name)
    return folder


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, pictures) -> tuple[Path, list[str]]:
    """The folder of a comparison and the command that made it."""
    out = tmp_path_factory.mktemp("compare") / "out"
    argv = ["--quiet", "--field.hidden_features", "16", "--lpips", "false", "--device", "cpu", "--lr", "1e-2", *STEPS]
    argv += ["--input", str(pictures), "--out", str(out), "--devices", "cpu"]
    argv += ["--strategies", "full,evos", "--schedules", "constant,step", "--seeds", "0,1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("image_regression.run.write_report", lambda *args: None)
        main(argv)
    return out, argv


def metrics_of(out: Path, run: str, picture: str = "*") -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(out.glob(f"{picture}/{run}/metrics.json"))]


def table(out: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (out / "table.csv").open() as file:
        return {(row["strategy"], row["schedule"]): row for row in csv.DictReader(file)}


def test_every_strategy_schedule_and_seed_is_run_on_every_picture(comparison):
    out, _ = comparison
    runs = {str(path.parent.relative_to(out)) for path in out.glob("*/*/metrics.json")}
    names = ("full-constant", "evos-constant", "evos-step")
    assert runs == {f"{picture}/{name}-{seed}" for picture in ("a_png", "b_webp") for name in names for seed in (0, 1)}
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == [
        "config.json",
        "psnr_over_time.png",
        "table.csv",
        "table.md",
    ]


def test_the_table_holds_the_means_of_the_runs(comparison):
    out, _ = comparison
    rows = table(out)
    assert list(rows) == [("full", "constant"), ("evos", "constant"), ("evos", "step")]
    for (strategy, schedule), row in rows.items():
        runs = metrics_of(out, f"{strategy}-{schedule}-*")
        assert len(runs) == 4
        for step in (4, 8, 12):  # 100 is beyond the run, whose last step is always listed
            for key in ("psnr", "ssim"):
                values = [entry[key] for run in runs for entry in run["curve"] if entry["step"] == step]
                assert len(values) == 4 and float(row[f"{key}@{step}"]) == pytest.approx(mean(values))
        assert "psnr@100" not in row and row["lpips@12"] == ""
        seeds = [mean(run["psnr"] for run in metrics_of(out, f"{strategy}-{schedule}-{seed}")) for seed in (0, 1)]
        assert float(row["psnr_spread"]) == pytest.approx(stdev(seeds))
        assert float(row["seconds"]) == pytest.approx(mean(run["train_seconds"] for run in runs))
        assert int(row["points"]) == round(mean(run["points_evaluated"] for run in runs))
        assert row["cfs"] == ("yes" if strategy == "evos" else "no")
        full = metrics_of(out, "full-constant-*")
        shares = [reach_full(run, reference) for run, reference in zip(runs, full, strict=True)]
        assert row["reached_full"] == f"{sum(share is not None for share in shares)}/4"
    assert rows["full", "constant"]["reached_full"] == "4/4"
    assert int(rows["full", "constant"]["points"]) == 12 * (80 + 96) / 2


def test_the_markdown_table_holds_the_same_rows(comparison):
    out, _ = comparison
    lines = [
        line.strip("| ").split(" | ") for line in (out / "table.md").read_text().splitlines() if line.startswith("|")
    ]
    assert [tuple(line[:2]) for line in lines[2:]] == list(table(out))
    column = lines[0].index("psnr@12")
    assert [line[column] for line in lines[2:]] == [f"{float(row['psnr@12']):.2f}" for row in table(out).values()]


def test_a_comparison_goes_on_where_it_stopped(comparison):
    out, argv = comparison
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/metrics.json")}
    rows = table(out)
    gone = out / "b_webp" / "evos-step-1" / "metrics.json"
    gone.unlink()
    main(argv)
    again = {path: path.stat().st_mtime_ns for path in out.glob("*/*/metrics.json")}
    assert [path for path in before if again[path] != before[path]] == [gone]
    assert table(out) == rows


def test_another_comparison_in_the_same_folder_is_refused(comparison, refused):
    out, argv = comparison
    before = (out / "table.csv").read_bytes()
    message = refused(*argv, "--seeds", "0,1,2", program=main)
    assert "--seeds" in message and (out / "table.csv").read_bytes() == before


def test_a_comparison_goes_on_with_more_steps(tmp_path, tiny, pictures, capsys, refused):
    argv = [*tiny, "--input", str(pictures / "a.png"), "--devices", "cpu", "--at_steps", "8,12,16", "--lr", "1e-2"]
    argv += ["--strategies", "full,evos", "--out", str(tmp_path / "out")]
    main([*argv, "--steps", "12"])
    main([*argv, "--steps", "20"])
    assert "steps: 12 before, 20 now" in capsys.readouterr().err
    rows = table(tmp_path / "out")
    assert all(float(row[f"psnr@{step}"]) > 0 for row in rows.values() for step in (8, 12, 16, 20))
    runs = [read_json(path) for path in (tmp_path / "out").glob("*/*/metrics.json")]
    assert len(runs) == 2 and {run["steps"] for run in runs} == {20}
    # What was trained before is not trained again.
    assert all([point["step"] for point in run["curve"]].count(12) == 1 for run in runs)
    before = (tmp_path / "out" / "table.csv").read_bytes()
    assert "--steps: got 12" in refused(*argv, "--steps", "12", program=main)
    assert (tmp_path / "out" / "table.csv").read_bytes() == before


def test_the_photo_is_compared_where_no_picture_is_named(tmp_path, tiny):
    main([*tiny, *STEPS, "--devices", "cpu", "--strategies", "uniform", "--out", str(tmp_path / "out")])
    (run,) = metrics_of(tmp_path / "out", "uniform-constant-0")
    assert run["name"] == "astronaut" and run["shape"] == [16, 16, 3]
    # Without the full run there is nothing to reach.
    assert table(tmp_path / "out")["uniform", "constant"]["reached_full"] == ""


def test_jobs_have_the_options_of_their_strategy_and_schedule():
    argv = ["--strategies", "full_cfs,soft,int_dense2,evos_no_cfs", "--schedules", "constant,step", "--lr", "0.5"]
    options = parse([*argv, "--field", "finer", "--field.hidden_features", "8", "--seeds", "3,4"], CompareConfig)
    assert isinstance(options.run, CompareConfig)
    jobs = {(job.strategy, job.schedule, job.seed): job.options for job in make_jobs(options.run, options)}
    assert {key[:2] for key in jobs if key[0] in ("full_cfs", "soft")} == {
        ("full_cfs", "constant"),
        ("soft", "constant"),
    }
    assert [key[2] for key in jobs] == [3] * 6 + [4] * 6
    assert jobs["full_cfs", "constant", 3].cfs_weight == 0.65 and jobs["evos_no_cfs", "step", 4].cfs_weight == 0
    assert jobs["int_dense2", "step", 3].selector.variant == "dense2"
    step = jobs["evos_no_cfs", "step", 3].selector
    assert (step.keep_ratio, step.keep_schedule) == (0.2, "step")
    assert all((made.lr, made.run.field, made.field.hidden_features) == (0.5, "finer", 8) for made in jobs.values())
    assert jobs["soft", "constant", 4].run.seed == 4


def test_a_strategy_takes_other_options_of_its_own_after_colons():
    rows = "evos:crossover=add:mutation_ratio=0.2:cfs_ratio=1,full:field=finer,evos:field.omega=10,soft_raw,nint"
    options = parse(["--strategies", rows, "--field.hidden_features", "8"], CompareConfig)
    assert isinstance(options.run, CompareConfig)
    jobs = {job.strategy: job.options for job in make_jobs(options.run, options)}
    evos = jobs["evos:crossover=add:mutation_ratio=0.2:cfs_ratio=1"]
    assert (evos.selector.crossover, evos.selector.mutation_ratio, evos.run.cfs_ratio) == ("add", 0.2, 1)
    assert (evos.selector.keep_ratio, evos.field.hidden_features) == (0.5, 8)
    # Options of a field are not another one's.
    finer = jobs["full:field=finer"]
    assert (finer.run.field, finer.field.hidden_features, finer.lr) == ("finer", 256, 5e-4)
    assert jobs["evos:field.omega=10"].field.omega == 10
    assert jobs["soft_raw"].selector.pixel_gradient and jobs["nint"].selector.name == "nint"


def test_the_ablations_of_evos_are_one_command():
    options = parse(["--config", str(ROOT / "configs" / "image_regression" / "evos_ablation.txt")], CompareConfig)
    assert isinstance(options.run, CompareConfig)
    jobs = {job.strategy: job.options for job in make_jobs(options.run, options)}
    evos = jobs["evos"].resolved()
    kinds = ("selector.crossover", "selector.mutation_ratio", "selector.mutation_schedule", "selector.key_interval")
    for kind in (*kinds, "cfs_weight", "cfs_ratio", "field"):
        others = {options.resolved()[kind] for name, options in jobs.items() if name.startswith("evos")}
        assert len(others - {evos[kind]}) >= 1, kind
    assert {"full", "uniform", "nint", "soft", "soft_raw"} < set(jobs)


@pytest.mark.parametrize(
    ("at", "steps", "expected"),
    [("1000,2000,5000", 5000, [1000, 2000, 5000]), ("1000,2000", 1500, [1000, 1500]), ("", 7, [7]), ("5,5", 7, [5, 7])],
)
def test_the_last_step_is_always_listed(at, steps, expected):
    options = parse(["--at_steps", at, "--steps", str(steps)], CompareConfig)
    assert isinstance(options.run, CompareConfig)
    assert listed_steps(options.run) == expected
    every = make_jobs(options.run, options)[0].options.run.eval_every
    assert every and all(step % every == 0 for step in expected)


def test_the_time_to_a_quality_is_interpolated():
    curve = [{"seconds": 10.0 * i, "psnr": 20.0 + i * i} for i in range(1, 4)]  # 21, 24, 29
    assert seconds_to(24, curve) == 20
    assert seconds_to(26, curve) == pytest.approx(20 + 10 * 2 / 5)
    assert seconds_to(15, curve) == 10  # before its first evaluation nothing is known
    assert seconds_to(30, curve) is None and seconds_to(30, []) is None
    dips = [{"seconds": 1.0, "psnr": 20.0}, {"seconds": 2.0, "psnr": 18.0}, {"seconds": 3.0, "psnr": 22.0}]
    assert seconds_to(21, dips) == pytest.approx(2 + 3 / 4)
    full = {"psnr": 26.0, "train_seconds": 48.0}
    assert reach_full({"curve": curve}, full) == pytest.approx(0.5) and reach_full({"curve": curve}, None) is None


@pytest.mark.dist
@pytest.mark.slow
def test_several_devices_share_the_runs_stop_together_and_go_on(tmp_path, tiny, pictures, start):
    out = tmp_path / "out"
    options = [*tiny, "--input", str(pictures), "--out", str(out), "--devices", "cpu,cpu", "--seeds", "0,1"]
    options += ["--strategies", "full,uniform", "--steps", "100", "--save_every", "5"]
    program = start(*options, program="compare")
    end = monotonic() + 120
    while not list(out.glob("*/*/checkpoint.pt")):
        assert monotonic() < end, program.stderr
        sleep(0.01)
    program.kill(signal.SIGTERM)
    assert program.wait() == 143, program.stderr
    assert program.stderr == "stopped; the same command goes on\n"
    assert len(list(out.glob("*/*/metrics.json"))) < 8 and not (out / "table.csv").exists()
    program = start(*options, program="compare")
    assert program.wait() == 0, program.stderr
    for key, row in table(out).items():
        runs = metrics_of(out, "-".join(key) + "-*")
        assert len(runs) == 4 and float(row["psnr@100"]) == pytest.approx(mean(run["psnr"] for run in runs))
    assert "Traceback" not in program.stderr and os.listdir(out / "a_png")


@pytest.fixture
def perfect(monkeypatch) -> None:
    """Every fit is a perfect one."""
    monkeypatch.setattr(
        "image_regression.pictures.image_metrics", lambda *args, **kwargs: {"psnr": math.inf, "ssim": 1.0}
    )


@pytest.mark.usefixtures("no_report", "perfect")
@pytest.mark.parametrize("seeds", ["0", "0,1"])
def test_a_comparison_of_perfect_fits_goes_on(tmp_path, tiny, pictures, seeds):
    out = tmp_path / "out"
    argv = [*tiny, *STEPS, "--input", str(pictures), "--out", str(out), "--devices", "cpu", "--seeds", seeds]
    argv += ["--strategies", "full,uniform"]
    main(argv)
    first = table(out)
    assert {row["psnr@12"] for row in first.values()} == {"inf"} and first["full", "constant"]["psnr_spread"] == ""
    main(argv)
    assert table(out) == first
    assert {read_json(path)["psnr"] for path in out.glob("*/*/metrics.json")} == {math.inf}


def test_a_perfect_fit_takes_the_seconds_of_the_evaluation_that_shows_it():
    curve = [{"seconds": 1.0, "psnr": 20.0}, {"seconds": 3.0, "psnr": math.inf}]
    assert seconds_to(math.inf, curve) == 3 and seconds_to(25, curve) == 3 and seconds_to(15, curve) == 1


@pytest.mark.usefixtures("no_report")
@pytest.mark.parametrize("devices", ["cpu", pytest.param("cpu,cpu", marks=[pytest.mark.dist, pytest.mark.slow])])
def test_a_damaged_picture_costs_no_comparison(tmp_path, tiny, pictures, capsys, devices):
    folder = tmp_path / "pictures"
    shutil.copytree(pictures, folder)
    (folder / "aa.png").write_bytes((pictures / "a.png").read_bytes()[:60])
    argv = [*tiny, *STEPS, "--input", str(folder), "--devices", devices, "--strategies", "full,uniform"]
    with pytest.raises(SystemExit, match="2"):
        main([*argv, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert [line for line in printed.err.splitlines() if "error" in line] == [
        line for line in printed.err.splitlines() if line.startswith(f"error: {folder / 'aa.png'}: got a truncated")
    ]
    assert printed.err.count("error: ") == 1
    for key, row in table(tmp_path / "out").items():
        runs = metrics_of(tmp_path / "out", "-".join(key) + "-0")
        assert len(runs) == 2 and float(row["psnr@12"]) == pytest.approx(mean(run["psnr"] for run in runs))


def test_a_comparison_of_damaged_pictures_alone_is_one_line(tmp_path, refused, tiny):
    (tmp_path / "a.png").write_bytes(b"no picture")
    argv = [*tiny, *STEPS, "--input", str(tmp_path / "a.png"), "--devices", "cpu", "--out", str(tmp_path / "out")]
    assert "not an image" in refused(*argv, program=main)


def test_options_of_one_selector_are_refused_in_a_comparison(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--out", str(tmp_path / "out"), "--selector.keep_ratio", "0.1"])
    assert "--strategies" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# ---- config files


@pytest.fixture(scope="module")
def of_configs(tmp_path_factory, pictures) -> tuple[Path, list[str]]:
    """The folder of a comparison of two config files and the command that made it."""
    folder = tmp_path_factory.mktemp("configs")
    (folder / "val.txt").write_text("# values\nselector = full\nfactor = 2\nsteps = 30\nfield.omega = 20\n")
    (folder / "both.txt").write_text("# both\nselector = full\nfactor = 2\nsupervision = val_der\nsteps = 40\n")
    argv = ["--quiet", "--field.hidden_features", "16", "--lpips", "false", "--device", "cpu", "--steps", "6"]
    argv += ["--configs", f"{folder / 'val.txt'},{folder / 'both.txt'}", "--seeds", "0,1", "--devices", "cpu"]
    argv += ["--inputs", f"{pictures / 'a.png'},{pictures / 'b.webp'}", "--out", str(folder / "out")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("image_regression.run.write_report", lambda *args: None)
        main(argv)
    return folder / "out", argv


def test_every_config_is_run_on_every_input_and_the_command_line_beats_it(of_configs):
    out, _ = of_configs
    runs = {str(path.parent.relative_to(out)): json.loads(path.read_text()) for path in out.glob("*/*/metrics.json")}
    assert set(runs) == {
        f"{name}/{config}-{s}" for name in ("a_png", "b_webp") for config in ("val", "both") for s in "01"
    }
    for name, metrics in runs.items():
        options = metrics["options"]
        own = ("val", 20.0) if "val" in name else ("val_der", 30.0)
        assert (options["supervision"], options["field.omega"]) == own
        assert (options["steps"], options["factor"], options["field.hidden_features"]) == (6, 2, 16)
        assert options["seed"] == int(name[-1])


def test_the_table_of_configs_has_a_column_for_each_input(of_configs):
    out, _ = of_configs
    with (out / "table.csv").open() as file:
        rows = {(row["config"], row["input"]): row for row in csv.DictReader(file)}
    for (config, column), row in rows.items():
        runs = metrics_of(out, f"{config}-*", column)
        assert row["runs"] == "2" and len(runs) == 2
        values = [run["held_out_psnr"] for run in runs]
        assert float(row["held_out_psnr"]) == pytest.approx(mean(values))
        assert float(row["held_out_psnr_spread"]) == pytest.approx(stdev(values))
    lines = [line.strip("| ").split(" | ") for line in (out / "table.md").read_text().splitlines() if "|" in line]
    assert lines[0] == ["config", "a_png", "b_webp", "mean", "seconds"]
    assert [line[0] for line in lines[2:]] == ["val", "both"]
    for line in lines[2:]:
        parts = [rows[line[0], column] for column in ("a_png", "b_webp")]
        first = float(parts[0]["held_out_psnr"])
        assert line[1].startswith(f"{first:.2f} ± {float(parts[0]['held_out_psnr_spread']):.2f} / ")
        assert line[3].split(" / ")[0] == f"{mean(float(part['held_out_psnr']) for part in parts):.2f}"
    assert (out / "psnr_over_time.png").exists()


def test_a_comparison_of_configs_goes_on_where_it_stopped(of_configs):
    out, argv = of_configs
    table_before = (out / "table.csv").read_text()
    gone = out / "b_webp" / "both-1" / "metrics.json"
    before = {path: path.stat().st_mtime_ns for path in out.glob("*/*/metrics.json")}
    gone.unlink()
    main(argv)
    assert [path for path in before if path.stat().st_mtime_ns != before[path]] == [gone]
    assert (out / "table.csv").read_text() == table_before


def test_inputs_and_configs_of_one_name_are_refused(tmp_path, refused, pictures):
    other = tmp_path / "a.png"
    other.write_bytes((pictures / "a.png").read_bytes())
    out = ["--out", str(tmp_path / "out"), "--device", "cpu"]
    assert "--inputs: got a_png" in refused("--inputs", f"{other},{pictures}", *out, program=main)
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "c.txt").write_text("# c\nselector = full\n")
    configs = f"{tmp_path / 'x' / 'c.txt'},{tmp_path / 'y' / 'c.txt'}"
    assert "--configs: got" in refused("--configs", configs, *out, program=main)
    assert not (tmp_path / "out").exists()
