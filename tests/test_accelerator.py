"""Training steps on a device that is not there: nothing may lie on the wrong device or wait for what it has yet to do.

PyTorch's fake tensors have a shape and a device but no values, so any step can be walked through without a GPU. Torch's
"lazy" device stands for one: of all that are no CPU, only its gradients are computed without a driver.
"""

import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from evos.distributed import World
from evos.runs import on_device
from evos.signals import astronaut
from image_regression.options import PARTS, from_values
from image_regression.trainer import Fit

DEVICE = torch.device("lazy", 0)
COPIES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
WAITS = (AssertionError, DataDependentOutputException, DynamicOutputShapeException)


class NoWaits(TorchDispatchMode):
    """Refuses copies for which host and device wait for each other, and tensors on several devices."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        given, found = [
            [leaf for leaf in tree_leaves(some) if isinstance(leaf, Tensor)] for some in ((args, kwargs), result)
        ]
        if func in COPIES:
            later = kwargs.get("non_blocking") or (func is COPIES[1] and args[2:] == (True,))
            source, goal = given[-1].device, found[0].device
            assert source == goal or (later and source.type == "cpu"), f"a copy that waits: {func} {source} to {goal}"
        else:
            # Single numbers of the host travel with the call; what forward-mode gradients make up lies on meta.
            devices = {one.device for one in given + found if one.ndim and not one.is_meta}
            assert len(devices) <= 1, f"several devices: {func}"
        return result


class HostGenerator(torch.Generator):
    """The host's generator, whatever device it is asked for."""

    def __new__(cls, device: Any = None) -> "HostGenerator":
        return super().__new__(cls)


def move(module: nn.Module, device: torch.device) -> nn.Module:
    """``nn.Module.to``, which would exchange the insides of fake tensors."""
    for part in module.modules():
        part._parameters.update(
            {n: nn.Parameter(v.detach().to(device)) for n, v in part._parameters.items() if v is not None}
        )
        part._buffers.update({n: v.to(device) for n, v in part._buffers.items() if v is not None})
    return module


@contextmanager
def accelerator() -> Iterator[None]:
    """Tensors are fake, and the parts of PyTorch that know each device by name take this one."""
    patches: dict[str, Any] = {
        "torch.Generator": HostGenerator,
        "torch.nn.Module.to": move,
        "torch.autocast": lambda *_, **__: nullcontext(),
        "torch.is_autocast_enabled": lambda *_: False,
        "torch.optim.optimizer._get_fused_kernels_supported_devices": lambda: ["lazy"],
        "generalizable.models.hypernetwork.checkpoint": lambda function, *args, **_: function(*args),
    }
    with ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        for name, instead in patches.items():
            stack.enter_context(mock.patch(name, instead))
        yield


@contextmanager
def waiting() -> Iterator[None]:
    """While something is built, the host may ask for values: it gets some."""
    with ExitStack() as stack:
        for name, value in {"__float__": 0.5, "__int__": 1, "__bool__": True, "item": 1}.items():
            stack.enter_context(mock.patch.object(Tensor, name, lambda *_, value=value: value))
        yield


def apart(test: Callable[..., None]) -> Callable[..., None]:
    """In a process of its own: one that had another device than the CPU can't compute gradients when it is forked."""

    @wraps(test)
    def run(*args: Any, **kwargs: Any) -> None:
        if child := os.fork():
            assert os.waitpid(child, 0)[1] == 0, "see what the process said"
            return
        try:
            test(*args, **kwargs)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    return run


@apart
def test_what_waits_is_noticed() -> None:
    waits: list[Callable[[Tensor], Any]] = [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 1],
        lambda x: x.cpu(),
        lambda x: x.cpu().tolist(),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: x[torch.tensor([0, 1])],
        lambda x: x[[0, 1]],
        lambda x: x + torch.ones(3),
    ]
    fine: list[Callable[[Tensor], Any]] = [
        lambda x: x * 2.0 + torch.tensor(1.0),
        lambda x: x[on_device([0, 1], x.device)],
        lambda x: torch.rand(3, generator=torch.Generator(x.device), device=x.device),
    ]
    with accelerator():
        x = torch.ones(3, device=DEVICE)
        for wait in waits:
            with NoWaits(), pytest.raises((*WAITS, RuntimeError)):
                wait(x)
        with NoWaits():
            assert {ok(x).device for ok in fine} == {DEVICE}


FITS: list[dict[str, Any]] = [
    *({"selector": name} for name in PARTS["selector"]),
    *({"optimizer": name} for name in ("muon", "soap")),
    *({"field": name} for name in ("finer", "wire", "gauss", "relu", "pemlp", "fourier", "hashgrid")),
    *({"transform": name} for name in ("z_score", "box_cox", "gamma")),
    {"recipe": "fast"},
    {"ema": 0.99, "clip_ratio": 1.05, "schedule": "cosine", "decay": 0.0, "warmup": 6},
    {"supervision": "val_der", "factor": 2},
    {"selector": "nint", "chunk": 50},
]


@pytest.mark.parametrize("values", FITS, ids=lambda values: ",".join(f"{k}={v}" for k, v in values.items()))
@apart
def test_fitting_a_picture(values: dict[str, Any]) -> None:
    defaults = {"selector": "evos", "field": "siren", "transform": "min_max"}
    names = {part: values.get(part, default) for part, default in defaults.items()}
    options = from_values({"steps": 60, **names, **values}, names)
    signal = astronaut(16)
    with accelerator():
        edges = torch.rand(1, 16 * 16, device=DEVICE)
        with waiting(), mock.patch("evos.selection.edge_priors.canny_edges", lambda *_: edges > 0.5):
            fit = Fit(signal, options, DEVICE)
        with NoWaits():
            for step in range(1, 9):  # key steps are 1, 3, 5 ...
                fit.step(step)
            assert fit.predict().device == DEVICE


HYPER = ["model.width=8", "model.blocks=1", "model.heads=2", "model.patch=4"]
MODELS = {
    "pattern_composer": [*HYPER, "model.rank=4"],
    "transinr": HYPER,
    "locality_aware": HYPER,
    "meta_pattern_composer": ["model.rank=4"],
    "learned_init": [],
}


@pytest.mark.parametrize("task", ["image", "sound", "views"])
@pytest.mark.parametrize("model", MODELS)
@apart
def test_training_over_many_signals(model: str, task: str, tmp_path: Path) -> None:
    from generalizable.data import Batch
    from generalizable.instances import Instance
    from generalizable.options import parse
    from generalizable.trainer import Trainer

    sizes = {"sound": ["data.seconds=0.004", "data.rate=8000"], "views": ["data.size=8", "data.views=4"]}
    words = [f"model={model}", *MODELS[model], f"data.task={task}", *sizes.get(task, ["data.size=8"])]
    words += ["model.hidden_features=8", "model.features=8", "model.frequency=4", "train.batch=4", "train.steps=6"]
    words += ["selector=error", "selector.keep_ratio=0.25", "train.optimizer=muon", "train.clip=1"]
    options = parse([*words, f"data.root={tmp_path}", "out=none"])
    shape = {"image": (4, 3, 8, 8), "sound": (4, 1, 32), "views": (4, 4, 3, 8, 8)}[task]
    poses = torch.eye(3, 4).expand(4, 4, 3, 4) if task == "views" else None
    instance = Instance(torch.rand(shape), poses, None if poses is None else torch.full((4,), 8.0))
    with accelerator():
        with waiting():
            trainer = Trainer(options, World(), DEVICE, 11)
        with NoWaits(), mock.patch.object(trainer.task, "draw_support_views", lambda: [0] if task == "views" else []):
            for step in range(1, 5):
                trainer.step(step, Batch(tuple(range(step, step + 4)), instance, ()))


@pytest.fixture
def sampler() -> Any:
    pytest.importorskip("nerfstudio")
    from evos_nerf.pixel_sampler import EvosPixelSamplerConfig

    return EvosPixelSamplerConfig(tile_side=4).setup(num_rays_per_batch=24)


@apart
def test_drawing_rays(sampler: Any) -> None:
    from evos_nerf.pixel_sampler import SELECTION
    from evos_nerf.rays import RayPool

    tiles = [[3, 2], [[12, 8]] * 4]
    with accelerator():
        images = {"image": torch.rand(4, 12, 8, 3, device=DEVICE), "image_idx": torch.arange(4)}
        sizes = mock.patch.object(Tensor, "tolist", lambda self: tiles[self.ndim - 1])
        with waiting(), sizes, mock.patch("torch.equal", return_value=True):
            rays = RayPool.of(images)
            sampler._start(rays)
            rays.colours(torch.zeros(1, 3, dtype=torch.int64, device=DEVICE))
        with NoWaits():
            for step in range(40):
                batch = sampler.sample(rays, step)
                assert batch["image"].shape == (24, 3)
                sampler.observe(batch[SELECTION], torch.rand(24, 3, device=DEVICE))
                sampler.metrics()
            sampler.tile_values()
