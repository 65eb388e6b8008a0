"""Rendered rooms with exact depth: data that the project makes itself.

    python evonas/rooms.py out=runs/rooms

Writes {train,search,test}/{rgb,depth}/ROOM_VIEW.png, the layout ``rgbd``: colour at 8 bits, depth along the optical
axis at 16 bits (5000 units a metre). Rooms of different splits have nothing in common, and a room depends on the seed,
its split and its number alone. Sizes of textures are random, so that they don't give the depth away.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from einops import rearrange, reduce
from jaxtyping import Float
from torch import Tensor

from evonas.data import SPLITS
from evonas.tasks.depth import write_depth
from evos.command_line import parse_options
from evos.config import check_range
from evos.errors import exit_on_input_error
from evos.images import write_image
from evos.ray_tracing import (
    Box,
    Cylinder,
    Points,
    Sphere,
    Thing,
    Torus,
    camera_rays,
    first_hit,
    frame_along,
    rod,
    trace,
)
from evos.runs.files import write_json
from evos.runs.outputs import check_generated, whole_folder
from evos.runs.progress import Progress
from evos.seeding import mixed_seed
from evos.textures import Texture, bricks, globe_checks, marble, plain, rgb, ring_checks, stripes

DEPTH_SCALE = 5000
FIELD_OF_VIEW = math.radians(62)  # horizontal
SAMPLES = 2  # rays along each side of a pixel
GENERATOR = "evonas.rooms"
FILES = ("dataset.json", *(f"{split}/{kind}/*.png" for split in SPLITS for kind in ("rgb", "depth")))


@dataclass(frozen=True)
class RoomsConfig:
    """Options of the rooms."""

    out: str = "runs/rooms"
    """Folder to write."""

    train_rooms: int = 300
    """Rooms to train on, at least 1."""

    search_rooms: int = 30
    """Rooms to choose by, at least 1."""

    test_rooms: int = 30
    """Rooms to report, at least 1."""

    views: int = 4
    """Views of each room, at least 1."""

    height: int = 96
    """Height of a view in pixels, 8 to 2048."""

    width: int = 128
    """Width of a view in pixels, 8 to 2048."""

    seed: int = 0
    """Seed of all rooms, at least 0."""

    overwrite: bool = False
    """Replace rooms that this program wrote."""

    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        for name in ("train_rooms", "search_rooms", "test_rooms", "views"):
            check_range(name, getattr(self, name), 1)
        check_range("height", self.height, 8, 2048)
        check_range("width", self.width, 8, 2048)
        check_range("seed", self.seed, 0, 2**32 - 1)


class Draws:
    """Random choices from one generator."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def between(self, low: float, high: float) -> float:
        """Uniform in [low, high)."""
        return low + (high - low) * float(torch.rand((), generator=self.generator))

    def one_of(self, options: Sequence) -> object:
        """Any of them."""
        return options[int(torch.randint(len(options), (), generator=self.generator))]

    def colour(self) -> str:
        """Six hexadecimal digits."""
        numbers = torch.randint(20, 246, (3,), generator=self.generator).tolist()
        return "".join(f"{number:02x}" for number in numbers)


Pattern = Callable[[Float[Tensor, "N"], Float[Tensor, "N"]], Float[Tensor, "N"]]


def wall_pattern(draws: Draws) -> Pattern:
    """A fraction between two colours at places of a wall, in metres: plain, checks, stripes, bricks or dots."""
    side = math.exp(draws.between(math.log(0.1), math.log(1.2)))
    angle = draws.between(0, math.pi)
    c, s = math.cos(angle), math.sin(angle)
    kinds: dict[str, Pattern] = {
        "plain": lambda u, v: torch.zeros_like(u),
        "checks": lambda u, v: ((u / side).floor() + (v / side).floor()).remainder(2),
        "stripes": lambda u, v: ((c * u + s * v) / side).remainder(1).gt(0.6).float(),
        "bricks": lambda u, v: torch.maximum(
            (v / side).remainder(1), (0.5 * u / side + 0.5 * (v / side).floor()).remainder(1)
        ).gt(0.92).float(),
        "dots": lambda u, v: ((u / side).remainder(1) - 0.5).square().add(((v / side).remainder(1) - 0.5).square())
        .lt(0.06).float(),
        "waves": lambda u, v: 0.5
        + 0.5 * torch.sin(6 * (c * u + s * v) / side + 2 * torch.sin(3 * (s * u - c * v) / side)),
    }  # fmt: skip
    return kinds[str(draws.one_of(list(kinds)))]


def texture(draws: Draws, size: float) -> Texture:
    """Any texture of a thing of this size."""
    first, second = draws.colour(), draws.colour()
    count = int(draws.between(4, 24)) * 2
    return draws.one_of(  # type: ignore[return-value]
        [
            plain(first),
            plain(second),
            globe_checks(first, second, count),
            ring_checks(first, second, size * draws.between(0.1, 0.5), count),
            bricks(first, second, size * draws.between(0.15, 0.6)),
            stripes(first, second, count),
            marble(first, second, 2 * size, draws.generator),
        ]
    )


class Room:
    """A closed room: x and y on the floor from 0 to its length and width, z up to its height, all in metres."""

    def __init__(self, seed: int) -> None:
        """Everything follows from the seed."""
        self.draws = draws = Draws(seed)
        self.size = torch.tensor([draws.between(3.5, 8), draws.between(3.5, 7), draws.between(2.3, 3.3)])
        self.light = (draws.between(-0.8, 0.8), draws.between(-0.8, 0.8), draws.between(0.6, 1.2))
        self.patterns = [wall_pattern(draws) for _ in range(6)]
        self.colours = [(rgb(draws.colour()), rgb(draws.colour())) for _ in range(6)]
        self.things = [self.thing() for _ in range(int(draws.between(9, 20)))]

    def thing(self) -> Thing:
        """A box, ball, cylinder or ring that stands, lies or hangs, or a thin rod."""
        draws, (length, width, height) = self.draws, self.size.tolist()
        size = math.exp(draws.between(math.log(0.12), math.log(0.6)))
        x, y = draws.between(0.4, length - 0.4), draws.between(0.4, width - 0.4)
        z = size if draws.between(0, 1) < 0.7 else draws.between(size, height - size)
        turn = draws.between(0, math.pi)
        axes = torch.tensor([[math.cos(turn), -math.sin(turn), 0], [math.sin(turn), math.cos(turn), 0], [0, 0, 1]])
        gloss = draws.between(0, 0.6)
        kind = draws.one_of(["box", "ball", "cylinder", "rod", "rod", "ring"])
        if kind == "rod":
            top = [x + draws.between(-0.8, 0.8), y + draws.between(-0.8, 0.8), draws.between(0.7, height)]
            return rod((x, y, 0.0), top, draws.between(0.012, 0.04), draws.colour())
        shapes = {
            "box": Box(size),
            "ball": Sphere(size),
            "cylinder": Cylinder(size * draws.between(0.3, 1), size),
            "ring": Torus(0.75 * size, 0.25 * size * draws.between(0.4, 1)),
        }
        if kind == "ring":
            axes = frame_along(torch.randn(3, generator=draws.generator))
        return Thing(shapes[str(kind)], texture(draws, size), torch.tensor([x, y, z]), axes, gloss)

    def pose(self) -> Float[Tensor, "4 4"]:
        """A camera at 1.2 to 1.8 m that looks about towards a thing, upright to 5°, 0.3 m from all, 0.8 m ahead."""
        draws = self.draws
        while True:
            spread = torch.rand(3, generator=draws.generator)
            length, width, _ = self.size.tolist()
            place = torch.tensor([0.4, 0.4, 1.2]) + spread * torch.tensor([length - 0.8, width - 0.8, 0.6])
            aim = self.things[int(draws.between(0, len(self.things)))].centre - place
            turn, tilt = math.atan2(aim[1], aim[0]) + draws.between(-0.3, 0.3), draws.between(-0.4, 0.05)
            forward = torch.tensor([math.cos(turn) * math.cos(tilt), math.sin(turn) * math.cos(tilt), math.sin(tilt)])
            roll = draws.between(-0.09, 0.09)
            right = F.normalize(torch.linalg.cross(forward, torch.tensor([0.0, 0.0, 1.0])), dim=0)
            up = torch.linalg.cross(right, forward)
            right, up = math.cos(roll) * right + math.sin(roll) * up, math.cos(roll) * up - math.sin(roll) * right
            pose = torch.eye(4)
            pose[:3] = torch.stack([right, up, -forward, place], dim=1)
            around = F.normalize(torch.randn(64, 3, generator=draws.generator), dim=-1)
            near, _ = first_hit(self.things, place.expand(64, 3), around)
            ahead, _ = first_hit(self.things, place[None], forward[None])
            wall = self.walls(place[None], forward[None])[0]
            if near.min() > 0.3 and torch.minimum(ahead, wall).min() > 0.8:
                return pose

    def walls(self, origin: Points, direction: Points) -> tuple[Float[Tensor, "N"], Float[Tensor, "N 3"]]:
        """Distance to the walls from inside, and the outward sign of the wall's axis that is hit (one-hot)."""
        ahead = torch.where(direction.abs() < 1e-9, 1e-9, direction)
        exits = torch.where(ahead > 0, (self.size - origin) / ahead, -origin / ahead)
        distance, axis = exits.min(-1)
        return distance, F.one_hot(axis, 3) * ahead.sign()

    def wall_colours(self, point: Points, outward: Points) -> Points:
        """Colours of places on the walls, lit and shadowed as things are."""
        axis = outward.abs().argmax(-1)
        face = 2 * axis + (outward.sum(-1) > 0)
        u, v = (point.gather(1, ((axis + shift) % 3)[:, None])[:, 0] for shift in (1, 2))
        colour = torch.empty_like(point)
        for number in range(6):
            mine = (face == number).nonzero()[:, 0]
            first, second = self.colours[number]
            colour[mine] = torch.lerp(first, second, self.patterns[number](u[mine], v[mine])[:, None])
        to_light = F.normalize(torch.tensor(self.light), dim=0)
        start = point - 2e-3 * outward
        lit = first_hit(self.things, start, to_light.expand_as(start))[0].isinf()
        sun, sky = (-outward @ to_light).clamp(min=0) * lit, 0.55 - 0.1 * outward[:, 2]
        return colour * (sky + 0.5 * sun)[:, None]

    def view(
        self, pose: Float[Tensor, "4 4"], height: int, width: int
    ) -> tuple[Float[Tensor, "H W 3"], Float[Tensor, "H W"]]:
        """Colour, and depth along the optical axis at the middle of each pixel, in metres."""
        origin, direction = camera_rays(pose, height, width, FIELD_OF_VIEW, SAMPLES)
        seen, to_things = trace(self.things, origin, direction, light=self.light)
        to_walls, outward = self.walls(origin, direction)
        empty = to_things.isinf().nonzero()[:, 0]
        seen[empty] = self.wall_colours((origin + to_walls[:, None] * direction)[empty], outward[empty])
        # A lamp at the camera beside the light of the room: shading says something about depth, as in a real flat.
        seen = seen * (0.35 + 0.9 / (1 + (torch.minimum(to_things, to_walls) / 2.5).square()))[:, None]
        pattern = "(H i W j) C -> H W C"
        colour = reduce(seen.clamp(0, 1), pattern, "mean", H=height, W=width, i=SAMPLES, j=SAMPLES)
        origin, direction = camera_rays(pose, height, width, FIELD_OF_VIEW, 1)
        nearest = torch.minimum(first_hit(self.things, origin, direction)[0], self.walls(origin, direction)[0])
        depth = nearest * (direction @ -pose[:3, 2])
        return colour, rearrange(depth, "(H W) -> H W", H=height)


def room_of(seed: int, split: str, number: int) -> Room:
    """The room of this number in a split."""
    return Room(mixed_seed(mixed_seed(seed, SPLITS.index(split)), number))


def write_rooms(config: RoomsConfig) -> Path:
    """Render all splits into a folder that appears only once complete; the same seed gives the same files.

    Raises InputError where the folder exists (unless it is one of ours and ``overwrite`` is set) or can't be written.
    """
    out = Path(config.out)
    check_generated(
        out, FILES, config.overwrite, about="dataset.json", generator=GENERATOR, what="a folder", argument="out"
    )
    counts = dict(zip(SPLITS, (config.train_rooms, config.search_rooms, config.test_rooms), strict=True))
    total = sum(counts.values()) * config.views
    with whole_folder(out, "out") as folder, Progress(total, "views", quiet=config.quiet) as progress:
        done = 0
        for split, count in counts.items():
            for kind in ("rgb", "depth"):
                (folder / split / kind).mkdir(parents=True)
            for number in range(count):
                room = room_of(config.seed, split, number)
                for view in range(config.views):
                    colour, depth = room.view(room.pose(), config.height, config.width)
                    name = f"{number:04}_{view:02}.png"
                    write_image(folder / split / "rgb" / name, colour)
                    write_depth(folder / split / "depth" / name, depth, DEPTH_SCALE)
                    progress.update(done := done + 1)
        about = {"generator": GENERATOR, "depth_scale": DEPTH_SCALE, "max_depth": 12.0, "seed": config.seed}
        write_json(folder / "dataset.json", about)
    return out


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    config = parse_options(RoomsConfig, argv, "python evonas/rooms.py", __doc__ or "")
    print(f"rooms: {write_rooms(config)}")


if __name__ == "__main__":
    main()
