"""The pixels of all images: the host's colours bit for bit, in a quarter of the memory, wherever they lie."""

import threading
import time

import numpy as np
import PIL.Image
import pytest
import torch

pytest.importorskip("nerfstudio")

from nerfstudio.cameras.cameras import Cameras
from nerfstudio.data.dataparsers.base_dataparser import DataparserOutputs
from nerfstudio.data.datasets.base_dataset import InputDataset

from evos.errors import InputError
from evos_nerf.masks import PackedMask, list_members, pack
from evos_nerf.pixel_sampler import EvosPixelSamplerConfig
from evos_nerf.rays import RayPool, evenly, in_order, load_rays

pytestmark = pytest.mark.nerf

SIZES = [(9, 7), (9, 7), (9, 7)]
MIXED = [(9, 7), (5, 12), (8, 8)]
WHITE = torch.tensor([1.0, 0.7, 0.1])


class WithDepth(InputDataset):
    """Depths in floats that no byte can hold."""

    def get_metadata(self, data):
        height, width = data["image"].shape[:2]
        return {"depth_image": torch.arange(height * width).view(height, width, 1) / 7 + data["image_idx"]}


class Darkened(InputDataset):
    """Makes its images in its own way."""

    def get_image_float32(self, image_idx):
        return super().get_image_float32(image_idx) / 3


@pytest.fixture
def scene(tmp_path):
    """A data set of images of random bytes."""

    def make(sizes=SIZES, channels=(3, 3, 3), kind=InputDataset, masks=None, alpha_color=None, mask_color=None):
        draw = np.random.default_rng(0)
        names = []
        for number, ((height, width), depth) in enumerate(zip(sizes, channels, strict=True)):
            names.append(tmp_path / f"{number}.png")
            PIL.Image.fromarray(draw.integers(0, 256, (height, width, depth), np.uint8)).save(names[-1])
        mask_names = None
        if masks is not None:
            mask_names = [tmp_path / f"mask_{number}.png" for number in range(len(masks))]
            for name, mask in zip(mask_names, masks, strict=True):
                PIL.Image.fromarray(255 * mask.numpy().astype(np.uint8)).save(name)
        height, width = torch.tensor(sizes).T[..., None]
        pose = torch.eye(4)[None, :3].expand(len(sizes), 3, 4)
        cameras = Cameras(pose, 10.0, 10.0, 4.0, 4.0, height=height, width=width)
        metadata = {} if mask_color is None else {"mask_color": mask_color}
        return kind(DataparserOutputs(names, cameras, alpha_color, mask_filenames=mask_names, metadata=metadata))

    return make


def all_points(sizes):
    return torch.cat(
        [torch.cartesian_prod(torch.tensor([i]), *map(torch.arange, size)) for i, size in enumerate(sizes)]
    )


@pytest.mark.parametrize("sizes", [SIZES, MIXED])
@pytest.mark.parametrize(
    ("channels", "alpha_color"), [((3, 3, 3), None), ((4, 4, 4), None), ((4, 4, 4), WHITE), ((3, 3, 3), WHITE)]
)
def test_colours_are_the_hosts_bit_for_bit(sizes, channels, alpha_color, scene):
    data = scene(sizes, channels, alpha_color=alpha_color)
    rays = load_rays(data, "cpu")
    assert rays.sizes == sizes and rays.pixels["image"].dtype == torch.uint8
    whole = [data[number]["image"] for number in range(3)]
    for number in range(3):
        assert torch.equal(rays.picture(number), whole[number])
    points = all_points(sizes)
    expected = torch.cat([image.flatten(0, 1) for image in whole])
    assert torch.equal(rays.gather(points)["image"], expected) and torch.equal(rays.colours(points), expected)
    assert torch.equal(rays.gather(points)["indices"], points)


def test_images_with_and_without_alpha_are_blended_as_the_host_blends_them(scene):
    data = scene(MIXED, (3, 4, 3), alpha_color=WHITE)
    rays = load_rays(data, "cpu")
    assert all(torch.equal(rays.picture(number), data[number]["image"]) for number in range(3))


def test_images_with_and_without_alpha_are_one_line_where_there_is_nothing_to_blend_them_with(scene):
    with pytest.raises(InputError, match="--data: got images with and images without alpha"):
        load_rays(scene(MIXED, (3, 4, 3)), "cpu")


@pytest.mark.parametrize("options", [{"kind": Darkened}, {"mask_color": (0.2, 0.3, 0.4)}])
def test_a_data_set_that_makes_its_images_in_its_own_way_is_asked_for_them(options, scene):
    data = scene(masks=[torch.rand(size) < 0.5 for size in SIZES], **options)
    rays = load_rays(data, "cpu")
    assert all(torch.equal(rays.picture(number), data[number]["image"]) for number in range(3))


def test_depths_stay_floats_and_masks_are_those_of_the_files(scene):
    masks = [torch.rand(size) < 0.5 for size in MIXED]
    data = scene(MIXED, kind=WithDepth, masks=masks)
    rays = load_rays(data, "cpu")
    found = rays.gather(all_points(MIXED))
    assert torch.equal(found["depth_image"], torch.cat([data[i]["depth_image"].flatten(0, 1) for i in range(3)]))
    assert torch.equal(found["mask"][:, 0], torch.cat([mask.flatten() for mask in masks]))


def test_the_host_gets_views_of_the_same_pixels_and_its_batch_the_same_colours(scene):
    from nerfstudio.data.pixel_samplers import PixelSamplerConfig
    from nerfstudio.data.utils.nerfstudio_collate import nerfstudio_collate

    data = scene(channels=(4, 4, 4), alpha_color=WHITE, masks=[torch.rand(size) < 0.5 for size in SIZES])
    rays = load_rays(data, "cpu")
    ours, theirs = rays.batch(), nerfstudio_collate([data[number] for number in range(3)])
    assert ours["image"].data_ptr() == rays.pixels["image"].data_ptr()
    assert torch.equal(ours["mask"], theirs["mask"]) and torch.equal(ours["image_idx"], theirs["image_idx"])
    found = []
    for images, finished in ((ours, rays.finished), (theirs, dict)):
        torch.manual_seed(0)
        found.append(finished(PixelSamplerConfig().setup(num_rays_per_batch=20).sample(images)))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])
    mixed = load_rays(scene(MIXED), "cpu")
    shapes = [tuple(picture.shape) for picture in mixed.batch()["image"]]
    assert shapes == [(*size, 3) for size in MIXED]
    assert mixed.batch()["image"][0].data_ptr() == mixed.pixels["image"].data_ptr()


def test_each_part_lies_where_it_is_asked_for(scene):
    """The meta device stands for a GPU."""
    data = scene(kind=WithDepth, masks=[torch.rand(size) < 0.5 for size in SIZES])
    rays = load_rays(data, "meta", on_host=("image", "mask"))
    assert rays.pixels["image"].device.type == rays.mask.bits.device.type == "cpu"
    assert rays.pixels["depth_image"].device.type == "meta"
    assert {value.device.type for value in rays.gather(all_points(SIZES)).values()} == {"meta"}
    assert load_rays(data, "meta").pixels["image"].device.type == "meta"


def test_images_larger_than_their_cameras_are_read_whole(scene):
    data = scene(MIXED)
    data.cameras.height[:] = 2
    rays = load_rays(data, "cpu")
    assert rays.sizes == MIXED and all(torch.equal(rays.picture(i), data[i]["image"]) for i in range(3))


def test_of_a_fisheye_the_circle_is_drawn_where_there_is_no_mask(scene):
    dataset = scene(sizes=((12, 15), (12, 15), (12, 15)))
    dataset.cameras.metadata = {"fisheye_crop_radius": 4.0}
    rays = load_rays(dataset, "cpu", radius=4.0)
    one = EvosPixelSamplerConfig(tile_side=3).setup(num_rays_per_batch=64, fisheye_crop_radius=4.0)
    drawn = torch.cat([one.sample(rays, step)["indices"] for step in range(100)])
    y, x = drawn[:, 1] + 0.5 - 6, drawn[:, 2] + 0.5 - 7  # the host's middle: half of the size, rounded down
    assert float((y**2 + x**2).sqrt().max()) <= 4.0
    circle = sum((y + 0.5 - 6) ** 2 + (x + 0.5 - 7) ** 2 <= 16 for y in range(12) for x in range(15))
    assert len(set(map(tuple, drawn.tolist()))) == 3 * circle, "every pixel of the circle"
    host = EvosPixelSamplerConfig(selector="host").setup(num_rays_per_batch=64, fisheye_crop_radius=4.0)
    assert {tuple(place) for place in host.sample(rays, 0)["indices"].tolist()} <= set(map(tuple, drawn.tolist()))
    masks = [torch.ones(12, 15, dtype=torch.bool)] * 3
    assert load_rays(scene(sizes=((12, 15),) * 3, masks=masks), "cpu", radius=4.0).drawable.picture(0).all()


def test_images_are_read_in_order_and_only_a_few_ahead():
    begun, lock = [], threading.Lock()

    def read(number):
        with lock:
            begun.append(number)
        time.sleep(0.002 * (number % 3))
        return number

    for number, found in enumerate(in_order(read, 40, threads=3)):
        assert found == number and len(begun) <= number + 1 + 3
    assert sorted(begun) == list(range(40))


def test_a_packed_mask_takes_a_bit_a_pixel_and_the_runs_of_its_tiles_little_more():
    sizes = [(90, 70), (50, 121)]
    masks = [torch.rand(size) < 0.3 for size in sizes]
    packed = PackedMask(sizes, torch.cat([pack(mask) for mask in masks]))
    assert all(np.array_equal(packed.picture(i), mask.numpy()) for i, mask in enumerate(masks))
    points = all_points(sizes)
    found = packed.at(points[:, 0], points[:, 1] * torch.tensor(sizes)[points[:, 0], 1] + points[:, 2])
    assert torch.equal(found, torch.cat([mask.flatten() for mask in masks]))
    tiles = [(-(-height // 12), -(-width // 12)) for height, width in sizes]
    members = list_members(packed, 12, (2, 8, 11), tiles)
    taken = packed.bits.nbytes + members.runs.nbytes
    assert taken / sum(height * width for height, width in sizes) < 0.125 + 2 / 11
    assert int(members.count.sum()) == sum(int(mask.sum()) for mask in masks)


def test_every_beginning_of_an_even_order_is_spread_over_the_whole():
    order = evenly(1000, torch.device("cpu"))
    assert torch.equal(order.sort().values, torch.arange(1000))
    for count in (10, 37, 500, 900):
        assert abs(int((order[:count] < 300).sum()) - 0.3 * count) < 3


def test_images_in_another_order_are_refused():
    from evos.errors import InputError

    with pytest.raises(InputError, match="EvosDataManager"):
        RayPool.of({"image": torch.rand(2, 3, 3, 3), "image_idx": torch.tensor([1, 0])})
