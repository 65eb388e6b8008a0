"""A network for use without this project: weights as safetensors, depth from a picture as ONNX."""

import json
import warnings
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from evonas.data import DataConfig
from evonas.supernet import Network
from evonas.tasks import DepthTask
from evos.errors import InputError


class DepthOf(nn.Module):
    """Depth in metres from pictures in [0, 1] (B, H, W, 3), as one module."""

    def __init__(self, network: Network, task: DepthTask) -> None:
        super().__init__()
        self.network, self.task = network, task

    def forward(self, pictures: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B H W"]:
        """Depth at the pictures' size."""
        return self.task.depth(self.network, pictures)


def write_safetensors(path: Path, network: Network, data: DataConfig) -> None:
    """The weights by name; genes, space and range of depth are in the file's metadata."""
    from safetensors.torch import save_file

    about = {
        "genome": json.dumps(list(network.genome)),
        "space": json.dumps(vars(network.space.config)),
        "size": json.dumps([data.height, data.width]),
        "depth": json.dumps([data.min_depth, data.max_depth]),
    }
    save_file({name: weight.contiguous() for name, weight in network.state_dict().items()}, path, about)


def write_onnx(path: Path, network: Network, task: DepthTask, data: DataConfig) -> float:
    """Write the network for one picture of the data's size, and run it: largest difference from torch in metres.

    Raises:
        InputError: onnx, onnxscript or onnxruntime is missing; the difference is above 1e-3 of the largest depth.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise InputError("export", f"no module {error.name}", 'pip install -c constraints.txt -e ".[nas]"') from None
    module = DepthOf(network, task).eval()
    picture = torch.rand(1, data.height, data.width, 3, generator=torch.Generator().manual_seed(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.11's exporter calls what torch has deprecated
        program = torch.onnx.export(
            module, (picture,), dynamo=True, input_names=["pictures"], output_names=["depth"], verbose=False
        )
    assert program is not None
    program.save(str(path))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    found = session.run(None, {"pictures": picture.numpy()})[0]
    with torch.inference_mode():
        difference = float(np.abs(found - module(picture).numpy()).max())
    if difference > 1e-3 * data.max_depth:
        raise InputError("export", f"{path}, which differs from torch by {difference:.3g} m", "the same depths")
    return difference
