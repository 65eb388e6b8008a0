"""Networks as files of their own: network.pt holds all that it takes to use one."""

from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path

import torch

from evonas.data import DataConfig
from evonas.space import Space, SpaceConfig
from evonas.supernet import Network, load_weights
from evonas.tasks import Task, build_task
from evos.errors import InputError
from evos.runs import load_checkpoint, save_checkpoint


def save_network(path: Path, network: Network, data: DataConfig, classes: Sequence[str]) -> None:
    """A network by itself: genes, space, data options, classes and weights."""
    known = {name: value for name, value in asdict(data).items() if name != "root"}
    space = asdict(network.space.config)
    state = {"genome": list(network.genome), "space": space, "data": known, "classes": list(classes)}
    save_checkpoint(path, {**state, "weights": network.state_dict()})


def load_network(path: str | Path, device: torch.device) -> tuple[Network, Task]:
    """A network that ``retrain`` wrote, from its file or folder, with its task, which has no data.

    Raises:
        InputError: there is none, or the file is damaged or something else.
    """
    path = Path(path) / "network.pt" if Path(path).is_dir() else Path(path)
    state = load_checkpoint(path)
    if not {"genome", "space", "data", "weights"} <= state.keys():
        raise InputError("network", str(path), "a network.pt that the stage retrain wrote")
    known = {entry.name for entry in fields(DataConfig)}
    data = DataConfig(**{name: value for name, value in state["data"].items() if name in known})
    task = build_task(data, [], state.get("classes", ()))
    network = Network(Space(SpaceConfig(**state["space"])), task.head, state["genome"])
    load_weights(network, state["weights"], str(path))
    return network.to(device).eval(), task
