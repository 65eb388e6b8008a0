"""The Sobolev step of TinyNeRF by one forward pass against one reverse pass per channel, through the rendering.

    python benchmarks/ray_derivatives.py [--rays 256] [--samples 64] [--layers 8] [--width 256] [--threads 1]

The reference is the literal one: the colours of rays whose pixels are leaves, `torch.autograd.grad` of each channel
with `create_graph`, and the loss differentiated through all of it. Both sides render with the same functions.
"""

import argparse
from collections.abc import Callable
from typing import NamedTuple

import torch
from common import alternate, ratio, spread, write_result
from torch import Tensor

from evos.losses import derivative_loss
from evos_nerf.rendering import WithTangents, pinhole_tangents, render, to_ndc
from evos_nerf.tiny_nerf import TinyNerf


class Problem(NamedTuple):
    """Pixels of a camera at the origin of a scene seen from the front, their depths and what they should show."""

    pixels: Tensor
    depths: Tensor
    colours: Tensor
    derivatives: Tensor


FOCAL = torch.tensor([[400.0, 400.0]])
FORWARD = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]]])  # along +y, z up
NDC = torch.tensor([1.6, 2.1, 1.0])


def problem(rays: int, samples: int) -> Problem:
    """Random pixels (row, column) from the principal point, jittered depths, colours, derivatives of a photo's size."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    depths = (torch.arange(samples) + random(rays, samples)) / samples
    return Problem(400 * random(rays, 2) - 200, depths, random(rays, 3), 0.1 * random(rays, 3, 2) - 0.05)


def loss(data: Problem, colour: Tensor, jacobian: Tensor) -> Tensor:
    """The paper's, derivatives per pixel."""
    return (colour - data.colours).square().mean() + derivative_loss(jacobian, data.derivatives)


def rendered(field: TinyNerf, data: Problem, pixels: Tensor, tangents: Tensor) -> WithTangents:
    """Colours of pixels, with their derivatives along the tangents of the rays' directions."""
    # A pinhole's directions are affine in the pixel.
    turns = pinhole_tangents(FORWARD.to(pixels), FOCAL.to(pixels))
    directions = torch.einsum("nk,kd->nd", pixels, turns[:, 0]) - FORWARD[0, :, 2].to(pixels)
    rays = to_ndc(torch.zeros_like(directions), WithTangents(directions, tangents), NDC.to(pixels))
    return render(field, rays, data.depths)[0]


def one_pass(field: TinyNerf, data: Problem) -> Tensor:
    """Ours."""
    turns = pinhole_tangents(FORWARD.to(data.pixels), FOCAL.to(data.pixels))
    colour = rendered(field, data, data.pixels, turns.expand(-1, len(data.pixels), -1))
    return loss(data, colour.value, colour.tangents.permute(1, 2, 0))


def double_backward(field: TinyNerf, data: Problem) -> Tensor:
    """The literal reference."""
    pixels = data.pixels.clone().requires_grad_()
    colour = rendered(field, data, pixels, pixels.new_empty(0, len(pixels), 3)).value
    rows = [torch.autograd.grad(channel.sum(), pixels, create_graph=True)[0] for channel in colour.unbind(-1)]
    return loss(data, colour, torch.stack(rows, dim=1))


def value_only(field: TinyNerf, data: Problem) -> Tensor:
    """For comparison: colours alone."""
    colour = rendered(field, data, data.pixels, data.pixels.new_empty(0, len(data.pixels), 3)).value
    return (colour - data.colours).square().mean()


SIDES = {"one_pass": one_pass, "double_backward": double_backward, "value_only": value_only}


def disagreement(args: argparse.Namespace, activation: str, dtype: torch.dtype) -> dict[str, float]:
    """Relative difference of the losses, and the largest of any parameter's gradient (in norm)."""
    torch.manual_seed(0)
    field = TinyNerf(activation, args.layers, args.width).to(dtype)
    data = Problem(*(values.to(dtype) for values in problem(min(args.rays, 64), args.samples)))
    results = []
    for side in (one_pass, double_backward):
        value = side(field, data)
        results.append((value.detach(), torch.autograd.grad(value, list(field.parameters()))))
    (mine, gradients), (reference, references) = results
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(gradients, references, strict=True))
    return {"loss": float((mine - reference).abs() / reference), "gradient": worst}


def stepper(side: Callable[[TinyNerf, Problem], Tensor], args: argparse.Namespace) -> Callable[[], None]:
    """A training step of the relu network: loss, backward pass, Adam."""
    torch.manual_seed(0)
    field = TinyNerf("relu", args.layers, args.width)
    optimizer = torch.optim.Adam(field.parameters(), lr=5e-4)
    data = problem(args.rays, args.samples)

    def step() -> None:
        optimizer.zero_grad()
        side(field, data).backward()
        optimizer.step()

    return step


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rays", type=int, default=256)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    equality = {
        f"{activation}_{str(dtype).removeprefix('torch.')}": disagreement(args, activation, dtype)
        for activation in ("relu", "sine")
        for dtype in (torch.float32, torch.float64)
    }
    steps = {name: stepper(side, args) for name, side in SIDES.items()}
    times = alternate(steps, repeats=args.repeats, warmup=args.warmup)
    write_result(
        f"ray_derivatives_{args.rays}x{args.samples}_{args.layers}x{args.width}_{args.threads}threads",
        {
            "relative_difference": equality,
            "goals": {"float32": 1e-5, "float64": 1e-10, "one_pass_over_double_backward": 0.6},
            "seconds_per_step": {name: spread(values) for name, values in times.items()},
            "one_pass_over_double_backward": ratio(times, "one_pass", "double_backward"),
            "one_pass_over_value_only": ratio(times, "one_pass", "value_only"),
        },
    )


if __name__ == "__main__":
    main()
