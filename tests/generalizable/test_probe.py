"""The probe: classifiers on patterns beside the same on signals."""

import json

import numpy as np
import pytest

from generalizable.main import main
from generalizable.probe import accuracies, find_labels
from generalizable.probe import main as probe


def test_what_can_be_told_apart_is_told_apart_and_noise_is_not():
    chance = np.random.default_rng(0)
    labels = ["a", "b", "c"] * 20
    noise = chance.normal(size=(60, 30))
    apart = 0.1 * noise + np.array([0.0, 3.0, -3.0] * 20)[:, None]
    for name, folds in accuracies(apart, labels, 8, 0).items():
        assert len(folds) == 5 and min(folds) == 1.0, name
    for name, folds in accuracies(noise, labels, 8, 0).items():
        assert np.mean(folds) < 0.55, name
    # The middle one of three on a line is not linearly separable by a threshold, but the network sees it.
    found = accuracies(apart, ["in" if label == "a" else "out" for label in labels], 8, 0)
    assert np.mean(found["network"]) > 0.95 > np.mean(found["linear"])


@pytest.mark.parametrize(
    ("names", "pattern", "said"),
    [
        (["a/1", "b"], r"([^/]+)/[^/]*$", "which b does not match"),
        (["a/1", "a/2"], r"([^/]+)/[^/]*$", "1 labels, of a 2 signals"),
        ([f"{x}/{i}" for x in "ab" for i in range(4 + (x == "a"))], r"([^/]+)/[^/]*$", "2 labels, of b 4 signals"),
    ],
)
def test_labels_must_be_there_for_each_fold(names, pattern, said):
    with pytest.raises(Exception, match=said):
        find_labels(names, pattern)


def test_labels_are_the_folder_or_what_a_pattern_finds():
    names = [f"x/{digit}/{digit}_a_{take}" for digit in range(2) for take in range(5)]
    assert find_labels(names, r"([^/]+)/[^/]*$") == ["0"] * 5 + ["1"] * 5
    assert find_labels([f"{name.split('/')[2]}" for name in names], r"(\d)_[a-z]+_") == ["0"] * 5 + ["1"] * 5


def test_a_run_is_probed_and_what_is_wrong_is_one_line(tmp_path, tiny, write_picture, capsys):
    for i in range(12):
        write_picture(tmp_path / "in" / f"{'ab'[i % 2]}" / f"{i}.png", i % 2)
    main([*tiny, f"data.root={tmp_path / 'in'}", f"out={tmp_path / 'run'}", "train.steps=3"])
    words = [f"run={tmp_path / 'run'}", f"input={tmp_path / 'in'}", "--quiet", "device=cpu"]
    probe([*words, f"out={tmp_path / 'probe.json'}"])
    found = json.loads((tmp_path / "probe.json").read_text())
    # Both classes are one picture each, so everything tells them apart.
    assert {kind: set(each) for kind, each in found["accuracy"].items()} == {
        "patterns": {"linear", "network"},
        "signals": {"linear", "network"},
    }
    assert all(fold == 1.0 for each in found["accuracy"].values() for folds in each.values() for fold in folds)
    capsys.readouterr()
    for more, said in (
        (["label=(a"], "label: got (a"),
        (["label=a"], "one group"),
        (["components=0"], "components"),
        (["run="], "run: got nothing"),
    ):
        with pytest.raises(SystemExit) as stop:
            probe([*words, *more])
        error = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and len(error) == 1 and said in error[0]
