"""The released code's checkpoints and formulas: the same values from its weights, the same losses in training.

The formulas are written out here from a state dict of the released layout alone; no code of the project is run in them.
"""

import json
import math
import os
import sys
from itertools import pairwise
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

from evos.distributed import World
from generalizable import published
from generalizable.codec import Codec
from generalizable.data import Batch
from generalizable.encode import main as encode
from generalizable.import_checkpoint import import_weights
from generalizable.import_checkpoint import main as import_checkpoint
from generalizable.inner import outer_loss
from generalizable.instances import Instance
from generalizable.main import main
from generalizable.options import parse
from generalizable.trainer import Trainer

WIDTH, HEADS, BLOCKS, HIDDEN, GROUPS, RANK, SIGMA = 12, 2, 2, 8, 4, 5, 8
SMALL = ["device=cpu", "--quiet", "data.root=none", "model.features=12", "model.frequency=8", "model.hidden_features=8"]
OF_TRANSFORMER = ["model.width=12", "model.heads=2", "model.blocks=2", "model.patch=4"]
VIEWS = ["data.size=8", "data.views=6"]
FAMILIES = {
    "composer_imagenette178": (*OF_TRANSFORMER, "data.size=14", "model.rank=5"),
    "transinr_celeba178": (*OF_TRANSFORMER, "data.size=14", "model.groups=4"),
    "composer_librispeech_3s": (*OF_TRANSFORMER, "data.seconds=0.01", "model.rank=5"),
    "transinr_librispeech_1s": (*OF_TRANSFORMER, "data.seconds=0.01", "model.groups=4"),
    "composer_cars_1view": (*OF_TRANSFORMER, *VIEWS, "model.rank=5"),
    "transinr_lamps_3views": (*OF_TRANSFORMER, *VIEWS, "model.groups=4"),
    "meta_composer_imagenette178": ("data.size=14", "model.rank=5", "model.inner_lr=0.1"),
    "learned_init_ffhq256": ("data.size=14", "model.inner_lr=0.1"),
}
"""Small models of every released family, by configuration."""


def words(name):
    return [f"--config={published.FOLDER / name}.yaml", *SMALL, *FAMILIES[name]]


def shapes(name):
    """(fan in, fan out) of the layers of the released field, and (axes, channels of the signal, patches)."""
    axes, values, layers = (3, 4, 6) if "view" in name else (1, 1, 5) if "speech" in name else (2, 3, 5)
    widths = [2 * (12 // axes) * axes, *[HIDDEN] * (layers - 1), values]
    return list(pairwise(widths)), axes


def released(name):
    """A state dict of the released layout with random weights."""
    layers, axes = shapes(name)
    top = math.log(SIGMA)
    state = {"hyponet.ff_linear": torch.exp(torch.linspace(0, top, 12 // axes))}
    for index, (fan_in, fan_out) in enumerate(layers):
        state[f"hyponet.params_dict.linear_wb{index}"] = torch.randn(fan_in + 1, fan_out)
    if "view" in name:
        state["hyponet.params_dict.linear_wb5"][-1, 3] = 4.0  # a density: where all is empty, nothing has a gradient
    if name.startswith(("meta", "learned")):
        for index, (fan_in, fan_out) in enumerate(layers):
            if name.startswith("learned"):
                state[f"factors.init_modulation_factors.linear_wb{index}"] = torch.randn(fan_in, fan_out)
            elif index == 1:
                state[f"factors.init_modulation_factors.linear_wb{index}"] = torch.randn(fan_in, RANK)
                state[f"factors.shared_factors.linear_wb{index}"] = torch.randn(RANK, fan_out)
        return state
    views = int(name[-6]) if name.endswith("views") else 1
    places, cells = (4 * views, 9 * 16) if "view" in name else (40, 4) if "speech" in name else (16, 3 * 16)
    state |= {
        "latent_mapping.pos_emb_latent": torch.randn(1, places, WIDTH),
        "latent_mapping.latent_mapping.weight": torch.randn(WIDTH, cells) / cells**0.5,
        "latent_mapping.latent_mapping.bias": torch.randn(WIDTH),
    }
    for index in range(BLOCKS):
        block = f"transformer.blocks.{index}"
        sizes = {f"attn.{part}": (WIDTH, WIDTH) for part in ("key", "query", "value", "proj")}
        sizes |= {"mlp.0": (4 * WIDTH, WIDTH), "mlp.2": (WIDTH, 4 * WIDTH), "ln1": (WIDTH,), "ln2": (WIDTH,)}
        for part, size in sizes.items():
            state[f"{block}.{part}.weight"] = torch.randn(size) / size[-1] ** 0.5
            state[f"{block}.{part}.bias"] = torch.randn(size[0])
    count = RANK if name.startswith("composer") else sum(min(GROUPS, fan_out) for _, fan_out in layers)
    state["weight_groups.weight_groups"] = torch.randn(count, WIDTH)
    for index, (fan_in, fan_out) in enumerate(layers):
        if name.startswith("composer") and index != 1:
            continue
        head = f"group_modulation_postfc.linear_wb{index}"
        state |= {f"{head}.0.weight": torch.randn(WIDTH), f"{head}.0.bias": torch.randn(WIDTH)}
        state |= {f"{head}.1.weight": torch.randn(fan_in, WIDTH), f"{head}.1.bias": torch.randn(fan_in)}
        if name.startswith("composer"):
            state[f"shared_factor.linear_wb{index}"] = torch.randn(1, RANK, fan_out)
    return state


# ---- the released formulas, from the state dict alone


def field(state, name, coords, weights):
    """The field with the weights "B I O" of some layers given, all of which lose their length; biases are shared."""
    is_views = "view" in name
    wide = 3 if "3s" in name else 1  # coordinates of 3 s are in [-3, 3] there
    angles = (wide * coords[..., None] * state["hyponet.ff_linear"]).flatten(-2) * (1 if is_views else math.pi)
    x = torch.cat([angles.cos(), angles.sin()], dim=-1)
    layers, _ = shapes(name)
    for index in range(len(layers)):
        both = state[f"hyponet.params_dict.linear_wb{index}"]
        weight = weights.get(index, both[:-1].expand(len(coords), -1, -1))
        x = x @ (weight / weight.norm(dim=1, keepdim=True)) + both[-1]
        x = x.relu() if index < len(layers) - 1 else x
    return x + (0.0 if is_views or "speech" in name else 0.5)


def tokens(state, patches):
    """The learned tokens after the transformer."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (WIDTH,), state[f"{name}.weight"], state[f"{name}.bias"])

    x = linear(patches, "latent_mapping.latent_mapping") + state["latent_mapping.pos_emb_latent"]
    x = torch.cat([x, state["weight_groups.weight_groups"].expand(len(x), -1, -1)], dim=1)
    for index in range(BLOCKS):
        block = f"transformer.blocks.{index}"
        normed, heads = norm(x, f"{block}.ln1"), []
        query, key, value = (linear(normed, f"{block}.attn.{part}") for part in ("query", "key", "value"))
        for part in torch.arange(WIDTH).chunk(HEADS):
            odds = (query[..., part] @ key[..., part].mT / len(part) ** 0.5).softmax(-1)
            heads.append(odds @ value[..., part])
        x = x + linear(torch.cat(heads, dim=-1), f"{block}.attn.proj")
        x = x + linear(F.gelu(linear(norm(x, f"{block}.ln2"), f"{block}.mlp.0")), f"{block}.mlp.2")
    return x[:, -len(state["weight_groups.weight_groups"]) :]


def from_tokens(state, found, index):
    """Columns of a layer's weights from their tokens."""
    head = f"group_modulation_postfc.linear_wb{index}"
    normed = F.layer_norm(found, (WIDTH,), state[f"{head}.0.weight"], state[f"{head}.0.bias"])
    return F.linear(normed, state[f"{head}.1.weight"], state[f"{head}.1.bias"]).mT


def patches(name, signal):
    """Patches in the released order: of pictures padded by a pixel, of 4 samples, of views "B V 9 H W" with rays."""
    if "speech" in name:
        return signal.reshape(len(signal), -1, 4)
    if "view" not in name:
        return F.unfold(signal, 4, stride=4, padding=1).mT
    return torch.cat([F.unfold(view, 4, stride=4).mT for view in signal.unbind(1)], dim=1)


def with_rays(name, instance):
    """The first views with the origins and directions of their rays, a unit of depth long, as further channels."""
    y, x = torch.meshgrid(*[torch.arange(8) + 0.5 - 4] * 2, indexing="ij")
    views = []
    for view in range(int(name[-6]) if name.endswith("views") else 1):
        flat = [torch.stack([x / focal, -y / focal, -torch.ones(8, 8)], dim=-1) for focal in instance.focal]
        poses = instance.poses[:, view]
        turned = [rays @ pose[:, :3].T for rays, pose in zip(flat, poses, strict=True)]
        origins = poses[:, :, 3, None, None].expand(-1, -1, 8, 8)
        views.append(torch.cat([instance.signal[:, view], origins, torch.stack(turned).permute(0, 3, 1, 2)], dim=1))
    return torch.stack(views, dim=1)


def released_weights(state, name, data):
    """The weights "B I O" that instances have: from ``data``, a signal, or the points and values to adapt to."""
    layers, _ = shapes(name)
    if name.startswith("composer"):
        pattern = from_tokens(state, tokens(state, patches(name, data)), 1)
        return {1: pattern @ state["shared_factor.linear_wb1"]}
    if name.startswith("transinr"):
        found, weights, start = tokens(state, patches(name, data)), {}, 0
        for index, (_, fan_out) in enumerate(layers):
            groups = min(GROUPS, fan_out)
            part = from_tokens(state, found[:, start : start + groups], index).repeat(1, 1, fan_out // groups)
            weights[index] = state[f"hyponet.params_dict.linear_wb{index}"][:-1] * part
            start += groups
        return weights

    def composed(factors):
        shared = state.get("factors.shared_factors.linear_wb1")
        return {index: factor if shared is None else factor @ shared for index, factor in factors.items()}

    prefix, (coords, target) = "factors.init_modulation_factors.linear_wb", data
    starts = {int(key.removeprefix(prefix)): start for key, start in state.items() if key.startswith(prefix)}
    factors = {index: start.expand(len(target), -1, -1) for index, start in starts.items()}
    for _ in range(2):
        loss = (field(state, name, coords, composed(factors)) - target).square().mean((1, 2)).sum()
        gradients = torch.autograd.grad(loss, list(factors.values()), create_graph=True)
        factors = {
            index: factor - 0.1 * factor.norm(dim=(1, 2), keepdim=True) ** 2 * gradient
            for (index, factor), gradient in zip(factors.items(), gradients, strict=True)
        }
    return composed(factors)


def rendered(state, name, rays, weights):
    """Colours of rays from depth 2 to 6, one jittered sample in each of four equal parts, in front of white."""
    depths = 2 + (torch.arange(4) + torch.rand(*rays.shape[:2], 4))
    points = rays[:, :, None, :3] + depths[..., None] * rays[:, :, None, 3:]
    raw = field(state, name, points.flatten(1, 2), weights).unflatten(1, depths.shape[1:])
    ends = torch.cat([depths[..., 1:], torch.full_like(depths[..., :1], 6)], dim=-1)
    alpha = 1 - torch.exp(-raw[..., 3].relu() * (ends - depths))
    before = torch.cat([torch.ones_like(alpha[..., :1]), (1 - alpha).cumprod(-1)], dim=-1)
    colours = (before[..., :-1] * alpha)[..., None] * raw[..., :3].sigmoid()
    return colours.sum(-2) + before[..., -1:]


def some_instances(task, pose):
    """Three random instances of a task, with cameras where it has some."""
    if task.all_views:
        poses = torch.tensor([[pose(0.4 * i + j)[:3] for i in task.all_views] for j in range(3)])
        return Instance(torch.rand(3, len(task.all_views), 3, 8, 8), poses, torch.tensor([7.0, 8.0, 9.0]))
    return Instance(torch.rand(3, task.model_task.out_features, *task.shape))


@pytest.fixture
def checkpoint(tmp_path):
    """checkpoint(state, **more) -> the path of a released checkpoint."""

    def save(state, **more):
        torch.save({"epoch": 3, "state_dict": state, "scheduler": {"warmup": None}, **more}, tmp_path / "model.pt")
        return str(tmp_path / "model.pt")

    return save


@pytest.mark.parametrize("name", FAMILIES)
def test_an_imported_run_has_the_values_of_the_released_model(name, checkpoint, tmp_path, pose):
    torch.manual_seed(0)
    state, run = released(name), tmp_path / "run"
    import_checkpoint([checkpoint(state), f"out={run}", *words(name)])
    codec = Codec.load(run, "cpu")
    instance, axes = some_instances(codec.task, pose), codec.model.task.in_features
    coords, data = 2 * torch.rand(3, 40, axes) - 1, instance.signal
    if codec.task.all_views:
        data = with_rays(name, instance)
    elif codec.adapts_in_inner_loop:
        centres = (torch.arange(14) + 0.5) / 7 - 1
        grid = torch.stack(torch.meshgrid(centres, centres, indexing="ij"), dim=-1).reshape(1, -1, 2).expand(3, -1, -1)
        data = grid, instance.signal.flatten(2).mT
    state = {key: weight.requires_grad_() for key, weight in state.items()}
    expected = field(state, name, coords, released_weights(state, name, data)).detach()
    with codec.evaluating() as model:
        found = model.decode(codec.encode(instance), coords)
    assert expected.std() > 0.01
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", FAMILIES)
def test_twenty_steps_have_the_losses_of_the_released_formulas(name, monkeypatch, pose):
    """The same batches and points; without dropout, whose masks would have to be drawn alike."""
    dropout = [] if name.startswith(("meta", "learned")) else ["model.dropout=0"]
    rays = ["model.samples=4", "selector.keep_ratio=0.1"] if "view" in name else []
    options = parse([*words(name), *dropout, *rays, "train.batch=3", "train.warmup=0"])
    trainer = Trainer(options, World(), torch.device("cpu"), 3)
    torch.manual_seed(0)
    state = released(name)
    trainer.model.load_state_dict(import_weights(trainer.model, state))
    parameters = {key: weight.requires_grad_() for key, weight in state.items() if key != "hyponet.ff_linear"}
    adam = torch.optim.Adam(parameters.values(), lr=options.train.lr or 1e-4)
    seen, losses, expected = [], [], []

    def recorded(model, data, coords, target, weight, bits=None):
        torch.manual_seed(len(losses))  # of the jitter along rays
        seen.append((data, coords, target))
        return outer_loss(model, data, coords, target, weight)

    monkeypatch.setattr("generalizable.trainer.outer_loss", recorded)
    for step in range(1, 21):
        instance = some_instances(trainer.task, pose)
        loss = trainer.step(step, Batch((0, 1, 2), instance))
        data, coords, target = seen[-1]
        coords = coords.expand(3, -1, -1)
        torch.manual_seed(len(losses))
        if trainer.task.all_views:
            data = torch.cat([data["images"], data["origins"], data["directions"]], dim=2)
        elif trainer.codec.adapts_in_inner_loop:
            data = data["coords"].expand(3, -1, -1), data["target"]
        weights = released_weights(state, name, data)
        values = (rendered if trainer.task.all_views else field)(state, name, coords, weights)
        error = (values - target).square().mean()
        adam.zero_grad()
        error.backward()
        adam.step()
        losses.append(loss.item())
        expected.append(error.item())
    assert losses == pytest.approx(expected, rel=1e-5)
    assert max(float(weight.grad.abs().max()) for weight in parameters.values() if weight.grad is not None) > 1e-3


def test_a_run_of_a_checkpoint_is_evaluated_encoded_rendered_and_trained_on(checkpoint, tmp_path, pictures, capsys):
    name, run = "composer_imagenette178", tmp_path / "run"
    import_checkpoint([checkpoint(released(name)), f"out={run}", *words(name)])
    main(["--eval", "--quiet", f"out={run}", f"data.root={pictures}", "device=cpu", "data.layout=folder"])
    (result,) = (run / "eval").glob("*.json")
    assert math.isfinite(json.loads(result.read_text())["psnr"])
    patterns = tmp_path / "p.safetensors"
    encode([f"run={run}", f"input={pictures}", f"out={patterns}", "device=cpu", "--quiet"])
    encode([f"run={run}", f"patterns={patterns}", f"out={tmp_path / 'back'}", "device=cpu", "--quiet"])
    assert len(list((tmp_path / "back").iterdir())) == 12
    tuned = ["data.size=14", f"data.root={pictures}", "train.steps=1", "train.batch=4", "device=cpu", "--quiet"]
    main([f"train.init={run}", f"out={tmp_path / 'tuned'}", *tuned])
    assert (tmp_path / "tuned" / "metrics.json").exists()


def fails(capsys, *arguments):
    """The one line with which the program ends."""
    with pytest.raises(SystemExit) as stop:
        import_checkpoint(list(arguments))
    error = capsys.readouterr().err.splitlines()
    assert stop.value.code == 2 and len(error) == 1
    return error[0]


def test_options_of_the_optimizer_are_left_out_whatever_class_they_have(checkpoint, tmp_path, monkeypatch):
    name, module = "meta_composer_imagenette178", ModuleType("omegaconf.listconfig")
    module.ListConfig = type("ListConfig", (), {"__module__": module.__name__, "__qualname__": "ListConfig"})
    for path in ("omegaconf", "omegaconf.listconfig"):
        monkeypatch.setitem(sys.modules, path, module)
    betas = module.ListConfig()
    betas.content = [0.9, 0.999]
    path = checkpoint(released(name), optimizer={"param_groups": [{"betas": betas}]})
    monkeypatch.undo()
    import_checkpoint([path, f"out={tmp_path / 'run'}", *words(name)])
    assert (tmp_path / "run" / "checkpoint.pt").exists()


class Attack:
    """A pickle that runs a command when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_that_would_execute_code_is_refused(checkpoint, tmp_path, capsys):
    name = "meta_composer_imagenette178"
    path = checkpoint(released(name), optimizer=Attack(tmp_path / "attacked"))
    line = fails(capsys, path, f"out={tmp_path / 'run'}", *words(name))
    assert "damaged or not plain data" in line
    assert not (tmp_path / "attacked").exists() and not (tmp_path / "run").exists()


def broken(change):
    """A small checkpoint's state after a change."""
    state = released("composer_imagenette178")
    change(state)
    return state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("shared_factor.linear_wb1"), "one without shared_factor.linear_wb1"),
        (lambda s: s.update(extra=torch.zeros(1)), "extra, which this model has not"),
        (
            lambda s: s.update({"weight_groups.weight_groups": torch.zeros(7, WIDTH)}),
            "hypernetwork.queries of shape (7, 12); allowed: (5, 12)",
        ),
        (lambda s: s.update({"hyponet.ff_linear": torch.arange(1.0, 7.0)}), "6 Fourier frequencies up to 6 times"),
    ],
)
def test_weights_that_do_not_fit_are_named(change, said, checkpoint, tmp_path, capsys):
    arguments = checkpoint(broken(change)), f"out={tmp_path / 'run'}", *words("composer_imagenette178")
    assert said in fails(capsys, *arguments)
    assert not (tmp_path / "run").exists()


def test_what_is_no_checkpoint_is_refused(tmp_path, capsys):
    arguments = f"out={tmp_path / 'run'}", *words("composer_imagenette178")
    assert "checkpoint: got nothing" in fails(capsys)
    assert "No such file" in fails(capsys, str(tmp_path / "absent.pt"), *arguments)
    (tmp_path / "text.pt").write_text("no checkpoint")
    assert "damaged" in fails(capsys, str(tmp_path / "text.pt"), *arguments)
    torch.save({"weights": 3}, tmp_path / "other.pt")
    assert "without a state_dict" in fails(capsys, str(tmp_path / "other.pt"), *arguments)
    local = f"--config={published.FOLDER / 'locality_aware_celeba178.yaml'}", "data.root=none", "model.width=12"
    torch.save({"state_dict": {}}, tmp_path / "empty.pt")
    line = fails(capsys, str(tmp_path / "empty.pt"), f"out={tmp_path / 'run'}", *local)
    assert "model: got locality_aware; allowed: pattern_composer, transinr" in line
