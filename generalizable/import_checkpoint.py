"""Make a run of a checkpoint that the released code of instance pattern composers wrote.

    python generalizable/import_checkpoint.py epoch4000_model.pt out=runs/NAME \\
        --config configs/generalizable/published/composer_imagenette178.yaml

The options say what was trained, and everything that takes a run takes this one: ``--eval``, ``evos encode``, ``evos
render``, ``train.init``. Only ``--resume`` does not, for the state of the optimizer is left out. Source of the layout:
the names and shapes that Kim et al.'s modules (CVPR 2023) give their weights.
"""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evos.errors import InputError, exit_on_input_error
from evos.runs import save_checkpoint
from generalizable.codec import load_weights
from generalizable.models import Model, build_model
from generalizable.options import parse
from generalizable.run import open_folder
from generalizable.tasks import build_task

INERT_MODULES = ("omegaconf.", "models.", "typing.")
"""Classes of these modules come with the optimizer's state (its options are omegaconf's); none is imported or run."""


class Inert:
    """What stands for any object that is no weight: it takes what a pickle gives it, and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Inert":
        """An object, whatever the arguments."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Nothing."""


def load_released(path: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint of the released code, by its names.

    Raises:
        InputError: the file can't be read, is none of these, or holds a pickle that would execute code.
    """
    wanted = "a checkpoint of the released code of instance pattern composers"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
            inert: list[Any] = [(Inert, name) for name in found if name.startswith(INERT_MODULES)]
            with torch.serialization.safe_globals(inert):
                state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError("checkpoint", f"{path} ({error.strerror})", "a readable file") from error
    except Exception as error:  # a damaged file can make the unpickler raise anything
        raise InputError("checkpoint", f"{path}, which is damaged or not plain data", wanted) from error
    weights = state.get("state_dict") if isinstance(state, dict) else None
    if not isinstance(weights, dict) or not all(isinstance(weight, Tensor) for weight in weights.values()):
        raise InputError("checkpoint", f"{path} without a state_dict of weights", wanted)
    return dict(weights)


class Weights:
    """Weights by their released names, each of which is taken once."""

    def __init__(self, released: Mapping[str, Tensor]) -> None:
        self.left = dict(released)

    def take(self, name: str) -> Tensor:
        """A weight; raises InputError if there is none of that name."""
        if name not in self.left:
            raise InputError("checkpoint", f"one without {name}", "one of the options' model (--config FILE)")
        return self.left.pop(name)

    def linear(self, theirs: str, ours: str) -> dict[str, Tensor]:
        """Weight and bias of a layer or a norm."""
        return {f"{ours}.{part}": self.take(f"{theirs}.{part}") for part in ("weight", "bias")}


def import_weights(model: Model, released: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of a model from the weights of its released twin.

    Raises:
        InputError: a weight is missing, left over, or of another shape or frequency; the model was never released.
    """
    name = model.config.name
    if name not in FAMILIES:
        raise InputError("model", name, ", ".join(FAMILIES))
    weights = Weights(released)
    check_frequencies(model, weights.take("hyponet.ff_linear"))
    found = field_weights(model, weights)
    FAMILIES[name](model, weights, found)
    if weights.left:
        first, more = next(iter(weights.left)), len(weights.left) - 1
        got = f"{first}{f' and {more} more' if more else ''}, which this model has not"
        raise InputError("checkpoint", got, "one of the options' model (--config FILE)")
    for key, own in model.state_dict().items():
        if found[key].shape != own.shape:
            got = f"{key} of shape {tuple(found[key].shape)}"
            raise InputError("checkpoint", got, f"{tuple(own.shape)}, as the options say (--config FILE)")
    return {key: weight.float().contiguous() for key, weight in found.items()}


def check_frequencies(model: Any, released: Tensor) -> None:
    """Raise InputError unless the Fourier frequencies are the model's; ours are in units of the lowest one here."""
    ours = model.field.encoding.frequencies
    if released.shape != ours.shape or not torch.allclose(released.float() * ours[0], ours, rtol=1e-4):
        got = f"{len(released)} Fourier frequencies up to {float(released.max()):.4g} times the lowest"
        allowed = f"{len(ours)} up to {float(ours[-1] / ours[0]):.4g}, as the options say (model.frequency)"
        raise InputError("checkpoint", got, allowed)


def field_weights(model: Any, weights: Weights) -> dict[str, Tensor]:
    """The layers of the field: weights "I O" with the bias as one more row."""
    found = {}
    for index in range(len(model.field.layers)):
        both = weights.take(f"hyponet.params_dict.linear_wb{index}")
        found[f"field.layers.{index}.weight"] = both[:-1].mT
        found[f"field.layers.{index}.bias"] = both[-1]
    return found


def transformer_weights(model: Any, weights: Weights) -> dict[str, Tensor]:
    """Everything up to the learned tokens as they come out."""
    found = {
        "hypernetwork.places": weights.take("latent_mapping.pos_emb_latent").squeeze(0),
        "hypernetwork.queries": weights.take("weight_groups.weight_groups"),
        **weights.linear("latent_mapping.latent_mapping", "hypernetwork.embed"),
    }
    for index in range(len(model.hypernetwork.blocks)):
        theirs, ours = f"transformer.blocks.{index}", f"hypernetwork.blocks.{index}"
        for part in ("weight", "bias"):
            qkv = [weights.take(f"{theirs}.attn.{name}.{part}") for name in ("query", "key", "value")]
            found[f"{ours}.qkv.{part}"] = torch.cat(qkv)
        names = {"ln1": "norms.0", "ln2": "norms.1", "attn.proj": "out", "mlp.0": "widen", "mlp.2": "narrow"}
        for name, own in names.items():
            found |= weights.linear(f"{theirs}.{name}", f"{ours}.{own}")
    return found


def head_weights(weights: Weights, layer: int, ours: str) -> dict[str, Tensor]:
    """From the tokens of a layer to its weights: a LayerNorm and a linear layer."""
    parts = (weights.linear(f"group_modulation_postfc.linear_wb{layer}.{i}", f"{ours}.{i}") for i in (0, 1))
    return {name: weight for part in parts for name, weight in part.items()}


def pattern_composer(model: Any, weights: Weights, found: dict[str, Tensor]) -> None:
    """Adds the transformer, its head, and the factor U in place of the layer's own weights."""
    layer = model.config.modulated
    factor = weights.take(f"shared_factor.linear_wb{layer}")
    found[f"field.layers.{layer}.weight"] = factor.squeeze(0).mT
    found |= transformer_weights(model, weights) | head_weights(weights, layer, "head")


def transinr(model: Any, weights: Weights, found: dict[str, Tensor]) -> None:
    """Adds the transformer and a head for each layer."""
    found |= transformer_weights(model, weights)
    for layer in range(len(model.field.layers)):
        found |= head_weights(weights, layer, f"heads.{layer}")


def meta_pattern_composer(model: Any, weights: Weights, found: dict[str, Tensor]) -> None:
    """Adds where V starts, and U in place of the layer's own weights."""
    layer = model.config.modulated
    found["pattern"] = weights.take(f"factors.init_modulation_factors.linear_wb{layer}")
    found[f"field.layers.{layer}.weight"] = weights.take(f"factors.shared_factors.linear_wb{layer}").mT


def learned_init(model: Any, weights: Weights, found: dict[str, Tensor]) -> None:
    """Puts where the weights start in place of the layers' own, of which only the biases count."""
    for layer in range(len(model.field.layers)):
        start = weights.take(f"factors.init_modulation_factors.linear_wb{layer}")
        found[f"field.layers.{layer}.weight"] = start.mT


FAMILIES: dict[str, Callable[[Any, Weights, dict[str, Tensor]], None]] = {
    "pattern_composer": pattern_composer,
    "transinr": transinr,
    "meta_pattern_composer": meta_pattern_composer,
    "learned_init": learned_init,
}
"""What each released model has beside its field."""


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    words = sys.argv[1:] if argv is None else list(argv)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        raise InputError("checkpoint", words[0] if words else "nothing", "CHECKPOINT out=RUN --config FILE")
    options = parse(words if words[0].startswith("-") else words[1:])
    released = load_released(Path(words[0]))
    with torch.random.fork_rng(devices=[]):  # its first weights are thrown away
        model = build_model(options.model, build_task(options.data).model_task)
    state = {
        "model": import_weights(model, released),
        "ema": None,
        "centres": options.data.centres,
        "step": options.train.steps,
    }
    load_weights(model, state, options)
    run = open_folder(options)
    save_checkpoint(run.path / "checkpoint.pt", state)
    print(f"{words[0]} -> {run.path}")


if __name__ == "__main__":
    main()
