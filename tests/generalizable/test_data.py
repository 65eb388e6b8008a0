"""Layouts, decoding, the order of draws, shards, damaged files."""

import json
import math
import tarfile
from collections import Counter
from math import pi, tan

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch

from evos.distributed import World
from evos.errors import InputError
from generalizable.data import (
    Draws,
    Instances,
    Source,
    Sources,
    evaluation_batches,
    find_sources,
    training_batches,
)
from generalizable.instances import count_pieces, on_white, picture, pixel_rays, scene, sound, square
from generalizable.layouts import find
from generalizable.options import DataConfig, SourceConfig
from generalizable.rows import Rows
from generalizable.shards import Shards
from generalizable.tasks import build_task

ALONE = World()


def names(paths):
    return [path.stem for path in paths]


# ---- layouts


def test_a_folder_holds_out_every_tenth(pictures):
    split = find(str(pictures), "auto", "image", 0.1)
    assert names(split.test) == ["09"] and len(split.train) == 11
    assert names(find(str(pictures), "auto", "image", 0.25).test) == ["03", "07", "11"]


def test_train_and_val_folders_are_used(tmp_path, write_picture):
    for name in ("train/a/1.png", "train/b/2.JPEG", "val/a/3.png"):
        write_picture(tmp_path / name, 0)
    split = find(str(tmp_path), "imagenette", "image", 0.1)
    assert (names(split.train), names(split.test)) == (["1", "2"], ["3"])


def test_celeba_names_its_parts(tmp_path, write_picture):
    for i in range(4):
        write_picture(tmp_path / "img_align_celeba" / f"{i:06}.jpg", i)
    (tmp_path / "list_eval_partition.txt").write_text("000000.jpg 0\n000001.jpg 1\n000002.jpg 2\n000003.jpg 0\n")
    split = find(str(tmp_path), "auto", "image", 0.1)
    assert (names(split.train), names(split.test)) == (["000000", "000003"], ["000002"])


def test_ffhq_is_split_by_number_or_by_the_papers_lists(tmp_path, write_picture):
    for name in ("00000/00001", "59000/59999", "60000/60000"):
        write_picture(tmp_path / "images1024x1024" / f"{name}.png", 0)
    assert names(find(str(tmp_path), "auto", "image", 0.1).test) == ["60000"]
    (tmp_path / "ffhqtrain.txt").write_text("60000.png\n")
    (tmp_path / "ffhqvalidation.txt").write_text("00001.png\n59999.png\n")
    split = find(str(tmp_path), "auto", "image", 0.1)
    assert (names(split.train), names(split.test)) == (["60000"], ["00001", "59999"])


def test_librispeech_has_train_and_test_folders(tmp_path):
    for name in ("train-clean-100/1/2/a.flac", "test-clean/3/4/b.flac", "test-other/5/6/c.flac"):
        (tmp_path / name).parent.mkdir(parents=True)
        soundfile.write(tmp_path / name, np.zeros(100), 16000)
    split = find(str(tmp_path), "auto", "sound", 0.1)
    assert (names(split.train), names(split.test)) == (["a"], ["b"])


def test_librispeech100_is_its_clean_hundred_hours_alone(tmp_path):
    for name in ("train-clean-100/1/2/a.flac", "train-other-500/7/8/d.flac", "test-clean/3/4/b.flac"):
        (tmp_path / name).parent.mkdir(parents=True)
        soundfile.write(tmp_path / name, np.zeros(100), 16000)
    every, clean = (find(str(tmp_path), layout, "sound", 0.1) for layout in ("librispeech", "librispeech100"))
    assert (names(every.train), names(clean.train), names(clean.test)) == (["a", "d"], ["a"], ["b"])


def test_learnit_lists_its_scenes_beside_the_folder(tmp_path, write_scene):
    for name in "abc":
        write_scene(tmp_path / "cars" / name, (1, 2, 3))
    (tmp_path / "car_splits.json").write_text(json.dumps({"train": ["a", "c", "absent"], "test": ["b"]}))
    split = find(str(tmp_path / "cars"), "auto", "views", 0.1)
    assert (names(split.train), names(split.test)) == (["a", "c"], ["b"])
    (tmp_path / "car_splits.json").write_text("[1]")
    with pytest.raises(InputError, match="without lists of scenes"):
        find(str(tmp_path / "cars"), "auto", "views", 0.1)


@pytest.mark.parametrize(
    ("layout", "kind", "text"),
    [
        ("auto", "image", "finds nothing"),
        ("celeba", "image", "list_eval_partition"),
        ("blender", "image", "a layout of"),
    ],
)
def test_a_folder_without_the_data_is_refused(tmp_path, layout, kind, text):
    with pytest.raises(InputError, match=text):
        find(str(tmp_path), layout, kind, 0.1)


def test_an_absent_folder_and_a_lone_picture_are_refused(tmp_path, write_picture):
    with pytest.raises(InputError, match="a folder that exists"):
        find(str(tmp_path / "none"), "auto", "image", 0.1)
    write_picture(tmp_path / "one.png", 0)
    with pytest.raises(InputError, match="at least two"):
        find(str(tmp_path), "auto", "image", 0.1)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_celebas_list_may_have_a_byte_order_mark(tmp_path, write_picture, encoding):
    for i in range(3):
        write_picture(tmp_path / f"{i:06}.jpg", i)
    (tmp_path / "list_eval_partition.txt").write_bytes("000000.jpg 0\n000001.jpg 0\n000002.jpg 2\n".encode(encoding))
    split = find(str(tmp_path), "auto", "image", 0.1)
    assert (names(split.train), names(split.test)) == (["000000", "000001"], ["000002"])
    (tmp_path / "list_eval_partition.txt").write_bytes(b"\x81\x82\xff")
    with pytest.raises(InputError, match=r"list_eval_partition.txt: got a file that is not text"):
        find(str(tmp_path), "auto", "image", 0.1)


def test_copies_in_hidden_folders_are_no_data_and_linked_folders_are(tmp_path, write_picture, write_scene):
    for name in ("a/1.png", "2.png", ".ipynb_checkpoints/2.png", ".Trash/a/1.png", "@eaDir/2.png"):
        write_picture(tmp_path / "data" / name, 0)
    for i in range(4):
        write_picture(tmp_path / "elsewhere" / f"more{i}.png", i)
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "elsewhere")
    split = find(str(tmp_path / "data"), "auto", "image", 0.5)
    assert sorted(names([*split.train, *split.test])) == ["1", "2", "more0", "more1", "more2", "more3"]
    for name in ("scenes/one", "far/two", "scenes/.Trash/three"):
        write_scene(tmp_path / name, (1, 2, 3))
    (tmp_path / "scenes" / "linked").symlink_to(tmp_path / "far")
    split = find(str(tmp_path / "scenes"), "auto", "views", 0.5)
    assert sorted(names([*split.train, *split.test])) == ["one", "two"]


# ---- decoding


def test_the_middle_square_is_cut_out():
    pixels = torch.arange(4 * 8).reshape(4, 8, 1).float() / 32
    assert torch.equal(square(pixels, 4)[0], pixels[:, 2:6, 0])


def test_a_constant_stays_constant_when_resized(tmp_path):
    PIL.Image.new("RGB", (20, 30), (255, 128, 0)).save(tmp_path / "a.png")
    found = picture(tmp_path / "a.png", 7)
    assert found.shape == (3, 7, 7)
    assert torch.allclose(found, torch.tensor([1, 128 / 255, 0])[:, None, None].expand(3, 7, 7), atol=1e-6)


def test_transparency_is_white_and_grey_has_three_channels():
    assert on_white(torch.tensor([[[0.2, 0.4, 0.6, 0.25]]])).flatten().tolist() == pytest.approx([0.8, 0.85, 0.9])
    assert on_white(torch.tensor([[[0.2]]])).flatten().tolist() == pytest.approx([0.2] * 3)


def test_augmentation_shows_a_window_of_the_picture_itself(tmp_path):
    values = np.arange(6 * 9 * 3, dtype=np.uint8).reshape(6, 9, 3)
    PIL.Image.fromarray(values).save(tmp_path / "a.png")
    windows = {
        (top, left, mirrored): values[top : top + 4, left : left + 4][:, :: -1 if mirrored else 1]
        for top in range(3)
        for left in range(6)
        for mirrored in (False, True)
    }
    seen = Counter()
    for seed in range(60):
        found = (picture(tmp_path / "a.png", 4, np.random.default_rng(seed)) * 255).round().byte().permute(1, 2, 0)
        (key,) = [key for key, window in windows.items() if np.array_equal(found.numpy(), window)]
        seen[key] += 1
    assert len(seen) > 20


def test_a_tone_keeps_its_frequency_when_resampled(tmp_path):
    wave = 0.5 * np.sin(2 * pi * 400 * np.arange(32000) / 32000)
    soundfile.write(tmp_path / "a.wav", np.stack([wave, wave], 1), 32000, subtype="FLOAT")
    found = sound(tmp_path / "a.wav", 0, 4000, 8000)[0]
    truth = 0.5 * np.sin(2 * pi * 400 * np.arange(4000) / 8000)
    assert np.abs(found.numpy() - truth)[50:-50].max() < 2e-3


def test_a_short_recording_ends_in_silence_and_pieces_follow_each_other(tmp_path):
    wave = np.linspace(-0.5, 0.5, 250).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", wave, 1000, subtype="FLOAT")
    assert count_pieces(tmp_path / "a.wav", 100, 1000) == 2
    assert np.array_equal(sound(tmp_path / "a.wav", 1, 100, 1000)[0], wave[100:200])
    found = sound(tmp_path / "a.wav", 0, 300, 1000)[0]
    assert np.array_equal(found[:250], wave) and not found[250:].any()


def test_a_scene_has_its_views_on_white_and_its_focal_length(tmp_path, write_scene, pose):
    found = scene(write_scene(tmp_path / "a", (255, 0, 0)), 4, 8)
    assert found.signal.shape == (4, 3, 8, 8)
    assert found.signal[0, :, 0, 0].tolist() == [1, 1, 1] and found.signal[0, :, 4, 4].tolist() == [1, 0, 0]
    assert float(found.focal) == pytest.approx(4 / tan(0.3))
    assert torch.allclose(found.poses[1], torch.tensor(pose(2 * pi / 6))[:3])
    with pytest.raises(InputError, match="6 views; allowed: at least 7"):
        scene(tmp_path / "a", 7, 8)


IDENTITY = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 4], [0, 0, 0, 1]]


@pytest.mark.parametrize(
    "change",
    [
        {"camera_angle_x": "wide"},
        {"camera_angle_x": None},
        {"camera_angle_x": 0},
        {"camera_angle_x": math.nan},
        {"fl_x": -3},
        {"fl_x": 5, "w": 0},
        {"frames": 3},
        {"frames": [3]},
        {"frames": [{"file_path": 7, "transform_matrix": IDENTITY}] * 6},
        {"frames": [{"file_path": "./r_0", "transform_matrix": matrix} for matrix in (IDENTITY[:2], IDENTITY)] * 3},
        {"frames": [{"file_path": "./r_0", "transform_matrix": [[1, 2], [3]]}] * 6},
        {"frames": [{"file_path": "./r_0", "transform_matrix": "none"}] * 6},
        {"frames": [{"file_path": "./r_0", "transform_matrix": [[math.inf] * 4] * 4}] * 6},
    ],
    ids=str,
)
def test_cameras_that_can_not_be_read_are_named(tmp_path, write_scene, change):
    folder = write_scene(tmp_path / "a", (1, 2, 3))
    content = json.loads((folder / "transforms.json").read_text())
    (folder / "transforms.json").write_text(json.dumps(content | change))
    with pytest.raises(InputError, match=r"a/transforms.json: got "):
        scene(folder, 4, 8)


@pytest.mark.parametrize("data", [b"[1, 2]", b"\x81\x82", b"{", b"3"])
def test_a_list_of_views_that_is_none_is_named(tmp_path, write_scene, data):
    (write_scene(tmp_path / "a", (1, 2, 3)) / "transforms.json").write_bytes(data)
    with pytest.raises(InputError, match=r"a/transforms.json: got "):
        scene(tmp_path / "a", 4, 8)


def test_a_list_of_views_may_have_a_byte_order_mark(tmp_path, write_scene):
    listed = write_scene(tmp_path / "a", (1, 2, 3)) / "transforms.json"
    truth = scene(tmp_path / "a", 4, 8)
    listed.write_bytes(b"\xef\xbb\xbf" + listed.read_bytes())
    assert torch.equal(scene(tmp_path / "a", 4, 8).signal, truth.signal)


@pytest.mark.parametrize(("extension", "subtype"), [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", None), ("ogg", None)])
def test_a_recording_that_is_cut_is_refused(tmp_path, extension, subtype):
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 20000)
    path = tmp_path / f"a.{extension}"
    soundfile.write(path, wave, 8000, subtype=subtype)
    assert sound(path, 0, 100, 8000).shape == (1, 100)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 10 + 4000])
    with pytest.raises(InputError, match=r"truncated|damaged"):
        sound(path, 0, 100, 8000)


def test_floats_beyond_one_are_scaled_not_clipped(tmp_path):
    wave = np.sin(np.linspace(0, 60, 2000)) * np.linspace(1, 40, 2000)
    soundfile.write(tmp_path / "a.wav", wave, 8000, subtype="FLOAT")
    peak = np.abs(wave).max()
    for piece in (0, 3):
        found = sound(tmp_path / "a.wav", piece, 500, 8000)[0].numpy()
        assert np.allclose(found, wave[500 * piece :][:500] / peak, atol=1e-6)


def test_rays_go_through_the_pixels_they_are_of(tmp_path, pose):
    """A point projected by hand lands in the pixel whose ray points at it."""
    size, focal = 8, 9.0
    poses = torch.tensor([[pose(0.3), pose(2.0)]])[..., :3, :]
    index = torch.tensor([[0, 5, 64 + 19, 127]])
    rays = pixel_rays(poses, torch.tensor([focal]), size, index)
    for ray, i in zip(rays[0], index[0].tolist(), strict=True):
        view, row, column = i // 64, i % 64 // 8, i % 8
        point = ray[:3] + 2.5 * ray[3:]
        x, y, z = poses[0, view, :, :3].T @ (point - poses[0, view, :, 3])
        assert float(ray[3:].norm()) == pytest.approx(1, abs=1e-6) and z < 0
        assert float(size / 2 + focal * x / -z) == pytest.approx(column + 0.5, abs=1e-4)
        assert float(size / 2 - focal * y / -z) == pytest.approx(row + 0.5, abs=1e-4)


def test_rays_measured_in_depth_go_the_same_way_a_unit_of_depth_at_a_time(pose):
    poses, index = torch.tensor([[pose(0.3), pose(2.0)]])[..., :3, :], torch.arange(128)[None]
    unit, depth = (pixel_rays(poses, torch.tensor([9.0]), 8, index, normalized=flag)[0] for flag in (True, False))
    assert torch.equal(unit[:, :3], depth[:, :3])
    assert torch.allclose(torch.nn.functional.normalize(depth[:, 3:], dim=-1), unit[:, 3:], atol=1e-6)
    for ray, i in zip(depth, index[0].tolist(), strict=True):
        assert float((poses[0, i // 64, :, :3].T @ ray[3:])[2]) == pytest.approx(-1, abs=1e-6)


def test_bilinear_resizing_is_pillows(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = np.asarray(PIL.Image.fromarray(pixels).resize((23, 23), PIL.Image.Resampling.BILINEAR))
    found = picture(tmp_path / "a.png", 23, resize="bilinear").permute(1, 2, 0).numpy() * 255
    assert np.abs(found - expected).max() < 1.6  # Pillow rounds to whole numbers in between
    assert np.abs(picture(tmp_path / "a.png", 23).permute(1, 2, 0).numpy() * 255 - expected).max() > 5


# ---- the order of draws


def take(draws, steps):
    found = iter(draws)
    return [[(source, index) for source, index, _ in next(found)] for _ in range(steps)]


@pytest.mark.parametrize("sizes", [[12], [3], [20, 7]])
def test_batches_do_not_depend_on_the_number_of_processes(sizes):
    weights = [1.0, 2.0][: len(sizes)]
    alone = take(Draws(sizes, weights, 4, seed=3, world=ALONE), 20)
    for size in (2, 4):
        parts = [take(Draws(sizes, weights, 4, seed=3, world=World(r, size)), 20) for r in range(size)]
        assert [[draw for part in parts for draw in part[step]] for step in range(20)] == alone


def test_draws_go_on_where_they_stopped():
    for sizes, weights in (([13], [1.0]), ([20, 7], [1.0, 2.0])):
        whole = take(Draws(sizes, weights, 4, seed=0, world=ALONE), 30)
        assert take(Draws(sizes, weights, 4, seed=0, world=ALONE, start=17), 13) == whole[17:]


def test_every_instance_comes_once_in_an_epoch_and_the_order_changes():
    steps = take(Draws([24], [1.0], 4, seed=0, world=ALONE), 12)
    epochs = [[index for step in part for _, index in step] for part in (steps[:6], steps[6:])]
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(24)) and epochs[0] != epochs[1]
    assert take(Draws([24], [1.0], 4, seed=1, world=ALONE), 12) != steps


def test_a_process_owns_its_instances():
    seen = []
    for rank in range(2):
        draws = Draws([30], [1.0], 4, seed=0, world=World(rank, 2))
        seen.append({index for step in take(draws, 40) for _, index in step})
        assert len(seen[-1]) == draws.owned
    assert seen[0] | seen[1] == set(range(30)) and not seen[0] & seen[1]


def test_sources_come_by_their_weights_in_every_process():
    for rank in range(2):
        drawn = take(Draws([50, 50, 50], [1.0, 2.0, 5.0], 16, seed=0, world=World(rank, 2)), 50)
        counts = Counter(source for step in drawn for source, _ in step)
        assert [counts[i] for i in range(3)] == pytest.approx([50, 100, 250], abs=4)


def test_a_batch_that_the_processes_can_not_share_is_refused():
    with pytest.raises(InputError, match="a multiple of the 3 processes"):
        Draws([30], [1.0], 4, seed=0, world=World(0, 3))


# ---- rows


def test_rows_are_kept_and_the_oldest_gives_way():
    rows = Rows(3)
    assert rows.assign([7, 8]) == ([0, 1], [0, 1])
    assert rows.assign([8, 9]) == ([1, 2], [2])
    assert rows.assign([5, 8]) == ([0, 1], [0])  # 7 is the oldest
    again = Rows(3)
    again.load_state_dict(rows.state_dict())
    assert again.assign([7]) == rows.assign([7]) == ([2], [2])


# ---- reading


def test_damaged_files_are_skipped_by_name_and_the_next_is_taken(tmp_path, write_picture):
    for i in range(4):
        write_picture(tmp_path / f"{i}.png", i)
    (tmp_path / "1.png").write_bytes(b"")
    (tmp_path / "2.png").write_bytes((tmp_path / "3.png").read_bytes()[:60])
    config = DataConfig(size=8)
    source = Source("x", sorted(tmp_path.glob("*.png")), config)
    key, found, skipped, _ = Instances([source], None)[0, 1, 0]
    assert key == 3 and torch.equal(found.signal, build_task(config).load(tmp_path / "3.png").signal)
    assert len(skipped) == 2 and "1.png" in skipped[0] and "2.png" in skipped[1]
    lines: list[str] = []
    batches = list(evaluation_batches(source, 4, world=ALONE, limit=None, skipped=lines))
    assert [len(batch.signal) for batch in batches] == [2] and len(lines) == 2
    (tmp_path / "0.png").write_bytes(b"")
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(InputError, match="nothing can be read"):
        Instances([source], None)[0, 1, 0]


@pytest.mark.parametrize("size", [1, 2, 3])
def test_each_test_instance_is_measured_by_one_process(pictures, size):
    source = Source("x", sorted(pictures.glob("*.png")), DataConfig(size=8))
    signals = []
    for rank in range(size):
        for batch in evaluation_batches(source, 5, world=World(rank, size), limit=None, skipped=[]):
            signals += list(batch.signal)
    assert sorted(float(s.sum()) for s in signals) == sorted(float(source.get(i).signal.sum()) for i in range(12))


@pytest.mark.parametrize("workers", [0, 1])
def test_batches_hold_what_was_drawn(pictures, workers):
    config = DataConfig(size=8, workers=workers, in_memory=True)
    sources = find_sources([SourceConfig(root=str(pictures))], config, seed=0, world=ALONE)
    batches = training_batches(sources, config, 4, seed=0, world=ALONE, start=2)
    expected = take(Draws([11], [1.0], 4, seed=0, world=ALONE, start=2), 3)
    for drawn in expected:
        batch = next(batches)
        assert list(batch.keys) == [index for _, index in drawn]
        for key, signal in zip(batch.keys, batch.instance.signal, strict=True):
            assert torch.equal(signal, sources.train[0].get(key).signal)


def test_held_out_sources_are_only_tested_on(pictures, tmp_path, write_picture):
    for i in range(5):
        write_picture(tmp_path / "other" / f"{i}.png", 50 + i)
    configs = [SourceConfig(root=str(pictures)), SourceConfig(root=str(tmp_path / "other"), weight=0.0)]
    sources = find_sources(configs, DataConfig(size=8), seed=0, world=ALONE)
    assert [source.name for source in sources.train] == [pictures.name] and set(sources.test) == {
        pictures.name,
        "other",
    }


# ---- shards


def write_shard(path, pictures, broken=()):
    with tarfile.open(path, "w") as shard:
        for i, picture_ in enumerate(pictures):
            shard.add(picture_, arcname=f"{path.stem}_{i}.png")
        for i, data in enumerate(broken):
            bad = path.with_name("bad.png")
            bad.write_bytes(data)
            shard.add(bad, arcname=f"{path.stem}_bad{i}.png")


def streamed(*tars):
    """Addresses of tar files that are not taken for files on this machine."""
    return [f"pipe:cat {tar}" for tar in tars]


@pytest.fixture
def shards(pictures, tmp_path):
    """A folder of three tar files: train-0 with 4 pictures and what is none, train-1 and test-0 with 4."""
    files = sorted(pictures.glob("*.png"))
    (tmp_path / "shards").mkdir()
    write_shard(tmp_path / "shards" / "train-0.tar", files[:4], broken=[b"no picture"])
    write_shard(tmp_path / "shards" / "train-1.tar", files[4:8])
    write_shard(tmp_path / "shards" / "test-0.tar", files[8:])
    return tmp_path / "shards"


def test_the_members_of_tar_files_are_instances_like_files(shards, pictures):
    files, config = sorted(pictures.glob("*.png")), DataConfig(size=8)
    truth = torch.stack([build_task(config).load(path).signal for path in files])
    for where in (shards, shards / "{train-0,train-1,test-0}.tar"):
        sources = find_sources([SourceConfig(root=str(where), name="s")], config, seed=0, world=ALONE)
        assert len(sources.train[0]) == 9 and len(sources.test["s"]) == 4
        skipped: list[str] = []
        found = list(sources.train[0].once(ALONE, None, skipped))
        assert torch.equal(torch.stack([each.signal for each in found]), truth[:8])
        (line,) = skipped
        assert "train-0.tar: train-0_bad0.png" in line
        (batch,) = evaluation_batches(sources.test["s"], 4, world=ALONE, limit=None, skipped=[])
        assert torch.equal(batch.signal, truth[8:])


def test_one_tar_file_is_split_like_a_folder_and_a_limit_holds(pictures, tmp_path):
    write_shard(tmp_path / "all.tar", sorted(pictures.glob("*.png")))
    config = DataConfig(size=8, limit=5, test_ratio=0.25)
    sources = find_sources([SourceConfig(root=str(tmp_path / "all.tar"))], config, seed=0, world=ALONE)
    assert len(sources.train[0]) == 5 and len(sources.test["all.tar"]) == 3


def test_members_of_one_name_in_several_tar_files_are_several_instances(pictures, tmp_path):
    files = sorted(pictures.glob("*.png"))
    for i in range(3):
        with tarfile.open(tmp_path / f"{i}.tar", "w") as shard:
            for j, file in enumerate(files[4 * i : 4 * i + 4]):
                shard.add(file, arcname=f"sub/{j}.png")
    config = DataConfig(size=8)
    (train,) = find_sources([SourceConfig(root=str(tmp_path))], config, seed=0, world=ALONE).train
    instances = Instances([train], None)
    assert {instances[0, i, 0][0] for i in range(len(train))} == set(range(8))
    stream = Shards("s", streamed(*sorted(tmp_path.glob("*.tar"))), config, seed=0, world=ALONE)
    assert len({stream.draw(0, None, [])[0] for _ in range(12)}) == 12


def test_streams_are_read_again_and_again(shards, pictures):
    config, seen = DataConfig(size=8), {}
    skipped: list[str] = []
    stream = Shards("s", streamed(shards / "train-0.tar", shards / "train-1.tar"), config, seed=0, world=ALONE)
    for _ in range(30):
        key, instance = stream.draw(0, None, skipped)
        assert torch.equal(seen.setdefault(key, instance.signal), instance.signal)
    assert len(seen) == 8 and skipped and all("train-0_bad0.png" in line for line in skipped)
    limited = Shards("s", stream.urls[1:], config, seed=0, world=ALONE, limit=3)
    assert len({limited.draw(0, None, [])[0] for _ in range(12)}) == 3


def test_processes_read_streams_of_their_own(shards):
    keys = []
    for rank in range(2):
        urls = streamed(shards / "train-1.tar", shards / "test-0.tar")
        stream = Shards("s", urls, DataConfig(size=8), seed=0, world=World(rank, 2))
        keys.append({stream.draw(0, None, [])[0] for _ in range(12)})
    assert len(keys[0]) == len(keys[1]) == 4 and not keys[0] & keys[1]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stream_goes_on_where_it_was(shards, workers):
    config = DataConfig(size=8, workers=workers)

    def batches(start, positions):
        stream = Shards("s", streamed(*sorted(shards.glob("*.tar"))), config, seed=0, world=ALONE)
        sources = Sources((SourceConfig(root="s"),), [stream], {})
        return training_batches(sources, config, 4, seed=0, world=ALONE, start=start, positions=positions)

    whole, positions = batches(0, {}), {}
    for step in range(1, 8):
        positions |= next(whole).positions
        if step in (2, 5):
            parts = batches(step, dict(positions))
            rest = [next(parts) for _ in range(3)]
            if step == 5:
                continue_from = rest
    following = [next(whole) for _ in range(1)]
    assert continue_from[2].keys == following[0].keys
    assert torch.equal(continue_from[2].instance.signal, following[0].instance.signal)


def test_a_damaged_shard_is_skipped_and_only_damaged_ones_are_refused(pictures, tmp_path):
    write_shard(tmp_path / "a.tar", sorted(pictures.glob("*.png"))[:3])
    (tmp_path / "b.tar").write_bytes(b"no tar file" * 100)
    with tarfile.open(tmp_path / "a.tar") as whole:
        end = whole.getmembers()[2].offset_data + 100
    (tmp_path / "c.tar").write_bytes((tmp_path / "a.tar").read_bytes()[:end])
    write_shard(tmp_path / "test.tar", sorted(pictures.glob("*.png"))[3:4])
    config = DataConfig(size=8)
    sources = find_sources([SourceConfig(root=str(tmp_path), name="s")], config, seed=0, world=ALONE)
    assert len(sources.train[0]) == 5 and len(sources.test["s"]) == 1
    assert len(sources.skipped) == 2 and "b.tar" in sources.skipped[0] and "after 2 samples" in sources.skipped[1]
    skipped: list[str] = []
    stream = Shards("s", streamed(tmp_path / "a.tar", tmp_path / "b.tar"), config, seed=0, world=ALONE)
    assert len({stream.draw(0, None, skipped)[0] for _ in range(12)}) == 3 and any("b.tar" in line for line in skipped)
    with pytest.raises(InputError, match="whose shards give nothing"):
        Shards("s", streamed(tmp_path / "b.tar"), config, seed=0, world=ALONE).draw(0, None, [])
    with pytest.raises(InputError, match="whose shards give nothing"):
        find(str(tmp_path / "b.tar"), "auto", "image", 0.1)
    with pytest.raises(InputError, match="a tar file"):
        find(str(tmp_path / "d.tar"), "auto", "image", 0.1)
    with pytest.raises(InputError, match="at least two tar files where they are streamed"):
        find(f"pipe:cat {tmp_path / 'a.tar'}", "auto", "image", 0.1)
