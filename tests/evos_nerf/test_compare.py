"""The comparison with nerfstudio's own sampler: what curves say, what ns-train is asked for, and (slow) all of it."""

import json
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from evos.errors import InputError
from evos_nerf import compare
from evos_nerf.compare import CompareConfig, check_words, main, measured, reached, smoothed, training_options, verdict
from evos_nerf.demo import refusal

pytestmark = [pytest.mark.nerf, pytest.mark.filterwarnings("ignore")]


def line(end: float, *, bend: float = 0.0, seconds: float = 0.1) -> list[list[float]]:
    """A curve of ten evaluations from 10 dB to ``end``, above the straight line by at most a fourth of ``bend``."""
    parts = np.arange(1, 11) / 10
    return [[100 * i, 100 * i * seconds, 10 + (end - 10) * x + bend * x * (1 - x)] for i, x in enumerate(parts, 1)]


def curves(gains: list[float], **options: float) -> dict:
    """Curves of both sides, EVOS' end above nerfstudio's 20 dB, give or take the seed, by ``gains``."""
    seeds = {str(seed): 20 + 0.1 * seed for seed in range(len(gains))}
    return {
        "host": {seed: line(end) for seed, end in seeds.items()},
        "tiles": {seed: line(end + gain, **options) for (seed, end), gain in zip(seeds.items(), gains, strict=True)},
    }


def test_a_smoothed_curve_is_the_nearest_one_that_never_falls():
    wavy = [[step, step / 10, psnr] for step, psnr in enumerate([1.0, 3.0, 2.0, 4.0, 7.0, 5.0, 6.0], 1)]
    assert smoothed(wavy) == pytest.approx([1, 2.5, 2.5, 4, 6, 6, 6])
    # The end is the mean of the last three, reached with the first of them; nothing above it ever is.
    assert reached(wavy, 6) == pytest.approx((5, 0.5))
    assert reached(wavy, 5) == pytest.approx((4.5, 0.45))
    assert reached(wavy, 0) == (1, 0.1)
    assert reached(wavy, 6.01) is None


def test_a_win_is_measured_against_what_nerfstudio_takes_itself():
    found = measured(*curves([1.0, 2.0, 3.0], seconds=0.2).values())
    assert found["gains_db"] == pytest.approx([1, 2, 3])
    assert (found["gain_db"], found["std_db"]) == pytest.approx((2, 1))
    assert found["p"] == pytest.approx(0.0742, abs=1e-4)  # t = 2 √3 with two degrees of freedom
    assert found["fractions"][0] == pytest.approx([10 / 11, 2 * 10 / 11])


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        (
            [1.0, 1.1, 0.9],
            "EVOS pays here (3 seeds, p = 0.0033): EVOS ends 1.00 ± 0.10 dB above nerfstudio's own sampler and reaches "
            "that end in 0.91 of the steps and 0.91 of the time.",
        ),
        (
            [-1.0, -1.1, -0.9],
            "EVOS does not pay here (3 seeds, p = 0.0033): EVOS ends 1.00 ± 0.10 dB below nerfstudio's own sampler and "
            "never reaches that end.",
        ),
        (
            [0.5, -0.4, 0.1],
            "Not significant at 3 seeds (p = 0.82): EVOS ends 0.07 ± 0.45 dB above nerfstudio's own sampler and "
            "reaches that end in 2 of 3 runs.",
        ),
        (
            [1.0],
            "Not significant at 1 seed, which says nothing of chance: EVOS ends 1.00 dB above nerfstudio's own sampler "
            "and reaches that end in 0.91 of the steps and 0.91 of the time.",
        ),
    ],
)
def test_the_verdict_is_one_sentence_that_says_what_the_seeds_allow(gains, sentence):
    assert verdict(curves(gains)) == sentence


def test_curves_that_are_equal_are_no_difference():
    assert verdict(curves([0.0, 0.0])).startswith("Not significant at 2 seeds (p = nan): EVOS ends 0.00 ± 0.00 dB")


def test_a_slower_end_that_is_reached_late_takes_more_of_the_time_than_of_the_steps():
    assert "0.80 of the steps and 1.20 of the time" in verdict(curves([2.5, 2.5], seconds=0.15))


def test_both_sides_are_asked_for_the_same_but_the_sampler(tmp_path):
    config = CompareConfig(data="scene", steps=100, tests=3, rays=7)
    host, tiles = (training_options(config, side, "5", tmp_path) for side in compare.SIDES)
    assert {name for name in host if host[name] != tiles[name]} == {compare.SELECTOR, "experiment-name"}
    assert (host[compare.SELECTOR], tiles[compare.SELECTOR], host["machine.seed"]) == ("host", "tiles", "5")
    # Steps 33, 66 and 99 of 0 to 99 are evaluated, the last among them.
    assert (host["steps-per-eval-all-images"], host["max-num-iterations"]) == (33, 100)
    assert host["pipeline.datamanager.train-num-rays-per-batch"] == 7


def test_words_for_ns_train_may_not_set_what_the_comparison_sets():
    taken = training_options(CompareConfig(), "host", "0", Path("out"))
    check_words(["--pipeline.model.num-levels", "4", "blender-data", "--data-x", "y"], taken)
    for word in ("--machine.seed", "--max_num_iterations=3"):
        with pytest.raises(InputError, match=f"^-- {word}: got an option that the comparison sets"):
            check_words([word], taken)


def test_what_ns_train_refuses_is_one_line_of_its_log():
    box = ["loading", "╭─ Unrecognized options ──╮", "│ Unrecognized options: --foo  │", "│ For help, run  │", "╰──╯"]
    assert refusal(box) == "Unrecognized options: --foo"
    assert refusal(["a", "error: --data: got x; allowed: y", "b"]) == "--data: got x; allowed: y"
    assert refusal(["a traceback", "ValueError: error: no"]) is None


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """ns-train and what is read of its run replaced: the trainings done, and what ends others."""
    trained: list[tuple[str, str]] = []
    failing: dict[tuple[str, str], BaseException] = {}

    def call(program, words, log, progress):
        side, seed = words[words.index(f"--{compare.SELECTOR}") + 1], words[words.index("--machine.seed") + 1]
        if (side, seed) in failing:
            raise failing[side, seed]
        trained.append((side, seed))
        log.parent.mkdir(parents=True)

    monkeypatch.setattr(compare, "call", call)
    monkeypatch.setattr(compare, "check_method", lambda name: None)
    monkeypatch.setattr(compare, "read_curve", lambda run: line(21 if "tiles-" in str(run) else 20))
    monkeypatch.setattr(compare, "write_rays", lambda path, run: None)
    return trained, failing


def test_a_stopped_comparison_goes_on_and_takes_more_seeds(stub, tmp_path, capsys):
    trained, failing = stub
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "0,1"]
    failing["tiles", "1"] = KeyboardInterrupt()
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 130 and "--resume goes on" in capsys.readouterr().err
    assert trained == [("host", "0"), ("tiles", "0"), ("host", "1")]
    failing.clear()
    main([*words[:-1], "0,1,2", "--resume"])
    assert trained[3:] == [("tiles", "1"), ("host", "2"), ("tiles", "2")]
    result = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert list(result["curves"]["tiles"]) == ["0", "1", "2"] and result["gain_db"] == pytest.approx(1)
    assert (tmp_path / "out" / "summary.md").read_text().startswith(result["verdict"])
    with PIL.Image.open(tmp_path / "out" / "psnr_over_time.png") as picture:
        assert picture.size == (1100, 440)


def test_what_ns_train_refuses_leaves_no_folder_behind(stub, tmp_path):
    _, failing = stub
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "0,1"]
    for refused, stays in ((("host", "0"), False), (("host", "1"), True)):
        failing.clear()
        failing[refused] = SystemExit(2)
        with pytest.raises(SystemExit) as caught:
            main(words)
        assert caught.value.code == 2 and (tmp_path / "out").exists() is stays


def test_a_folder_is_left_alone_unless_it_is_to_be_replaced_or_continued_with_the_same(stub, tmp_path, capsys):
    trained, _ = stub
    words = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "0"]
    main(words)
    for more, line_ in (
        ([], "a new folder, or --resume, or --overwrite"),
        (["--resume", "--steps", "77"], "3000 as "),
        (["--resume", "--", "blender-data"], "--words: got blender-data"),
    ):
        with pytest.raises(SystemExit) as caught:
            main([*words, *more])
        assert caught.value.code == 2 and line_ in capsys.readouterr().err
    assert len(trained) == 2
    main([*words, "--overwrite"])
    assert len(trained) == 4


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "error: --data: got None; allowed: the folder of a scene"),
        (["--data", "nowhere"], "error: --data: got nowhere; allowed: the folder of a scene"),
        (["--data", ".", "--steps", "2"], "error: --steps: got 2; allowed: at least 3"),
        (["--data", ".", "--tests", "3000"], "error: --tests: got 3000; allowed: at least 1 and at most 2999"),
        (["--data", ".", "--seeds", "1,x"], "error: --seeds: got 1,x; allowed: whole numbers below 2^32, separated"),
        (["--data", ".", "--device", "gpu"], "error: --device: got gpu; allowed: "),
        (["--data", ".", "--step", "9"], "error: option: got --step; allowed: did you mean --steps?"),
        (["--data", ".", "--", "--machine.seed", "3"], "error: -- --machine.seed: got an option that the comparison"),
        (
            ["--data", ".", "--method", "nerfacto"],
            "error: --method: got nerfacto; allowed: did you mean evos-nerfacto",
        ),
        (["--data", ".", "--method", "splatfacto"], "error: --method: got splatfacto; allowed: "),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith(said) and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_small_comparison_ends_with_curves_pictures_and_a_verdict(blender_scene, tmp_path, capsys):
    if not Path(sys.executable).with_name("ns-train").exists():
        pytest.skip("no ns-train beside python")
    small = {"num-levels": "2", "log2-hashmap-size": "10", "num-nerf-samples-per-ray": "4"}
    model = [word for name, value in small.items() for word in (f"--pipeline.model.{name}", value)]
    out = tmp_path / "out"
    words = ["--data", str(blender_scene), "--out", str(out), "--steps", "20", "--tests", "3", "--rays", "32"]
    main([*words, "--seeds", "0", "--device", "cpu", "--", *model, "blender-data"])
    result = json.loads((out / "metrics.json").read_text())
    for side in ("host", "tiles"):
        found = np.array(result["curves"][side]["0"])
        assert found[:, 0].tolist() == [7, 13, 19]
        assert (np.diff(found[:, 1]) > 0).all() and (found[:, 2] > 3).all()
    # The same start; other rays.
    assert result["curves"]["host"] != result["curves"]["tiles"]
    assert result["verdict"].startswith("Not significant at 1 seed") and result["verdict"] in capsys.readouterr().out
    for picture, size in (("psnr_over_time.png", (1100, 440)), ("images/rays.png", (1320, 440))):
        with PIL.Image.open(out / picture) as opened:
            assert opened.size == size
