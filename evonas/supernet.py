"""The network of an architecture, and the supernet that holds all of a space.

Both are a ``Network``: ``activate(genome)`` says which part of its weights runs, ``extract(genome)`` gives a network of
that part alone, which computes the same.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from evonas.blocks import Block, Convolution, Picture
from evonas.space import Space
from evos.errors import InputError

Pyramid = list[Float[Tensor, "_ _ _ _"]]
"""Pictures (batch, height, width, features) from the finest to the coarsest."""


class TaskHead(nn.Module, ABC):
    """The part of a network that belongs to its task: it answers from the pyramid, at the pictures' ``size``."""

    @abstractmethod
    def macs(self, places: Sequence[int]) -> int:
        """Multiplications of one picture, of which each level of the pyramid has so many places."""


Head = Callable[[Sequence[int]], TaskHead]
"""Makes a head from the widths of the stages."""


class Network(nn.Module):
    """A stem, the stages, and a head on what all stages end in.

    The stem divides the resolution by 4, each further stage by 2.
    """

    def __init__(self, space: Space, head: Head, genome: Sequence[int] | None = None) -> None:
        """Weights for the architecture of ``genome``; None: for every one of the space, a supernet."""
        super().__init__()
        self.space, self.make_head = space, head
        self.genome = space.check(space.largest if genome is None else genome)
        widths, self.is_supernet = space.widths, genome is None
        self.stem = nn.Sequential(Convolution(3, widths[0], 2), nn.GELU(), Convolution(widths[0], widths[0], 2))
        self.downs = nn.ModuleList(Convolution(width, after, 2) for width, after in pairwise(widths))
        self.stages, self.norms = nn.ModuleList(), nn.ModuleList(nn.LayerNorm(width) for width in widths)
        for i, own in enumerate(space.decode(self.genome)):
            sizes = space.sizes(i, own)
            # Named by their numbers in the supernet, so that weights keep their names.
            blocks = {str(n): Block(space.kinds[i], widths[i], space.heads[i], *sizes) for n in own.blocks}
            self.stages.append(nn.ModuleDict(blocks))
        self.head: TaskHead = head(widths)

    def activate(self, genome: Sequence[int]) -> "Network":
        """Run this architecture from now on, in a supernet; returns the network itself.

        Raises:
            InputError: the genome is of another space.
        """
        if not self.is_supernet:
            raise ValueError("only a supernet holds other architectures")
        self.genome = self.space.check(genome)
        return self

    def extract(self, genome: Sequence[int]) -> "Network":
        """A network of this architecture alone, with copies of its weights."""
        network = Network(self.space, self.make_head, genome).to(next(self.parameters()).device)
        weights = self.state_dict()
        with torch.no_grad():
            for name, weight in network.state_dict().items():
                weight.copy_(weights[name][tuple(slice(0, size) for size in weight.shape)])
        return network.train(self.training)

    def pyramid(self, x: Picture) -> Pyramid:
        """What each stage ends in, normalised, from the finest to the coarsest."""
        found, x = [], self.stem(x)
        for i, own in enumerate(self.space.decode(self.genome)):
            x = self.downs[i - 1](x) if i else x
            sizes, blocks = self.space.sizes(i, own), self.stages[i]
            for number in own.blocks:
                x = blocks[str(number)](x, *sizes)  # type: ignore[index]
            found.append(self.norms[i](x))
        return found

    def both(self, pictures: Float[Tensor, "B H W 3"]) -> tuple[Pyramid, Tensor]:
        """The pyramid of pictures in [0, 1], and the head's output."""
        found = self.pyramid(2 * pictures - 1)
        return found, self.head(found, (pictures.shape[1], pictures.shape[2]))

    def forward(self, pictures: Float[Tensor, "B H W 3"]) -> Tensor:
        """The head's output for pictures in [0, 1]."""
        return self.both(pictures)[1]


class DenseHead(TaskHead):
    """Numbers of each pixel: the pyramid is summed from coarse to fine, and the result enlarged to the pictures' size.

    No batch norm, whose statistics would be those of another architecture.
    """

    def __init__(self, widths: Sequence[int], features: int | None = None, outputs: int = 1) -> None:
        super().__init__()
        features = widths[0] if features is None else features
        self.widths, self.features = tuple(widths), features
        self.laterals = nn.ModuleList(nn.Linear(width, features) for width in widths)
        self.fuse = nn.ModuleList(Convolution(features, features) for _ in widths)
        self.out = nn.Linear(features, outputs)

    def macs(self, places: Sequence[int]) -> int:
        """Laterals and 3×3 convolutions at all levels, the output at the finest."""
        fused = sum(n * (width + 9 * self.features) for n, width in zip(places, self.widths, strict=True))
        return self.features * (fused + places[0] * self.out.out_features)

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Float[Tensor, "B h w outputs"]:
        """Any numbers, at the pictures' ``size``."""
        x: Tensor | None = None
        for level, lateral, fuse in list(zip(pyramid, self.laterals, self.fuse, strict=True))[::-1]:
            own = lateral(level)
            x = F.gelu(fuse(own if x is None else own + enlarged(x, (own.shape[1], own.shape[2]))))
        assert x is not None
        return enlarged(self.out(x), size)


class ClassHead(TaskHead):
    """Scores of classes from the mean of the coarsest stage over all places."""

    def __init__(self, widths: Sequence[int], classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(widths[-1], classes)

    def macs(self, places: Sequence[int]) -> int:
        """One matrix product."""
        return self.out.weight.numel()

    def forward(self, pyramid: Pyramid, size: tuple[int, int]) -> Float[Tensor, "B classes"]:
        """Before the softmax."""
        return self.out(pyramid[-1].mean((1, 2)))


def enlarged(x: Picture, size: tuple[int, int]) -> Float[Tensor, "B h w C"]:
    """Bilinearly to another size."""
    return F.interpolate(x.permute(0, 3, 1, 2), size, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)


# ---- weights


def load_weights(network: Network, weights: Mapping[str, Tensor], name: str, *, but: str = "") -> None:
    """Load weights by name; those whose name begins with ``but`` may be of another kind and stay as they are.

    Raises:
        InputError: they are of a network of other sizes.
    """
    own = network.state_dict()
    wanted = {key for key in own if not (but and key.startswith(but))}
    given = {key: value for key, value in weights.items() if key in wanted}
    if given.keys() != wanted:
        raise InputError(name, "weights of other blocks", "those of this architecture's space")
    for key, value in given.items():
        if value.shape != own[key].shape:
            allowed = f"{list(own[key].shape)}, as space.width and its choices say"
            raise InputError(name, f"{key} of shape {list(value.shape)}", allowed)
    network.load_state_dict({**own, **given})


# ---- costs


def parameters(network: Network) -> int:
    """Weights of the active architecture alone."""
    return sum(weight.numel() for weight in network.extract(network.genome).parameters())


@torch.no_grad()
def counted_macs(network: Network, height: int, width: int) -> int:
    """Multiplications of one picture, as torch.utils.flop_counter counts them: matrix products and convolutions."""
    device = next(network.parameters()).device
    with FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, height, width, 3, device=device))
    return counter.get_total_flops() // 2


def macs(network: Network, height: int, width: int) -> int:
    """Multiplications of one picture in the active architecture, by hand: matrix products and convolutions.

    The same as ``counted_macs``, without running anything.
    """
    space, places = network.space, []
    first = space.widths[0]
    height, width = halved(height), halved(width)
    total = height * width * 9 * 3 * first
    height, width = halved(height), halved(width)
    total += height * width * 9 * first * first
    for i, own in enumerate(space.decode(network.genome)):
        wide, (hidden, inner, state) = space.widths[i], space.sizes(i, own)
        if i:
            height, width = halved(height), halved(width)
            total += height * width * 9 * space.widths[i - 1] * wide
        places.append(height * width)
        each = 9 * wide + 2 * wide * hidden
        if space.kinds[i] == "mixer":
            each += wide * (2 * inner + 2 * state + space.heads[i]) + 9 * (inner + 2 * state)
            each += 2 * inner * state + inner * wide
        else:
            each += 4 * wide * wide + 2 * places[i] * wide
        total += len(own.blocks) * places[i] * each
    return total + network.head.macs(places)


def halved(size: int) -> int:
    """Places after a convolution of stride 2."""
    return (size + 1) // 2
