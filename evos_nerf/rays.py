"""The pixels of all training images, from which those of the rays are gathered, and rays drawn ahead.

Images keep the bytes of their files, a quarter of what floats take, and become floats where the rays are: after the
gather, on the device. They lie in the host's memory unless ``images_on_gpu`` is set. Only the gathered pixels are
pinned: those of all steps up to the next ranking take one transfer, and the device never reads anything else.
"""

import copy
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Shaped
from nerfstudio.data.datasets.base_dataset import InputDataset
from torch import Tensor

from evos.errors import InputError
from evos.selection import Selection
from evos_nerf.masks import PackedMask, Size, pack

READERS = ("__getitem__", "get_data", "get_image_float32", "get_image_uint8")
"""The methods by which a data set makes pictures of files; one that overrides any is asked for its floats."""


@dataclass(eq=False)
class RayPool:
    """The pixels of N images, M in all, one image after the other.

    Args:
        sizes: of each image.
        pixels: what the images are made of, by the name that the host gives it in a batch ("M ..."), wherever it lies.
        device: where rays are trained on.
        mask: the data set's masks.
        drawable: the pixels that may be drawn: ``mask``, of every so many rows and columns, in a circle; None: all.
        alpha_color: what shows through where images of four channels are transparent; None: they keep four channels.
    """

    sizes: list[Size]
    pixels: dict[str, Shaped[Tensor, "M ..."]]
    device: torch.device
    mask: PackedMask | None = None
    drawable: PackedMask | None = None
    alpha_color: Float[Tensor, " 3"] | None = None

    def __post_init__(self) -> None:
        area = torch.tensor(self.sizes).prod(1)
        self.start: Int[Tensor, " N"] = area.cumsum(0) - area  # where each image begins
        self._layouts: dict[torch.device, tuple[Tensor, Tensor]] = {}

    @classmethod
    def of(cls, batch: dict[str, Any]) -> "RayPool":
        """From all images as the host collates them: a tensor, or a list where sizes differ. Tensors are not copied."""
        images = batch["image"]
        if not torch.equal(batch["image_idx"].cpu(), torch.arange(len(images))):
            raise InputError("image_batch", "some of the training images", "all of them in order: use EvosDataManager")
        sizes = [(image.shape[0], image.shape[1]) for image in images]
        pixels = {
            key: value.flatten(0, 2) if isinstance(value, Tensor) else torch.cat([one.flatten(0, 1) for one in value])
            for key, value in batch.items()
            if key not in ("image_idx", "mask") and value is not None
        }
        mask, device = None, images[0].device
        if batch.get("mask") is not None:
            mask = PackedMask(sizes, torch.cat([pack(one.squeeze(-1).bool()) for one in batch["mask"]]).to(device))
        return cls(sizes, pixels, device, mask, mask)

    def flat(self, points: Int[Tensor, "K 3"]) -> Int[Tensor, " K"]:
        """Indices of pixels (image, y, x) among the pixels of all images."""
        start, _ = self.layout(points.device)
        return start[points[:, 0]] + self.within(points)

    def within(self, points: Int[Tensor, "K 3"]) -> Int[Tensor, " K"]:
        """Indices of pixels (image, y, x) among the pixels of their image."""
        _, size = self.layout(points.device)
        return points[:, 1] * size[points[:, 0], 1] + points[:, 2]

    def layout(self, device: torch.device) -> tuple[Int[Tensor, " N"], Int[Tensor, "N 2"]]:
        """Where each image begins, and its height and width; on ``device``, copied there once."""
        if device not in self._layouts:
            self._layouts[device] = (self.start.to(device), torch.tensor(self.sizes).to(device))
        return self._layouts[device]

    def gather(self, points: Int[Tensor, "K 3"]) -> dict[str, Shaped[Tensor, "K ..."]]:
        """All that is known of pixels (image, y, x), on the device, and the pixels themselves as the ``indices``."""
        devices = {values.device for values in self.pixels.values()}
        places = {device: self.flat(points.to(device)) for device in devices}
        found = {key: self.moved(values[places[values.device]]) for key, values in self.pixels.items()}
        if self.mask is not None:
            there = points.to(self.mask.bits.device)
            found["mask"] = self.moved(self.mask.at(there[:, 0], self.within(there))[:, None])
        return found | {"image": self.floats(found["image"]), "indices": self.moved(points)}

    def is_seen(self, points: Int[Tensor, "K 3"]) -> Bool[Tensor, " K"]:
        """Whether (image, y, x) are pixels of the images that the data set's masks do not hide."""
        _, size = self.layout(points.device)
        inside = ((points[:, 1:] >= 0) & (points[:, 1:] < size[points[:, 0]])).all(1)
        if self.mask is None:
            return inside
        device = self.mask.bits.device
        unmasked = self.mask.at(points[:, 0].to(device), self.within(points).clamp(min=0).to(device))
        return inside & unmasked.to(points.device)

    def colours(self, points: Int[Tensor, "K 3"]) -> Float[Tensor, "K C"]:
        """The image at pixels (image, y, x), on the device."""
        values = self.pixels["image"]
        return self.floats(self.moved(values[self.flat(points).to(values.device)]))

    def picture(self, image: int) -> Float[Tensor, "H W C"]:
        """One image, on the device."""
        height, width = self.sizes[image]
        begin = int(self.start[image])
        return self.floats(self.moved(self.pixels["image"][begin : begin + height * width])).view(height, width, -1)

    def moved(self, values: Shaped[Tensor, "*S"]) -> Shaped[Tensor, "*S"]:
        """``values`` on the device; nothing waits for the copy."""
        if self.device.type == "cuda" and values.device.type == "cpu":
            return values.pin_memory().to(self.device, non_blocking=True)
        return values.to(self.device)

    def floats(self, values: Shaped[Tensor, "*S C"]) -> Float[Tensor, "*S D"]:
        """Colours in [0, 1] from the values of images, bit for bit as the host's data set makes them."""
        if values.dtype != torch.uint8:
            return values
        # Divided by a tensor: CUDA would multiply by the reciprocal of a number, which is rounded otherwise.
        colours = values.float() / torch.full((), 255.0, device=values.device)
        if self.alpha_color is None or colours.shape[-1] != 4:
            return colours
        alpha = colours[..., 3:]
        return colours[..., :3] * alpha + self.alpha_color * (1.0 - alpha)

    def batch(self) -> dict[str, Any]:
        """All images as the host collates them, without copies but for the masks; colours as they are stored."""
        pixels = dict(self.pixels)
        if self.drawable is not None:
            masks = [torch.from_numpy(self.drawable.picture(image)).flatten() for image in range(len(self.sizes))]
            pixels["mask"] = torch.cat(masks)[:, None].to(self.drawable.bits.device)
        found: dict[str, Any] = {"image_idx": torch.arange(len(self.sizes))}
        for key, values in pixels.items():
            parts = values.split([height * width for height, width in self.sizes])
            found[key] = [part.unflatten(0, size) for part, size in zip(parts, self.sizes, strict=True)]
            if len(set(self.sizes)) == 1:
                found[key] = values.unflatten(0, (len(self.sizes), *self.sizes[0]))
        return found

    def finished(self, batch: dict[str, Any]) -> dict[str, Any]:
        """A batch that the host's sampler gathered from ``batch()``, with colours, on the device."""
        moved = {key: self.moved(value) if isinstance(value, Tensor) else value for key, value in batch.items()}
        return moved | {"image": self.floats(moved["image"])}


# ---- loading


MASKS = ("mask", "drawable mask")
"""While images are read: the masks of the data set, and those of the pixels that may be drawn."""


class MixedChannels(Exception):
    """Images with and without alpha, which cannot lie in one tensor."""


def load_rays(
    dataset: InputDataset,
    device: torch.device | str,
    *,
    on_host: Collection[str] = (),
    factor: int = 1,
    radius: float | None = None,
) -> RayPool:
    """The pixels of all images of a data set; never much more in memory than they take in the end.

    Args:
        dataset: the training images.
        device: where rays are trained on.
        on_host: the parts of a batch, such as image and mask, that stay in the host's memory.
        factor: draw from every so many rows and columns only, from the first.
        radius: draw only within so many pixels of the middle of images without a mask (fisheye cameras).
    """
    device = torch.device(device)
    files = files_of(dataset)
    drawn = partial(drawn_pixels, factor=factor, radius=radius) if factor > 1 or radius is not None else None
    try:
        return pool_of(dataset if files is None else files, files is not None, dataset, device, on_host, drawn)
    except MixedChannels:
        if files is None or dataset._dataparser_outputs.alpha_color is None:
            raise InputError("--data", "images with and images without alpha", "all of one kind") from None
        return pool_of(dataset, False, dataset, device, on_host, drawn)  # in three channels, as the host blends them


def files_of(dataset: InputDataset) -> InputDataset | None:
    """The data set with images as they are in their files, alpha included; None where it makes them in its own way."""
    if dataset.mask_color or any(getattr(type(dataset), name) is not getattr(InputDataset, name) for name in READERS):
        return None
    found = copy.copy(dataset)
    found._dataparser_outputs = replace(dataset._dataparser_outputs, alpha_color=None)
    return found


def pool_of(
    source: InputDataset,
    is_bytes: bool,
    dataset: InputDataset,
    device: torch.device,
    on_host: Collection[str],
    drawn: Callable[[Tensor | None, Size], Tensor] | None,
) -> RayPool:
    """What ``load_rays`` returns, read from ``source`` in bytes or in floats; ``drawn``: where masks don't say all."""
    read = partial(source.get_data, image_type="uint8") if is_bytes else source.__getitem__
    expected = int((dataset.cameras.height * dataset.cameras.width).sum())
    columns: dict[str, Column] = {}
    sizes: list[Size] = []

    def write(key: str, picture: Tensor, expected: int) -> None:
        if key not in columns:
            place = torch.device("cpu") if key.split()[-1] in on_host else device
            columns[key] = Column(picture, expected, place)
        columns[key].append(picture)

    def readable(number: int) -> dict[str, Any]:
        try:
            return read(number)
        except OSError as error:
            name = str(dataset.image_filenames[number])
            raise InputError(name, f"an image or mask that can't be read ({error})", "files that are whole") from error

    for item in in_order(readable, len(dataset), os.cpu_count() or 1):
        height, width = item["image"].shape[:2]
        sizes.append((height, width))
        mask = item.pop("mask", None)
        if mask is not None:
            mask = mask.squeeze(-1).bool()
            write(MASKS[0], pack(mask)[:, None], expected // 8 + len(dataset))
        if drawn is not None:
            write(MASKS[1], pack(drawn(mask, (height, width)))[:, None], expected // 8 + len(dataset))
        del item["image_idx"]
        for key, value in item.items():
            if value is not None:
                write(key, value, expected)
    values = {key: column.values[: column.end] for key, column in columns.items()}
    bits = [values.pop(key, None) for key in MASKS]
    mask, grid = (None if one is None else PackedMask(sizes, one) for one in bits)
    color = dataset._dataparser_outputs.alpha_color if is_bytes else None
    return RayPool(
        sizes,
        values,
        device,
        mask,
        mask if drawn is None else grid,
        None if color is None else color.to(device),
    )


def drawn_pixels(mask: Tensor | None, size: Size, factor: int, radius: float | None) -> Bool[Tensor, "H W"]:
    """The pixels that may be drawn: every ``factor``-th row and column, within the mask or else the circle."""
    kept = torch.zeros(size, dtype=torch.bool)
    kept[::factor, ::factor] = True
    if mask is not None:
        return kept & mask
    if radius is None:
        return kept
    # The centres of pixels, and the circle around the middle of the image, where the host has it.
    y, x = (torch.arange(extent) + 0.5 - extent // 2 for extent in size)
    return kept & (y[:, None] ** 2 + x**2 <= radius**2)


class Column:
    """Values of pixels that are written one image after the other into one tensor, as long as ``expected`` or longer.

    Memory that has not been written to takes none.
    """

    def __init__(self, first: Shaped[Tensor, "H W ..."], expected: int, device: torch.device) -> None:
        self.values = torch.empty(expected, *first.shape[2:], dtype=first.dtype, device=device)
        self.end = 0

    def append(self, picture: Shaped[Tensor, "H W ..."]) -> None:
        """Write the pixels of the next image; MixedChannels where they are of another kind."""
        if picture.shape[2:] != self.values.shape[1:]:
            raise MixedChannels
        end = self.end + picture.shape[0] * picture.shape[1]
        if end > len(self.values):  # an image larger than its camera
            self.values = torch.cat((self.values, self.values.new_empty(end - len(self.values), *picture.shape[2:])))
        self.values[self.end : end] = picture.flatten(0, 1)
        self.end = end


def in_order(read: Callable[[int], Any], count: int, threads: int) -> Iterator[Any]:
    """``read(0)`` to ``read(count - 1)``, called by ``threads``, one for each ahead of what is asked for."""
    with ThreadPoolExecutor(threads) as pool:
        ahead = threads
        reading = deque(pool.submit(read, number) for number in range(min(count, ahead)))
        for number in range(count):
            if number + ahead < count:
                reading.append(pool.submit(read, number + ahead))
            yield reading.popleft().result()


# ---- drawn ahead


@dataclass(frozen=True)
class RaysAhead:
    """The rays of n steps from ``first`` on, k each, drawn together: on a GPU the cost of drawing is the number of
    kernels, not the number of rays."""

    first: int
    selection: Selection
    """That of all steps; its index is not used."""
    cells: Int[Tensor, "n k"]
    batch: dict[str, Any]
    """Tensors "n k ...", and the bundle of rays "n k" where there is one."""

    may_be_fewer: bool = False
    """Whether the first rays of a step stand for all of them; see ``evenly``."""

    def has(self, step: int, rays: int) -> bool:
        """Whether there are so many rays for ``step``."""
        drawn = self.cells.shape[1]
        return 0 <= step - self.first < len(self.cells) and (rays == drawn or (self.may_be_fewer and rays < drawn))

    def at(self, step: int, rays: int) -> tuple[Selection, dict[str, Any]]:
        """Which cells were selected for ``step``, and the pixels drawn from them, and their rays: views."""
        number = step - self.first
        batch = {key: values[number, :rays] for key, values in self.batch.items()}
        is_key = self.selection.is_key and number == 0
        return replace(self.selection, index=self.cells[number : number + 1, :rays], step=step, is_key=is_key), batch


def evenly(count: int, device: torch.device) -> Int[Tensor, " K"]:
    """An order of ``count`` draws whose every beginning is spread evenly over all of them: by the fractional parts of
    multiples of the golden ratio. Survivors and mutants, which come one after the other, keep their fractions in it."""
    return (torch.arange(count, device=device) * 0.6180339887 % 1).argsort()
