"""Encoding: patterns in a file, decoding at any resolution, ways between two."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from evos.coords import grid
from evos.images import read_image
from generalizable.codec import Codec
from generalizable.encode import interpolate, main, read_patterns
from generalizable.main import main as train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """trained(words, kind, root) -> the folder of a run, trained once."""
    runs = {}

    def get(words, kind, root):
        if kind not in runs:
            runs[kind] = tmp_path_factory.mktemp(kind) / "run"
            train([*words, f"data.root={root}", f"out={runs[kind]}"])
        return runs[kind]

    return get


@pytest.fixture
def image_run(trained, tiny, pictures):
    return trained(tiny, "image", pictures)


@pytest.fixture
def patterns(image_run, pictures, tmp_path):
    main([f"run={image_run}", f"input={pictures}", f"out={tmp_path / 'p.safetensors'}"])
    return tmp_path / "p.safetensors"


def test_a_file_holds_the_pattern_of_every_picture(image_run, pictures, patterns):
    codec = Codec.load(image_run, "cpu")
    tensors = load_file(patterns)
    assert set(tensors) == {f"{i:02}:pattern" for i in range(12)}
    codec.model.eval()
    for i in (0, 7):
        signal = codec.task.load(pictures / f"{i:02}.png").signal[None]
        with torch.no_grad():
            assert torch.allclose(tensors[f"{i:02}:pattern"], codec.model.encode(signal)["pattern"][0], atol=1e-6)


def test_patterns_are_decoded_at_any_resolution(image_run, patterns, tmp_path):
    codec = Codec.load(image_run, "cpu")
    main([f"run={image_run}", f"patterns={patterns}", f"out={tmp_path / 'out'}", "scale=3"])
    assert len(list((tmp_path / "out").glob("*.png"))) == 12
    pattern = {"pattern": load_file(patterns)["07:pattern"][None]}
    codec.model.eval()
    with torch.no_grad():
        truth = codec.model.decode(pattern, grid((24, 24), centres="cell")[None])[0].reshape(24, 24, 3).clamp(0, 1)
    assert (read_image(tmp_path / "out" / "07.png").pixels - truth).abs().max() <= 0.51 / 255


def test_a_way_leads_from_one_picture_to_the_other(image_run, patterns, tmp_path):
    main([f"run={image_run}", f"patterns={patterns}", f"out={tmp_path / 'all'}"])
    main([f"run={image_run}", f"patterns={patterns}", f"out={tmp_path / 'way'}", "between=03,08", "frames=4"])
    frames = [read_image(path).pixels for path in sorted((tmp_path / "way").glob("*.png"))]
    assert len(frames) == 4
    for frame, name in ((frames[0], "03"), (frames[-1], "08")):
        assert torch.equal(frame, read_image(tmp_path / "all" / f"{name}.png").pixels)
    middle = interpolate({"a": torch.zeros(2)}, {"a": torch.tensor([4.0, 8.0])}, 0.25)
    assert middle["a"].tolist() == [1.0, 2.0]


def test_sounds_come_back_as_sounds(trained, tiny, sounds, tmp_path):
    words = [*tiny, "data.task=sound", "data.seconds=0.1", "data.rate=4000"]
    run = trained(words, "sound", sounds)
    main([f"run={run}", f"input={sounds}", f"out={tmp_path / 'p.safetensors'}"])
    main([f"run={run}", f"patterns={tmp_path / 'p.safetensors'}", f"out={tmp_path / 'out'}", "scale=2"])
    wave, rate = soundfile.read(tmp_path / "out" / "3.wav")
    assert rate == 8000 and len(wave) == 800 and np.isfinite(wave).all()


def test_scenes_are_decoded_to_the_cameras_of_the_input(trained, tiny, scenes, tmp_path):
    words = [*tiny, "data.task=views", "data.views=6", "model.samples=4", "selector=uniform", "selector.keep_ratio=0.1"]
    run = trained(words, "views", scenes)
    main([f"run={run}", f"input={scenes}", f"out={tmp_path / 'p.safetensors'}"])
    main([f"run={run}", f"input={scenes}", f"patterns={tmp_path / 'p.safetensors'}", f"out={tmp_path / 'out'}"])
    assert read_image(tmp_path / "out" / "scene_2.png").pixels.shape == (8, 6 * 8, 3)


def test_mistakes_end_in_one_line(image_run, patterns, pictures, tmp_path, refused):
    run, out = f"run={image_run}", f"out={tmp_path / 'x'}"
    save_file({"a:pattern": torch.zeros(2, 2)}, tmp_path / "other.safetensors", {"format": "evos patterns 1"})
    (tmp_path / "broken.safetensors").write_bytes(b"broken")
    (tmp_path / "empty").mkdir()
    for words, text in (
        ([run, f"input={pictures}"], "out: got nothing"),
        ([run, out], "input=FOLDER to encode"),
        ([run, out, f"input={tmp_path / 'none'}"], "input: got"),
        ([run, out, f"input={tmp_path / 'empty'}"], "which holds none"),
        ([f"run={tmp_path / 'empty'}", out, f"input={pictures}"], "config.json"),
        ([run, out, f"patterns={tmp_path / 'other.safetensors'}"], "patterns of this run's pattern_composer"),
        ([run, out, f"patterns={tmp_path / 'broken.safetensors'}"], "patterns: got"),
        ([run, out, f"patterns={patterns}", "between=03,99"], "two of 00, 01"),
        ([run, out, f"patterns={patterns}", "scales=2"], "did you mean --scale"),
    ):
        assert text in refused(*words, program=main)
    assert not (tmp_path / "x").exists()
    with pytest.raises(ValueError, match="patterns of this run's transinr"):
        read_patterns(patterns, "transinr")


def test_a_damaged_picture_is_left_out_and_named(image_run, tmp_path, capsys, write_picture):
    for i in range(2):
        write_picture(tmp_path / "in" / f"{i}.png", i)
    (tmp_path / "in" / "0.png").write_bytes(b"x")
    main([f"run={image_run}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'p.safetensors'}"])
    assert set(load_file(tmp_path / "p.safetensors")) == {"1:pattern"} and "0.png" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../outside", "sub/../../outside", "..\\outside", "C:outside", "ABSOLUTE", ""])
def test_a_name_in_a_file_of_patterns_never_leads_out_of_the_folder(image_run, patterns, tmp_path, refused, name):
    name = str(tmp_path / "outside") if name == "ABSOLUTE" else name
    tensors = load_file(patterns)
    evil = {"01:pattern": tensors["01:pattern"], f"{name}:pattern": tensors["02:pattern"]}
    model = {"format": "evos patterns 1", "model": "pattern_composer"}
    save_file(evil, tmp_path / "evil.safetensors", model)
    before = sorted(tmp_path.rglob("*"))
    words = [f"run={image_run}", f"patterns={tmp_path / 'evil.safetensors'}", f"out={tmp_path / 'out'}"]
    for more in ([], ["overwrite=true"]):
        assert "a name that stays in the folder" in refused(*words, *more, program=main)
    assert sorted(tmp_path.rglob("*")) == before  # the good one has not been written either


def test_a_link_in_the_folder_leads_no_pattern_out_of_it(image_run, patterns, tmp_path, refused):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    model = {"format": "evos patterns 1", "model": "pattern_composer"}
    save_file({"sub/x:pattern": load_file(patterns)["02:pattern"]}, tmp_path / "evil.safetensors", model)
    words = [f"run={image_run}", f"patterns={tmp_path / 'evil.safetensors'}", f"out={tmp_path / 'out'}"]
    assert "no link" in refused(*words, program=main) and not list((tmp_path / "elsewhere").iterdir())


def test_decoding_into_the_folder_of_the_originals_leaves_them(image_run, patterns, pictures, tmp_path, refused):
    shutil.copytree(pictures, tmp_path / "photos")
    originals = {path.name: path.read_bytes() for path in pictures.iterdir()}
    words = [f"run={image_run}", f"patterns={patterns}", f"out={tmp_path / 'photos'}"]
    for more in ([], ["between=03,08"]):
        if more:
            (tmp_path / "photos" / "frame_004.png").write_bytes(b"mine")
        assert "which exists; allowed: a new path, or overwrite=true" in refused(*words, *more, program=main)
    assert {path.name: path.read_bytes() for path in (tmp_path / "photos").iterdir()} == originals | {
        "frame_004.png": b"mine"
    }
    main([*words, "overwrite=true"])
    assert read_image(tmp_path / "photos" / "03.png").pixels.shape == (8, 8, 3)


def test_no_other_file_is_replaced_by_patterns_or_taken_for_a_folder(image_run, patterns, pictures, tmp_path, refused):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    assert "overwrite=true" in refused(f"run={image_run}", f"input={pictures}", f"out={notes}", program=main)
    assert "a folder" in refused(f"run={image_run}", f"patterns={patterns}", f"out={notes}", program=main)
    assert notes.read_text() == "mine"
    main([f"run={image_run}", f"input={pictures}", f"out={notes}", "overwrite=true"])
    assert len(read_patterns(notes, "pattern_composer")) == 12


def test_a_folder_that_is_itself_a_scene_is_encoded_by_its_name(trained, tiny, scenes, tmp_path):
    words = [*tiny, "data.task=views", "data.views=6", "model.samples=4", "selector=uniform", "selector.keep_ratio=0.1"]
    run = trained(words, "views", scenes)
    main([f"run={run}", f"input={scenes / 'scene_3'}", f"out={tmp_path / 'p.safetensors'}"])
    assert set(read_patterns(tmp_path / "p.safetensors", "pattern_composer")) == {"scene_3"}


def test_a_file_whose_name_could_not_be_decoded_is_left_out_and_named(image_run, tmp_path, capsys, write_picture):
    for name in ("good", "back\\slash"):
        write_picture(tmp_path / "in" / f"{name}.png", 1)
    main([f"run={image_run}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'p.safetensors'}"])
    assert set(read_patterns(tmp_path / "p.safetensors", "pattern_composer")) == {"good"}
    assert "slash.png: got" in capsys.readouterr().err
