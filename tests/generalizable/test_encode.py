"""Encoding: patterns in a file, decoding at any resolution, ways between two."""

import json
import math
import shutil

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from evos.coords import grid
from evos.images import read_image
from generalizable.codec import Codec
from generalizable.encode import decode, encode, main, split_pair
from generalizable.forms import Form, corners, join_squares, reduced_shape
from generalizable.main import main as train
from generalizable.patterns import Encoded, interpolate, read_patterns

SQUARE = {"shape": [8, 8], "rate": 0, "peak": 1.0}


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


def metadata_of(path):
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.fixture
def image_run(trained, tiny, pictures):
    return trained(tiny, "image", pictures)


@pytest.fixture
def patterns(image_run, pictures, tmp_path):
    main([f"run={image_run}", f"input={pictures}", f"out={tmp_path / 'p.safetensors'}", "crop=true"])
    return tmp_path / "p.safetensors"


def test_a_file_holds_the_pattern_of_every_picture(image_run, pictures, patterns):
    codec = Codec.load(image_run, "cpu")
    tensors = load_file(patterns)
    assert set(tensors) == {f"{i:02}:pattern" for i in range(12)}
    codec.model.eval()
    for i in (0, 7):
        signal = codec.task.load(pictures / f"{i:02}.png").signal[None]
        with torch.no_grad():
            assert torch.allclose(tensors[f"{i:02}:pattern"], codec.model.encode(signal)["pattern"], atol=1e-6)


def test_patterns_are_decoded_at_any_resolution(image_run, patterns, tmp_path):
    codec = Codec.load(image_run, "cpu")
    main([f"run={image_run}", f"patterns={patterns}", f"out={tmp_path / 'out'}", "scale=3"])
    assert len(list((tmp_path / "out").glob("*.png"))) == 12
    pattern = {"pattern": load_file(patterns)["07:pattern"]}
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
    ends = [Encoded({"a": torch.tensor([end])}, Form((8, 8))) for end in ([0.0, 0.0], [4.0, 8.0])]
    assert interpolate(*ends, 0.25).parts["a"].tolist() == [[1.0, 2.0]]


def test_sounds_come_back_as_sounds(trained, tiny, sounds, tmp_path):
    words = [*tiny, "data.task=sound", "data.seconds=0.1", "data.rate=4000"]
    run = trained(words, "sound", sounds)
    main([f"run={run}", f"input={sounds}", f"out={tmp_path / 'p.safetensors'}"])
    main([f"run={run}", f"patterns={tmp_path / 'p.safetensors'}", f"out={tmp_path / 'out'}", "scale=2"])
    wave, rate = soundfile.read(tmp_path / "out" / "3.wav")
    assert rate == 8000 and len(wave) == 2000 and np.isfinite(wave).all()  # all of its 0.25 s, of 0.1 s at a time


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
        ([run, out, f"patterns={patterns}", "bits=6"], "bits: got 6; allowed: an option to encode, without patterns="),
        ([run, out, f"patterns={patterns}", f"input={pictures}"], "only scenes are decoded to cameras"),
        ([run, out, f"input={pictures}", "scale=2"], "scale: got 2; allowed: an option to decode, with patterns="),
    ):
        assert text in refused(*words, program=main)
    assert not (tmp_path / "x").exists()


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
    model = metadata_of(patterns) | {"forms": json.dumps(dict.fromkeys(("01", name), SQUARE))}
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
    model = metadata_of(patterns) | {"forms": json.dumps({"sub/x": SQUARE})}
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


def test_a_file_without_a_folder_is_refused_before_anything_is_encoded(
    image_run, pictures, tmp_path, refused, monkeypatch
):
    monkeypatch.setattr("generalizable.encode.encode", lambda *args, **kwargs: pytest.fail("encoded"))
    words = [f"run={image_run}", f"input={pictures}", f"out={tmp_path / 'none' / 'a.safetensors'}"]
    assert "a.safetensors, whose folder can't be written" in refused(*words, program=main)


def test_no_other_file_is_replaced_by_patterns_or_taken_for_a_folder(image_run, patterns, pictures, tmp_path, refused):
    notes = tmp_path / "notes.txt"
    notes.write_text("mine")
    assert "overwrite=true" in refused(f"run={image_run}", f"input={pictures}", f"out={notes}", program=main)
    assert "a folder" in refused(f"run={image_run}", f"patterns={patterns}", f"out={notes}", program=main)
    assert notes.read_text() == "mine"
    main([f"run={image_run}", f"input={pictures}", f"out={notes}", "overwrite=true"])
    assert len(read_patterns(notes, Codec.load(image_run, "cpu"))) == 12


def test_a_folder_that_is_itself_a_scene_is_encoded_by_its_name(trained, tiny, scenes, tmp_path):
    words = [*tiny, "data.task=views", "data.views=6", "model.samples=4", "selector=uniform", "selector.keep_ratio=0.1"]
    run = trained(words, "views", scenes)
    main([f"run={run}", f"input={scenes / 'scene_3'}", f"out={tmp_path / 'p.safetensors'}"])
    assert set(read_patterns(tmp_path / "p.safetensors", Codec.load(run, "cpu"))) == {"scene_3"}


def test_a_file_whose_name_could_not_be_decoded_is_left_out_and_named(image_run, tmp_path, capsys, write_picture):
    for name in ("good", "back\\slash"):
        write_picture(tmp_path / "in" / f"{name}.png", 1)
    main([f"run={image_run}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'p.safetensors'}"])
    assert set(read_patterns(tmp_path / "p.safetensors", Codec.load(image_run, "cpu"))) == {"good"}
    assert "slash.png: got" in capsys.readouterr().err


# ---- patterns belong to the weights that made them


def test_patterns_of_another_run_are_refused(image_run, patterns, tiny, pictures, tmp_path, refused):
    train([*tiny, f"data.root={pictures}", f"out={tmp_path / 'other'}", "seed=1"])
    line = refused(f"run={tmp_path / 'other'}", f"patterns={patterns}", f"out={tmp_path / 'out'}", program=main)
    hashes = [Codec.load(run, "cpu").fingerprint[:12] for run in (image_run, tmp_path / "other")]
    assert line.startswith("patterns: got") and all(each in line for each in hashes) and len(set(hashes)) == 2
    assert not (tmp_path / "out").exists()


def test_patterns_of_the_earlier_format_are_decoded_with_a_notice(image_run, patterns, tmp_path, capsys):
    tensors = {name: tensor[0] for name, tensor in load_file(patterns).items()}
    save_file(tensors, tmp_path / "old.safetensors", {"format": "evos patterns 1", "model": "pattern_composer"})
    for name, file in (("old", tmp_path / "old.safetensors"), ("new", patterns)):
        main([f"run={image_run}", f"patterns={file}", f"out={tmp_path / name}"])
        assert ("notice: " in capsys.readouterr().err) == (name == "old")
    assert all(
        path.read_bytes() == (tmp_path / "new" / path.name).read_bytes() for path in (tmp_path / "old").iterdir()
    )


BAD_FORMS = [{}, {"00": {"shape": ["a"]}}, [], 3]
SHAPES = ([8, 16], [8, 8, 8], [], [0, 8], [1, 10**15], [8, math.inf], 8)
BAD_FORMS += [{"00": SQUARE | change} for change in (*({"shape": shape} for shape in SHAPES), {"rate": 9}, {"peak": 0})]


@pytest.mark.parametrize("forms", ["x", *map(json.dumps, BAD_FORMS)])
def test_damaged_forms_are_one_line(image_run, patterns, tmp_path, refused, forms):
    tensors = {"00:pattern": load_file(patterns)["00:pattern"]}
    save_file(tensors, tmp_path / "bad.safetensors", metadata_of(patterns) | {"forms": forms})
    words = [f"run={image_run}", f"patterns={tmp_path / 'bad.safetensors'}", f"out={tmp_path / 'out'}"]
    assert "a file that this program wrote" in refused(*words, program=main) and not (tmp_path / "out").exists()


# ---- all of a signal is encoded


@pytest.mark.parametrize("shape", [(8, 8), (50, 20), (20, 50), (9, 8), (300, 8)])
def test_squares_cover_a_picture_and_join_to_it(shape):
    form = Form(shape)
    whole = torch.rand(*reduced_shape(form, 8), 3)
    places = corners(tuple(whole.shape[:2]), 8)
    squares = torch.stack([whole[top : top + 8, left : left + 8] for top, left in places])
    assert squares.shape[1:] == (8, 8, 3) and len(places) == -(-max(whole.shape[:2]) // 8)
    assert torch.allclose(join_squares(squares, form, 8, 1), whole, atol=1e-6)


def test_a_picture_keeps_its_shape(image_run, tmp_path, write_picture):
    write_picture(tmp_path / "in" / "wide.png", 3, (20, 50))
    write_picture(tmp_path / "in" / "tall.png", 4, (50, 20))
    main([f"run={image_run}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'p.safetensors'}"])
    assert load_file(tmp_path / "p.safetensors")["wide:pattern"].shape[0] == 3
    main([f"run={image_run}", f"patterns={tmp_path / 'p.safetensors'}", f"out={tmp_path / 'out'}", "scale=2"])
    assert read_image(tmp_path / "out" / "wide.png").pixels.shape == (16, 40, 3)
    assert read_image(tmp_path / "out" / "tall.png").pixels.shape == (40, 16, 3)
    # The first square is that of the picture's left end, encoded by itself.
    codec = Codec.load(image_run, "cpu")
    form, instances = codec.task.cut(tmp_path / "in" / "wide.png")
    assert form == Form((20, 50)) and [each.signal.shape for each in instances] == [(3, 8, 8)] * 3
    found = encode(codec, str(tmp_path / "in"))["wide"]
    alone = codec.model.encode(instances[2].signal[None])["pattern"][0]
    assert torch.allclose(found.parts["pattern"][2], alone, atol=1e-5)


def write_tones(path, frames, rate, tones, level=0.5):
    time = np.arange(frames) / rate
    soundfile.write(path, level * np.sin(2 * np.pi * np.array(tones) * time[:, None]), rate, subtype="FLOAT")


def test_every_channel_and_every_stretch_of_a_sound_is_encoded(trained, tiny, sounds, tmp_path):
    words = [*tiny, "data.task=sound", "data.seconds=0.1", "data.rate=4000"]
    run = trained(words, "sound", sounds)
    codec = Codec.load(run, "cpu")
    (tmp_path / "in").mkdir()
    write_tones(tmp_path / "in" / "a.wav", 2500, 8000, [50, 120], level=3.0)
    form, instances = codec.task.cut(tmp_path / "in" / "a.wav")
    assert form.shape == (2500, 2) and form.peak == pytest.approx(3, abs=1e-3) and len(instances) == 2 * 4
    # Put together again without a model in between, it is the recording, at the model's rate.
    joined = codec.task.join(codec.task.cells(torch.stack([each.signal for each in instances])), form, 1)
    truth = 3 * np.sin(2 * np.pi * np.array([50, 120]) * np.arange(1250)[:, None] / 4000)
    assert joined.shape == (1250, 2) and np.abs(joined.numpy() - truth)[20:-20].max() < 0.01
    main([f"run={run}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'p.safetensors'}"])
    main([f"run={run}", f"patterns={tmp_path / 'p.safetensors'}", f"out={tmp_path / 'out'}", "scale=2"])
    wave, rate = soundfile.read(tmp_path / "out" / "a.wav")
    assert wave.shape == (2500, 2) and rate == 8000


def test_what_is_cropped_is_said(trained, tiny, sounds, image_run, tmp_path, capsys, write_picture):
    write_picture(tmp_path / "in" / "wide.png", 3, (20, 50))
    write_picture(tmp_path / "in" / "square.png", 3, (20, 20))
    main([f"run={image_run}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'p.safetensors'}", "crop=true"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "wide.png: 20 x 50, cropped to 1 instance of 3" in line
    run = trained([*tiny, "data.task=sound", "data.seconds=0.1", "data.rate=4000"], "sound", sounds)
    (tmp_path / "sound").mkdir()
    write_tones(tmp_path / "sound" / "a.wav", 2500, 8000, [50, 120])
    main([f"run={run}", f"input={tmp_path / 'sound'}", f"out={tmp_path / 's.safetensors'}", "crop=true"])
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.wav: 0.312 s, 2 channels, cropped to 1 instance of 8" in line


def test_a_batch_of_any_size_gives_the_same_patterns_and_shows_its_progress(image_run, pictures, capsys):
    codec = Codec.load(image_run, "cpu")
    whole, single = (encode(codec, str(pictures), batch=size, quiet=False) for size in (7, 1))
    assert list(whole) == list(single) == [f"{i:02}" for i in range(12)]
    for name, signal in whole.items():
        assert torch.allclose(signal.parts["pattern"], single[name].parts["pattern"], atol=1e-5)
        assert torch.allclose(decode(codec, signal, 2, batch=1), decode(codec, signal, 2), atol=1e-5)
    assert "encoding 12/12" in capsys.readouterr().out


# ---- names


def test_a_name_with_a_comma_can_be_one_of_two(image_run, tmp_path, refused, write_picture):
    for name in ("a,b", "c", "c,d"):
        write_picture(tmp_path / "in" / f"{name}.png", 1)
    main([f"run={image_run}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'p.safetensors'}"])
    words = [f"run={image_run}", f"patterns={tmp_path / 'p.safetensors'}", "frames=2"]
    main([*words, f"out={tmp_path / 'way'}", "between=a,b,c,d"])
    assert len(list((tmp_path / "way").iterdir())) == 2
    assert "joined by a comma" in refused(*words, f"out={tmp_path / 'no'}", "between=a,c", program=main)
    with pytest.raises(ValueError, match="which may mean"):
        split_pair("a,b,c", dict.fromkeys(["a", "b,c", "a,b", "c"]))


def test_a_way_between_pictures_of_other_shapes_is_refused(image_run, tmp_path, refused, write_picture):
    write_picture(tmp_path / "in" / "a.png", 1, (20, 20))
    write_picture(tmp_path / "in" / "b.png", 1, (20, 50))
    main([f"run={image_run}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'p.safetensors'}"])
    words = [f"run={image_run}", f"patterns={tmp_path / 'p.safetensors'}", f"out={tmp_path / 'out'}", "between=a,b"]
    assert "signals of different forms (20 x 20; 20 x 50)" in refused(*words, program=main)


# ---- cameras


@pytest.fixture
def view_run(trained, tiny, scenes):
    words = [*tiny, "data.task=views", "data.views=6", "model.samples=4", "selector=uniform", "selector.keep_ratio=0.1"]
    return trained(words, "views", scenes)


def test_a_scene_is_encoded_from_its_support_views_alone(view_run, tmp_path, write_scene):
    write_scene(tmp_path / "in" / "one", (9, 9, 9), views=1)
    main([f"run={view_run}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'p.safetensors'}"])
    assert set(load_file(tmp_path / "p.safetensors")) == {"one:pattern"}


def test_a_scene_without_cameras_of_its_own_is_refused(view_run, scenes, tmp_path, refused, write_scene):
    for name in ("known", "unknown"):
        write_scene(tmp_path / "in" / name, (9, 9, 9))
    main([f"run={view_run}", f"input={tmp_path / 'in'}", f"out={tmp_path / 'p.safetensors'}"])
    words = [f"run={view_run}", f"patterns={tmp_path / 'p.safetensors'}", f"out={tmp_path / 'out'}"]
    (tmp_path / "in" / "unknown").rename(tmp_path / "in" / "renamed")
    assert "without cameras for unknown" in refused(*words, f"input={tmp_path / 'in'}", program=main)
    assert not (tmp_path / "out").exists()
    main([*words, f"input={scenes / 'scene_3'}"])  # a lone scene's cameras serve all
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_the_patterns_of_a_scene_do_not_depend_on_what_lies_beside_it(trained, tiny, scenes, tmp_path):
    words = [word for word in tiny if not word.startswith("model.")] + ["model=meta_pattern_composer", "model.rank=4"]
    words += ["model.hidden_features=8", "model.features=8", "data.task=views", "data.views=6", "model.samples=4"]
    run = trained([*words, "train.inner_rays=16", "train.chunk=999"], "inner_views", scenes)
    codec = Codec.load(run, "cpu")
    whole = encode(codec, str(scenes), batch=1)
    for name in ("scene_0", "scene_4"):
        alone = encode(codec, str(scenes / name), batch=1)[name]
        assert torch.allclose(alone.parts["pattern"], whole[name].parts["pattern"], atol=1e-6)
