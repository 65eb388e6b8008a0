"""The generator: patterns drawn from the distribution of others."""

import numpy as np
import pytest

from generalizable.codec import Codec
from generalizable.encode import main as encode
from generalizable.generate import Distribution, as_parts
from generalizable.generate import main as generate
from generalizable.main import main
from generalizable.patterns import read_patterns


def two_kinds(count: int, seed: int = 0) -> np.ndarray:
    """Vectors of 20 numbers around two places, on a plane of two directions, with a little noise."""
    chance = np.random.default_rng(seed)
    plane = np.linalg.qr(chance.normal(size=(20, 2)))[0].T
    kinds = np.where(np.arange(count) % 2 == 0, 5.0, -5.0)
    return kinds[:, None] * plane[0] + chance.normal(size=(count, 2)) @ plane + 0.01 * chance.normal(size=(count, 20))


def test_what_is_drawn_is_distributed_as_what_was_given():
    given = two_kinds(300)
    found = Distribution(given, components=2, seed=0)
    assert found.mixture.n_components > 1 and found.explained > 0.99
    drawn = found.draw(2000)
    np.testing.assert_allclose(drawn.mean(0), given.mean(0), atol=0.4)
    np.testing.assert_allclose(np.cov(drawn.T), np.cov(given.T), atol=1.2)
    # Two kinds, not what lies between them: one Gaussian would have a third of its draws there.
    axis = np.linalg.svd(given - given.mean(0))[2][0]
    assert np.mean(np.abs(drawn @ axis) < 2) < 0.02
    assert found.score > 0.2


def test_of_one_gaussian_no_mixture_is_made():
    given = np.random.default_rng(1).normal(size=(300, 6))
    found = Distribution(given, components=6, seed=0)
    assert found.gaussians.startswith("1 ") and found.score == pytest.approx(0, abs=0.1)


def test_components_are_at_most_half_as_many_as_the_patterns_of_a_fold():
    assert Distribution(two_kinds(12), components=64, seed=0).axes.n_components_ == 4


def test_patterns_of_a_run_are_drawn_and_decoded_and_what_is_wrong_is_one_line(tmp_path, tiny, write_picture, capsys):
    for i in range(9):
        write_picture(tmp_path / "in" / f"{i}.png", i)
    run, encoded, drawn = tmp_path / "run", tmp_path / "encoded.safetensors", tmp_path / "drawn.safetensors"
    main([*tiny, f"data.root={tmp_path / 'in'}", f"out={run}", "train.steps=3"])
    encode([f"run={run}", f"input={tmp_path / 'in'}", f"out={encoded}", "--quiet", "device=cpu"])
    words = [f"run={run}", f"patterns={encoded}", f"out={drawn}", "device=cpu", "count=5"]
    generate(words)
    codec = Codec.load(str(run), "cpu")
    first = [each.vectors for each in read_patterns(drawn, codec).values()]
    generate([*words, "--overwrite"])
    assert "5 drawn" in capsys.readouterr().out
    made = read_patterns(drawn, codec)
    assert (np.stack([each.vectors for each in made.values()]) == np.stack(first)).all()  # the seed decides
    assert list(made) == [f"drawn_{i:03}" for i in range(5)]
    vectors = np.concatenate([each.vectors for each in made.values()])
    assert len(np.unique(vectors, axis=0)) == 5
    again = as_parts(vectors[2], made["drawn_002"].parts)
    assert all((part == made["drawn_002"].parts[name]).all() for name, part in again.items())
    encode([f"run={run}", f"patterns={drawn}", f"out={tmp_path / 'decoded'}", "--quiet", "device=cpu"])
    assert len(list((tmp_path / "decoded").glob("drawn_*.png"))) == 5

    with pytest.raises(SystemExit):
        generate(words)  # there already
    assert "drawn.safetensors" in capsys.readouterr().err

    few = tmp_path / "few"
    few.mkdir()
    (few / "0.png").write_bytes((tmp_path / "in" / "0.png").read_bytes())
    encode([f"run={run}", f"input={few}", f"out={tmp_path / 'one.safetensors'}", "--quiet", "device=cpu"])
    capsys.readouterr()
    for more, said in (
        ([f"patterns={tmp_path / 'one.safetensors'}"], "of 2 instances"),
        (["count=0"], "count"),
        (["patterns="], "patterns: got nothing"),
        ([f"patterns={tmp_path / 'none.safetensors'}"], "none.safetensors"),
        ([f"out={tmp_path / 'none' / 'drawn.safetensors'}"], "folder can't be written"),
    ):
        with pytest.raises(SystemExit) as stop:
            generate([*words, "--overwrite", *more])
        error = capsys.readouterr().err.splitlines()
        assert stop.value.code == 2 and len(error) == 1 and said in error[0]
