"""A network for use without this project: weights as safetensors, the answer as ONNX, the trunk as a program."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from evonas.supernet import Network, enlarged
from evonas.tasks import Task
from evos.errors import InputError


class Answering(nn.Module):
    """What a network says of pictures in [0, 1] (B, H, W, 3), as one module: depth in metres, probabilities, boxes."""

    def __init__(self, network: Network, task: Task) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, pictures: Float[Tensor, "B H W 3"]) -> Tensor:
        """As ``Task.answer``."""
        return self.task.answer(self.network(pictures))


class Encoder(nn.Module):
    """The trunk alone: all stages but the first, the coarser ones enlarged, side by side at an eighth of the size."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.network.head = nn.Identity()  # type: ignore[assignment]

    def forward(self, pictures: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B h w C"]:
        """Features of pictures in [0, 1]."""
        first, *others = self.network.pyramid(2 * pictures - 1)[1:]
        size = (first.shape[1], first.shape[2])
        return torch.cat([first, *(enlarged(level, size) for level in others)], -1)


def write_encoder(path: Path, network: Network, size: tuple[int, int]) -> None:
    """The trunk as a program of torch.export, for pictures of one size and any number of them; it can be trained.

    The network loses its head.
    """
    module = Encoder(network).eval()
    batch = torch.export.Dim("batch", min=1, max=4096)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.11's exporter calls what torch has deprecated
        program = torch.export.export(module, (torch.rand(2, *size, 3),), dynamic_shapes=({0: batch},))
        torch.export.save(program, path, extra_files={"size": json.dumps(size)})


def write_safetensors(path: Path, network: Network, task: Task) -> None:
    """The weights by name; genes, space, options of the data and classes are in the file's metadata."""
    from safetensors.torch import save_file

    about = {
        "genome": json.dumps(list(network.genome)),
        "space": json.dumps(vars(network.space.config)),
        "data": json.dumps({name: value for name, value in vars(task.config).items() if name != "root"}),
        "classes": json.dumps(task.classes),
    }
    save_file({name: weight.contiguous() for name, weight in network.state_dict().items()}, path, about)


def write_onnx(path: Path, network: Network, task: Task) -> float:
    """Write the network for one picture of the data's size, and run it: the largest difference from torch.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is missing; the difference is above 1e-3 of the largest answer.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise InputError("export", f"no module {error.name}", 'pip install -c constraints.txt -e ".[nas]"') from None
    module, size = Answering(network, task).eval(), (task.config.height, task.config.width)
    picture = torch.rand(1, *size, 3, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.11's exporter calls what torch has deprecated
        program = torch.onnx.export(
            module, (picture,), dynamo=True, input_names=["pictures"], output_names=["answer"], verbose=False
        )
    assert program is not None
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pictures": picture.numpy()})[0]
    with torch.inference_mode():
        expected = module(picture).numpy()
    difference = float(np.abs(found - expected).max())
    if difference > 1e-3 * float(np.abs(expected).max()):
        raise InputError("export", f"{path}, which differs from torch by {difference:.3g}", "the same answers")
    return difference
