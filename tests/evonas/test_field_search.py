"""The search of fields: from the command line to a config that image_regression runs; resume; bad input."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evonas.field_evaluation import FieldEvaluator
from evonas.field_search import parse, search_fields
from evonas.main import main
from evos.images import write_image
from evos.runs import Stopper, read_json
from evos.sounds import write_sound

TINY = [
    *("space.family=[siren,relu,hashgrid]", "space.hidden_features=[8,16]", "space.hidden_layers=[1,2]"),
    *("space.levels=[2,4]", "space.table_log2=[6,8]", "space.finest_resolution=[16,32]", "space.optimizer=[adam]"),
    *("search.population=4", "search.generations=2", "train.seconds=none", "train.steps=9", "train.bracket=4"),
    *("search.objectives=[error,parameters]", "device=cpu", "quiet=true"),
]


@pytest.fixture(scope="module")
def photo(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(2):
        small = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
        pixels = torch.nn.functional.interpolate(small, (18, 24), mode="bicubic").clamp(0, 1)[0].permute(1, 2, 0)
        write_image(folder / f"{seed}.png", pixels)
    return folder / "0.png"


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("sounds") / "tone.wav"
    write_sound(path, 0.5 * torch.sin(torch.arange(400) / 9.0)[:, None], 8000, "PCM_16")
    return path


def front(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "front.csv").read_text().splitlines()))


def test_a_search_ends_in_a_config_that_image_regression_runs_to_what_was_found(photo, tmp_path, capsys):
    main(["--input", str(photo), *TINY, "train.rungs=1", f"out={tmp_path / 'search'}"])
    said = capsys.readouterr().out
    config = tmp_path / "search" / "fields" / "error.txt"
    assert "8 fields" in said and f"--config {config}" in said
    from image_regression.main import main as fit

    fit(["--config", str(config), "--out", str(tmp_path / "fit"), "--lpips", "false", "--device", "cpu", "--quiet"])
    metrics = read_json(tmp_path / "fit" / "metrics.json")
    rows = front(tmp_path / "search")
    assert 10 ** (-metrics["psnr"] / 20) == pytest.approx(min(float(row["error"]) for row in rows), rel=1e-3)
    best = next(row for row in rows if row["error"] == min((row["error"] for row in rows), key=float))
    assert metrics["parameters"] == float(best["parameters"])
    for name in ("knee", "fast"):
        assert (tmp_path / "search" / "fields" / f"{name}.txt").read_text().startswith("# Found by a search of fields")
    for name in ("pareto.png", "hypervolume.png"):
        assert (tmp_path / "search" / name).read_bytes().startswith(b"\x89PNG")


def test_several_signals_count_by_their_mean(photo, tmp_path):
    words = [*TINY, "search.generations=1", "train.rungs=1"]
    for name, given in (("a", photo), ("b", photo.parent / "1.png"), ("both", photo.parent)):
        main(["fields", f"input={given}", *words, f"out={tmp_path / name}"])
    listed = f"[{photo}, {photo.parent / '1.png'}]"
    main(["fields", f"input={listed}", *words, f"out={tmp_path / 'list'}"])
    archives = [
        [json.loads(line) for line in (tmp_path / name / "archive.jsonl").read_text().splitlines()[1:]]
        for name in ("a", "b", "both", "list")
    ]
    assert [e["error"] for e in archives[2]] == [e["error"] for e in archives[3]]
    for a, b, both in zip(*archives[:3], strict=True):
        assert a["genome"] == both["genome"]
        assert both["error"] == pytest.approx((a["error"] * b["error"]) ** 0.5, rel=1e-4)
    assert "input" not in (tmp_path / "both" / "fields" / "error.txt").read_text().split("recipe")[1]


def test_sounds_are_searched_too(sound, tmp_path):
    words = [*TINY, "search.generations=1", "space.first_omega=[100,300]", "seed=4"]
    main(["fields", f"input={sound}", *words, f"out={tmp_path / 'out'}"])
    assert len(front(tmp_path / "out")) >= 1
    assert "seed = 4" in (tmp_path / "out" / "fields" / "error.txt").read_text()


class Interrupted(FieldEvaluator):
    """Stops the search after ``limit`` results."""

    limit = 0

    def __call__(self, genomes) -> Iterator:
        for result in super().__call__(genomes):
            if Interrupted.limit == 0:
                raise KeyboardInterrupt
            Interrupted.limit -= 1
            yield result


def test_a_search_that_was_cut_off_ends_with_the_same_front(photo, tmp_path, monkeypatch):
    words = [f"input={photo}", *TINY]
    with Stopper() as stopper:
        whole = search_fields(parse([*words, f"out={tmp_path / 'whole'}"]), stopper)
        for limit in (1, 5):
            out = tmp_path / str(limit)
            Interrupted.limit = limit
            with monkeypatch.context() as patch:
                patch.setattr("evonas.field_search.FieldEvaluator", Interrupted)
                with pytest.raises(KeyboardInterrupt):
                    search_fields(parse([*words, f"out={out}"]), stopper)
            again = search_fields(parse([*words, f"out={out}", "--resume"]), stopper)
            assert errors(again.evaluated) == errors(whole.evaluated)
            assert errors(dict(again.front)) == errors(dict(whole.front))


def errors(found: dict) -> dict:
    """Without the seconds, which no two searches measure alike."""
    return {genome: (values["error"], values["parameters"]) for genome, values in found.items()}


def test_a_generation_whose_record_was_cut_off_is_measured_again_as_a_whole(photo, tmp_path):
    words = [f"input={photo}", *TINY, "search.generations=1", f"out={tmp_path}"]
    with Stopper() as stopper:
        first = search_fields(parse(words), stopper)
        path = tmp_path / "brackets.jsonl"
        path.write_bytes(path.read_bytes()[:-9])
        (tmp_path / "archive.jsonl").unlink()
        for record in (tmp_path / "generations").iterdir():
            record.unlink()
        assert errors(search_fields(parse([*words, "--resume"]), stopper).evaluated) == errors(first.evaluated)
    assert len(path.read_text().splitlines()) == 1


def test_a_stopped_search_says_how_to_go_on_and_does(photo, tmp_path, capsys, monkeypatch):
    words = ["fields", f"input={photo}", *TINY, f"out={tmp_path / 'out'}"]
    asked = iter([0] * 20 + [143] * 10**6)
    with monkeypatch.context() as patch:
        patch.setattr(Stopper, "exit_code", property(lambda self: next(asked)))
        with pytest.raises(SystemExit) as stop:
            main(words)
    assert stop.value.code == 143
    said = capsys.readouterr().err
    assert "stopped; go on with: " in said and "fields" in said and "--resume" in said
    main([*words, "--resume"])
    assert front(tmp_path / "out")


@pytest.mark.slow
def test_workers_find_what_one_process_finds(photo, tmp_path):
    words = ["fields", f"input={photo}", *TINY]
    main([*words, f"out={tmp_path / 'one'}"])
    main([*words, f"out={tmp_path / 'two'}", "workers=2"])
    (one, two) = (
        [(row["genome"], row["error"], row["parameters"]) for row in front(tmp_path / name)] for name in ("one", "two")
    )
    assert one == two


def test_the_configs_are_valid():
    folder = Path(__file__).parents[2] / "configs" / "evonas"
    assert parse([f"--config={folder / 'field.yaml'}"]).run.longer_side == 128
    assert parse([f"--config={folder / 'field_sound.yaml'}"]).run.workers == 2


# ---- bad input


def test_bad_input_is_one_line(photo, sound, tmp_path, refused):
    out = f"out={tmp_path / 'out'}"
    assert refused("fields", out).startswith("input: got None")
    assert "no such file" in refused("fields", "input=nothing.png", out)
    assert "no such file" in refused("--input", "nothing.png", out)
    assert refused("fields", f"input=[{photo}, {sound}]", out).startswith("input: got")
    assert "list" in refused("fields", "input=[a", out)
    assert "input: got []" in refused("fields", "input=[]", out)
    assert "train.steps" in refused("fields", f"input={photo}", "train.steps=0", out)
    assert "did you mean --train.steps" in refused("fields", f"input={photo}", "train.step=5", out)
    assert "space.family" in refused("fields", f"input={photo}", "space.family=[sirens]", out)
    assert "search.objectives" in refused("fields", f"input={photo}", "search.objectives=[error,latency]", out)
    assert "precision" in refused("fields", f"input={photo}", "precision=bf16", out)
    assert "workers" in refused("fields", f"input={photo}", "workers=0", out)
    assert "space.max_parameters: got 10" in refused("fields", f"input={photo}", "space.max_parameters=10", out)
    assert "longer_side" in refused("fields", f"input={sound}", "longer_side=9", out)
    assert not (tmp_path / "out").exists()  # nothing half-written
    broken = tmp_path / "broken.png"
    broken.write_bytes(photo.read_bytes()[:50])
    assert "broken.png" in refused("fields", f"input={broken}", out)


def test_a_taken_or_damaged_folder_is_refused(photo, tmp_path, refused):
    words = ["fields", f"input={photo}", *TINY, "search.generations=1", f"out={tmp_path / 'out'}"]
    main(words)
    assert "a new folder" in refused(*words)
    assert "search.population" in refused(*words, "search.population=8", "--resume")
    path = tmp_path / "out" / "brackets.jsonl"
    path.write_text("[{}]\n")
    assert "damaged" in refused(*words, "--resume")
    main([*words, "--overwrite"])
    assert json.loads(path.read_text())


def test_networks_have_no_seconds_of_training(refused):
    assert "search.objectives" in refused("search", "search.objectives=[error,seconds]")
