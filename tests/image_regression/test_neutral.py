"""The neutral benchmark: its statistics against closed forms and scipy, and tiny runs of the whole."""

import json
import math
import sys
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy import stats

from evos.errors import InputError
from evos.images import read_image
from evos.selection import SELECTORS, UniformConfig, UniformSelector
from image_regression.options import PARTS

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT / "benchmarks"))  # as its scripts have it

import common  # noqa: E402
import neutral  # noqa: E402
import neutral_pareto as pareto  # noqa: E402
import neutral_report as report  # noqa: E402
import neutral_search  # noqa: E402
import neutral_suites as suites  # noqa: E402

TINY = ["--sizes", "16", "--steps", "3", "6", "--ratios", "0.5", "--seeds", "0", "--threads", "1", "--device", "cpu"]


def curve(*psnrs: float, seconds: float = 1.0, points: float = 100.0) -> list[dict[str, float]]:
    return [
        {"step": i, "seconds": seconds * i, "cpu_seconds": seconds * i / 2, "points": points * i, "psnr": psnr}
        for i, psnr in enumerate(psnrs)
    ]


def contender(strategy: str = "uniform", steps: int = 2) -> report.Contender:
    return report.Contender("paper", "0.5", 16, "siren", strategy, steps)


def run(strategy: str, psnrs: list[float], seed: int = 0, name: str = "a", **costs: float) -> report.Run:
    line = curve(*psnrs, **costs)
    return report.Run(contender(strategy, len(psnrs) - 1), name, seed, 1e-4, False, line, "commit")


# ---- statistics


def test_psnr_between_evaluations_is_interpolated_and_a_finished_run_keeps_its_last():
    line = curve(10, 20, 24, seconds=2.0)
    assert report.psnr_at(line, "seconds", 3.0) == pytest.approx(22)
    assert report.psnr_at(line, "points", 50) == pytest.approx(15)
    assert report.psnr_at(line, "cpu_seconds", 99) == 24


def test_at_equal_cost_the_best_length_of_run_counts():
    short, long = curve(10, 30, 31), curve(10, 20, 25, 40)
    assert report.best_at([short, long], "seconds", 2) == 31
    assert report.best_at([short, long], "seconds", 3) == 40
    assert report.least_seconds([short, long], "seconds", 25) == pytest.approx(0.75)
    assert report.least_seconds([short, long], "cpu_seconds", 35.5) == pytest.approx((2 + 10.5 / 15) / 2)
    assert report.least_seconds([short, long], "seconds", 41) == math.inf


def test_the_spread_is_that_of_the_seeds_means_over_inputs():
    table = np.random.default_rng(0).normal(30, 3, (4, 3))
    values = {(f"picture {i}", j): float(table[i, j]) for i in range(4) for j in range(3)}
    found = report.summary(values)
    assert found["mean"] == pytest.approx(table.mean())
    assert found["spread"] == pytest.approx(table.mean(0).std(ddof=1))
    assert (found["reached"], found["of"]) == (12, 12)


def test_a_mean_over_runs_that_did_not_get_there_is_none():
    assert report.summary({("a", 0): 3.0, ("b", 0): math.inf}) == {"mean": None, "spread": None, "reached": 1, "of": 2}


@pytest.mark.parametrize("count", [1, 5, 12])
def test_gains_of_one_sign_have_the_p_of_as_many_coins(count):
    assert report.signed_rank([1 + i / 7 for i in range(count)]) == pytest.approx(min(1, 2 * 0.5**count))


def test_the_test_is_scipys_and_blind_to_the_sign():
    differences = np.random.default_rng(0).normal(0.5, 1, 11)
    expected = stats.wilcoxon(differences, method="exact").pvalue
    assert report.signed_rank(differences) == pytest.approx(expected)
    assert report.signed_rank(-differences) == pytest.approx(expected)


def test_no_difference_at_all_is_no_evidence():
    assert report.signed_rank([0.0, 0.0, 0.0]) == 1.0


def test_never_to_get_there_is_slower_than_any_time():
    theirs = {("a", seed): 1.0 + seed for seed in range(6)}
    slow = {pair: 10 * seconds for pair, seconds in theirs.items()}
    never = {**slow, ("a", 2): math.inf}
    expected = report.paired({**slow, ("a", 2): 1e6}, theirs, logarithmic=True)
    found = report.paired(never, theirs, logarithmic=True)
    assert found == {"ratio": pytest.approx(10), "p": pytest.approx(expected["p"]), "pairs": 5}
    both = {**theirs, ("a", 2): math.inf}
    assert report.paired(both, both, logarithmic=True) == {"ratio": pytest.approx(1), "p": 1.0, "pairs": 5}


def test_ratios_are_averaged_as_ratios_and_differences_as_differences():
    mine, theirs = {("a", 0): 2.0, ("a", 1): 8.0}, {("a", 0): 1.0, ("a", 1): 16.0}
    assert report.paired(mine, theirs, logarithmic=True)["ratio"] == pytest.approx(1)
    assert report.paired(mine, theirs, logarithmic=False)["difference"] == pytest.approx(-3.5)


def test_a_contest_is_ranked_at_the_cost_of_the_longest_uniform_run():
    runs = [run("full", [10, 20, 30, 40], seed, seconds=2.0, points=200) for seed in (0, 1)]
    runs += [run("uniform", [10, 18, 26, 34 + seed], seed) for seed in (0, 1)]
    runs += [run("fast", [10, 30, 35, 50], seed, seconds=0.5) for seed in (0, 1)]
    (contest,) = report.contests(runs, [2], [30], "seconds")
    assert [row["strategy"] for row in contest["rows"]] == ["fast", "uniform", "full"]
    fast, uniform, full = contest["rows"]
    # In the 3 s of uniform the full run is at step 1.5.
    assert full["measures"]["psnr@1 seconds"]["mean"] == full["measures"]["psnr@1 points"]["mean"] == pytest.approx(25)
    assert full["measures"]["psnr@2"]["mean"] == 30
    assert full["against"]["uniform"]["psnr@1 seconds"]["difference"] == pytest.approx(-9.5)
    assert fast["measures"]["psnr@0.5 seconds"]["mean"] == 50
    assert fast["against"]["full"]["seconds to 30"]["ratio"] == pytest.approx(0.5 / 4)
    assert fast["against"]["uniform"]["seconds to 30"]["p"] == pytest.approx(0.5)
    assert uniform["measures"]["psnr@3"]["spread"] == pytest.approx(math.sqrt(0.5))
    assert set(uniform["against"]) == {"full"}


def test_any_strategy_can_be_the_one_that_others_are_tested_against():
    runs = [run(name, [10, 20, end], name=place) for place in "ab" for name, end in (("evos", 30), ("nint", 33))]
    (contest,) = report.contests(runs, [], [25], "seconds", ["evos"])
    best, other = contest["rows"]
    assert best["against"]["evos"]["psnr@2"]["difference"] == pytest.approx(3) and other["against"] == {}
    assert "| - evos |" in report.tables([contest]) and "| / evos |" in report.tables([contest])


def test_tables_name_every_entrant_its_loss_and_the_end_of_a_search():
    runs = [run("full", [10, 20, 30]), run("uniform", [10, 15, 28]), run("uniform", [10, 16, 29], name="b")]
    runs.append(run("full", [10, 20, 27], name="b"))
    text = report.tables(report.contests(runs, [], [28, 50], "seconds"), [contender("full")])
    assert "| siren | full | no | 1 (+0.00) | 1.0 |" in text and "| siren | uniform | no | 2 (-) | 2.0 |" in text
    assert "1.0e-04* |" in text and "1.0e-04 |" in text
    assert "s to 28" in text and "1 of 2" in text and "s to 50" not in text


def test_the_plot_is_a_picture_with_a_panel_for_each_contest(tmp_path):
    runs = [run("full", [10, 20, 30]), run("uniform", [10, 15, 28]), run("uniform", [10, 0], name="b")]
    report.write_plot(tmp_path / "one.png", runs, "seconds")
    other = [replace(each, contender=replace(each.contender, keep="0.25")) for each in runs]
    report.write_plot(tmp_path / "two.png", [*runs, *other], "seconds")
    one, two = (read_image(tmp_path / f"{name}.png").pixels.shape[:2] for name in ("one", "two"))
    assert two == (2 * one[0], one[1])


# ---- what is compared


def result(*measured: tuple[str, int, float | None], inputs: tuple[str, ...] = ("/data/00.png",)) -> dict:
    rows = [
        {"field": field, "strategy": "error", "lr": {"9": 1e-3}, "measures": {"seconds to 35": {"mean": seconds}}}
        for field, _, seconds in measured
    ]
    contest = {"recipe": "fast", "keep": "recipe", "size": 16, "rows": rows}
    sizes = {f"fast recipe 16 {field} error 9": parameters for field, parameters, _ in measured}
    return {"protocol": {"inputs": list(inputs)}, "parameters": sizes, "contests": [contest]}


def test_the_front_is_what_nothing_smaller_beats_in_time(tmp_path):
    slow = result(("siren", 100, 9.0), ("wire", 200, None))
    quick = result(("hashgrid", 300, 1.0), ("finer", 100, 8.0), ("gauss", 300, 2.0), ("mlp", 400, 1.5))
    found = pareto.entrants([slow, quick], 35)
    assert "wire, fast, error" not in {each.name for each in found}  # one of its runs never had 35 dB
    assert [each.name.split(",")[0] for each in pareto.front(found)] == ["finer", "hashgrid"]
    pareto.write_picture(tmp_path / "front.png", found, 35)
    assert read_image(tmp_path / "front.png").pixels.shape[:2] == (450, 700)


def test_results_of_other_inputs_are_not_drawn_together():
    with pytest.raises(InputError, match="the same inputs"):
        pareto.entrants([result(("siren", 1, 1.0)), result(("siren", 1, 1.0), inputs=("/data/01.png",))], 35)


def test_options_of_a_variant_go_to_the_run_or_to_its_selector():
    assert suites.strategy_options("evos:cfs_weight=0,crossover=add,compile") == {
        "selector": "evos",
        "cfs_weight": "0",
        "selector.crossover": "add",
        "compile": "true",
    }
    with pytest.raises(InputError, match="did you mean uniform"):
        suites.strategy_options("unifrom")


def test_a_config_file_is_a_recipe_without_its_selection(tmp_path):
    path = tmp_path / "mine.txt"
    path.write_text("selector = uniform\nselector.keep_ratio = 0.1\nsteps = 7\nlr = 0.002\ndecay = 0.1\n")
    recipe, names = suites.recipe_of(str(path))
    assert recipe == suites.Recipe({"decay": "0.1"}, {"siren": 0.002}) and names == {"transform": "min_max"}


def test_a_config_files_budget_of_parameters_may_have_a_unit(tmp_path):
    path = tmp_path / "small.txt"
    path.write_text("recipe = compact\nparameters = 50k\n")
    recipe, _ = suites.recipe_of(str(path), "hashgrid")
    assert (recipe.sizes, recipe.parameters) == ("compact", 50_000)


def test_every_selector_there_is_has_a_row_by_its_name():
    pictures_have = {name: name for name in SELECTORS if name not in ("tiles", "tile_error")}
    assert {name: suites.strategies()[name]["selector"] for name in pictures_have} == pictures_have
    assert "tiles" not in suites.strategies()  # its cells are tiles of many images


def test_the_full_run_is_the_same_whatever_share_the_others_keep():
    half, quarter = (replace(contender("full"), keep=keep) for keep in ("0.5", "0.25"))
    suite = suites.SUITES["small"]
    assert suites.options_of(half, suite, 1e-3, 0) == suites.options_of(quarter, suite, 1e-3, 0)
    others = [suites.options_of(replace(each, strategy="uniform"), suite, 1e-3, 0) for each in (half, quarter)]
    assert [each.selector.keep_ratio for each in others] == [0.5, 0.25]


def test_glyphs_are_dark_strokes_on_white():
    page = suites.glyphs(40).values
    assert set(page.unique().tolist()) == {0.0, 1.0} and 0.1 < float((page == 0).float().mean()) < 0.3


def test_clouds_have_a_photos_spectrum():
    picture = suites.clouds(64).values.view(64, 64, 3).double()
    assert picture.min() == 0 and picture.max() == 1
    power = np.abs(np.fft.fft2(picture[..., 0].numpy() - picture[..., 0].mean().item())) ** 2
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(64)] * 2))
    inside = (frequency > 0.04) & (frequency < 0.4)
    slope = np.polyfit(np.log(frequency[inside]), np.log(power[inside]), 1)[0]
    assert slope == pytest.approx(-2, abs=0.2)


@pytest.mark.parametrize("name", suites.SUITES)
def test_no_rate_is_searched_on_what_is_reported(name):
    suite, data = suites.SUITES[name], ROOT.parent / "shared" / "data"
    built_in = set(suite.inputs.split()) <= set(suites.BUILT_IN)
    if not built_in and not data.is_dir():
        pytest.skip("needs the shared data")
    reported, searched = (suites.find(inputs, data, None) for inputs in (suite.inputs, suite.search))
    assert reported and searched and not set(reported) & set(searched)
    size = 32768 if name == "sound" else 16  # recordings begin with silence, all alike
    shown, others = ([suites.signal_of(each, size).values for each in names[:4]] for names in (reported, searched))
    assert not any(torch.equal(one, other) for one in shown for other in others)


# ---- the search of the learning rate


def searched(psnr_of, start: int = 2, limit: int = 5) -> neutral_search.Search:
    """A whole search where a rate of 2^exponent ends at psnr_of(exponent) dB."""
    search, allowed = neutral_search.Search(1e-3), neutral_search.Range(start, limit)
    while tries := search.untried(allowed):
        search.psnrs |= {each: [psnr_of(each)] for each in tries}
    return search


@pytest.mark.parametrize("peak", [-5, -4, -2, 0, 1, 2, 3, 5])
def test_the_search_finds_a_peak_anywhere_within_its_limit(peak):
    search = searched(lambda exponent: 30 - (exponent - peak) ** 2)
    assert search.best() == peak and search.lr(search.best()) == pytest.approx(1e-3 * 2.0**peak)
    # It ends one beyond the best on either side, or at its limit, and goes no further.
    assert min(search.psnrs) == max(-5, min(-2, peak - 1)) and max(search.psnrs) == min(5, max(2, peak + 1))
    assert search.open() == (abs(peak) == 5)


@pytest.mark.parametrize("sign", [-1, 1])
def test_a_search_that_ends_at_its_limit_says_so(sign):
    search = searched(lambda exponent: sign * exponent)
    assert (search.best(), search.open()) == (sign * 5, True)


def test_rates_are_ranked_by_their_mean_over_inputs_and_the_lower_of_equals_is_taken():
    search = neutral_search.Search(1.0, {-1: [30.0, 30.0], 0: [40.0, 21.0], 1: [31.0, 31.0], 2: [62.0, 0.0]})
    assert search.best() == 1


def test_without_a_search_the_rate_is_the_recipes():
    search = neutral_search.Search(1e-3)
    assert search.lr(search.best()) == 1e-3 and not search.open()


# ---- the whole


@pytest.fixture
def training():
    """How runs are trained, under "train"."""
    return {"train": neutral.train}


@pytest.fixture
def optimum(training):
    """optimum(lr): from now on nothing trains, and a run ends the higher, the nearer its rate is to ``lr``."""

    def set_to(best: float):
        training["train"] = lambda signal, options, device, at: curve(
            10, *[30 - abs(math.log2(options.lr / best))] * len(at)
        )

    return set_to


@pytest.fixture
def bench(monkeypatch, tmp_path, training):
    """bench(*argv) -> (what the result holds, the runs made anew) of a benchmark with a tiny network and no plot."""
    small = replace(suites.SUITES["small"], values={"field.hidden_features": 8, "field.hidden_layers": 1})
    monkeypatch.setitem(neutral.SUITES, "small", small)
    monkeypatch.setattr(common, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(neutral, "write_plot", lambda *args: None)
    made = []

    def counted(signal, options, device, at):
        if options.run.steps in (3, 6) and options.field.hidden_features == 8:
            made.append((options.run.selector, options.run.steps, options.lr, options.run.seed, signal.name))
        return training["train"](signal, options, device, at)

    monkeypatch.setattr(neutral, "train", counted)

    def start(*argv: str):
        made.clear()
        threads = torch.get_num_threads()
        try:
            neutral.main([*TINY, "--out", str(tmp_path / "out"), "--name", "tiny", *argv])
        finally:
            torch.set_num_threads(threads)
        return json.loads((tmp_path / "results" / "tiny.json").read_text())["results"], list(made)

    return start


def test_a_strategy_of_one_more_file_is_ranked(bench, monkeypatch, tmp_path):
    @dataclass(frozen=True)
    class MineConfig(UniformConfig):
        name: ClassVar[str] = "mine"

    monkeypatch.setitem(SELECTORS, "mine", (MineConfig, UniformSelector))
    monkeypatch.setitem(PARTS["selector"], "mine", MineConfig)
    results, _ = bench("--recipes", "paper", "--inputs", "1", "--steps", "3")
    rows = {row["strategy"]: row for row in results["contests"][0]["rows"]}
    assert {*PARTS["selector"], "full_cfs", "evos_no_cfs"} <= set(rows) and "mine" in rows
    # It draws as uniform does: the same generator, the same PSNR.
    assert rows["mine"]["measures"]["psnr@3"] == rows["uniform"]["measures"]["psnr@3"]
    assert {name for name, row in rows.items() if row["cfs"]} >= {"evos", "full_cfs", "uniform_cfs"}
    assert not rows["evos_no_cfs"]["cfs"] and not rows["mine"]["cfs"]
    assert "mine" in (tmp_path / "out" / "tiny.md").read_text()


def test_strategies_alternate_and_each_searches_the_same_rates_on_another_input(bench, optimum):
    optimum(1e-3)
    _, made = bench("--recipes", "tuned", "--strategies", "full", "uniform")
    assert [name for name, *_ in made] == ["full", "uniform"] * (len(made) // 2)
    tried = [(name, steps, round(math.log2(lr / 1e-3))) for name, steps, lr, _, picture in made if picture == "clouds"]
    expected = {(name, steps, e) for name in ("full", "uniform") for steps in (3, 6) for e in range(-2, 3)}
    assert set(tried) == expected and len(tried) == len(expected)
    assert len(made) == len(expected) + 2 * 2 * 2  # and the best of each on both pictures


@pytest.mark.parametrize(("best", "tried"), [(1e-3, 5), (2.5e-4, 6), (1.6e-2, 8), (1e-4, 7)])
def test_the_rate_of_the_highest_final_psnr_is_used_everywhere_however_far(bench, optimum, best, tried):
    optimum(best)
    results, made = bench("--recipes", "tuned", "--strategies", "full", "--steps", "6")
    assert len([each for each in made if each[-1] == "clouds"]) == tried
    nearest = min((1e-3 * 2.0**e for e in range(-5, 6)), key=lambda lr: abs(math.log(lr / best)))
    used = {lr for *_, lr, _, picture in made if picture in ("astronaut", "glyphs")}
    assert used == {nearest} and results["contests"][0]["rows"][0]["lr"] == {"6": nearest}


def test_a_star_marks_only_the_search_that_hit_its_limit(bench, optimum, tmp_path):
    argv = ["--recipes", "tuned", "--strategies", "full", "--steps", "6"]
    optimum(2e-3)
    bench(*argv)
    assert "2.0e-03 |" in (tmp_path / "out" / "tiny.md").read_text()
    bench(*argv, "--lr_start", "1", "--lr_limit", "1")
    assert "2.0e-03* |" in (tmp_path / "out" / "tiny.md").read_text()


def test_a_search_of_no_rates_takes_the_recipes(bench):
    results, made = bench("--recipes", "tuned", "--strategies", "full", "--steps", "6", "--lr_start", "0")
    assert len(made) == 2 and results["contests"][0]["rows"][0]["lr"] == {"6": 1e-3} and results["searches"]


def test_the_same_command_makes_no_run_again_and_a_seed_more_only_its_own(bench):
    argv = ["--recipes", "paper", "--strategies", "full", "uniform"]
    first, made = bench(*argv)
    assert len(made) == 8
    again, made = bench(*argv)
    assert made == [] and again == first
    more, made = bench(*argv, "--seeds", "0", "1")
    assert len(made) == 8 and {seed for *_, seed, _ in made} == {1}
    assert more["contests"][0]["rows"][0]["measures"]["psnr@6"]["of"] == 4


def test_a_diverged_run_counts_as_0_db_and_ends_no_benchmark(bench, tmp_path):
    (tmp_path / "wild.txt").write_text("lr = 1e35\ndecay = 0.01\n")
    recipe = str(tmp_path / "wild.txt")
    results, _ = bench("--recipes", recipe, "--strategies", "full", "--lr_start", "0", "--inputs", "1")
    (row,) = results["contests"][0]["rows"]
    assert row["diverged"] == 2 and row["measures"]["psnr@6"]["mean"] == 0


def test_curves_count_points_and_begin_untrained(bench, tmp_path):
    bench("--recipes", "paper", "--strategies", "uniform", "--steps", "6", "--inputs", "1")
    (path,) = (tmp_path / "out").rglob("astronaut-16/*.json")
    line = json.loads(path.read_text())["curve"]
    assert [entry["step"] for entry in line] == list(range(7))
    assert [entry["points"] for entry in line] == [128 * step for step in range(7)]
    assert line[0]["seconds"] == line[0]["cpu_seconds"] == 0
    assert all(a["cpu_seconds"] < b["cpu_seconds"] for a, b in pairwise(line))


def test_what_a_schedule_refuses_is_left_out_with_a_notice(bench, capsys):
    results, _ = bench(
        "--recipes", "paper", "--strategies", "uniform", "soft", "--ratios", "0.5", "step", "--inputs", "1"
    )
    constant, step = results["contests"]
    assert {row["strategy"] for row in constant["rows"]} == {"uniform", "soft"}
    assert {row["strategy"] for row in step["rows"]} == {"uniform"}
    assert "notice: left out: soft, paper, step, siren: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (["--strategies", "unifrom"], "--strategies: got unifrom; allowed: did you mean uniform?"),
        (["--strategies", "evos:nonsense=1", "full"], "--selector.nonsense"),
        (["--recipes", "nonsense"], "--recipes: got nonsense"),
        (["--suite", "photos", "--data", "nowhere"], "--data: got nowhere; allowed: a folder with div2k"),
    ],
)
def test_a_wrong_name_is_one_line(argv, line, refused):
    assert line in refused(*TINY, *argv, program=neutral.main)
