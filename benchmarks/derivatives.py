"""The Sobolev step (values and derivatives) by one forward pass against one reverse pass per channel.

python benchmarks/derivatives.py [--points 16384] [--repeats 11] [--threads 2]

The reference is the literal one: `torch.autograd.grad` of each channel with `create_graph`, on our own fields' forward
(which is leaner than plain modules). Peak memory: each side in a process of its own, the resident set's high-water mark
(VmHWM, reset after the start) above the resident set before the first step.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import torch
from common import alternate, peak_mib, ratio, spread, write_result
from torch import Tensor

from evos.derivatives import linear_with_tangents, value_and_jacobian
from evos.fields import Field, build_field, field_config
from evos.fields.fused import scaled_weights
from evos.fields.wire import Wire
from evos.losses import derivative_loss

Loss = Callable[[Field, Tensor, Tensor, Tensor], Tensor]
FAMILIES = ("siren", "pemlp", "finer", "wire", "gauss")
PIXEL = 2 / 511  # coordinate step of a 512² photo
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-10}


def sobolev(values: Tensor, jacobian: Tensor, target: Tensor, derivatives: Tensor) -> Tensor:
    """The paper's loss, derivatives per pixel."""
    return (values - target).square().mean() + derivative_loss(PIXEL * jacobian, derivatives)


def one_pass(field: Field, x: Tensor, target: Tensor, derivatives: Tensor) -> Tensor:
    """Ours."""
    return sobolev(*value_and_jacobian(field, x), target, derivatives)


def double_backward(field: Field, x: Tensor, target: Tensor, derivatives: Tensor) -> Tensor:
    """The literal reference."""
    x = x.clone().requires_grad_()
    values = field(x)
    rows = [torch.autograd.grad(channel.sum(), x, create_graph=True)[0] for channel in values.unbind(-1)]
    return sobolev(values, torch.stack(rows, dim=1), target, derivatives)


def unfused(field: Any, x: Tensor, target: Tensor, derivatives: Tensor) -> Tensor:
    """Ours without fusion: tangents propagated by plain operations, all points at once."""
    values, tangents = x, torch.eye(2)[:, None].expand(-1, *x.shape)
    for index, layer in enumerate(scaled_weights(field)):
        if index:
            values, tangents = field.activation_tangents(values, tangents, index - 1)
        values, tangents = linear_with_tangents(values, tangents, *layer)
    return sobolev(values, tangents.permute(1, 2, 0), target, derivatives)


SIDES: dict[str, Loss] = {"one_pass": one_pass, "double_backward": double_backward, "unfused": unfused}


def problem(points: int) -> tuple[Tensor, Tensor, Tensor]:
    """Coordinates, values and derivatives of a colour picture, of the size that a photo's have."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(points, 2, generator=generator) * 2 - 1
    target = torch.rand(points, 3, generator=generator)
    return x, target, 0.05 * torch.randn(points, 3, 2, generator=generator)


def stepper(loss: Loss, points: int) -> Callable[[], object]:
    """A training step of a 3 × 256 sine network: loss, backward pass, Adam."""
    field = build_field(field_config("siren"), 2, 3, seed=0)
    optimizer = torch.optim.Adam(field.parameters(), lr=1e-4)
    data = problem(points)

    def step() -> None:
        optimizer.zero_grad()
        loss(field, *data).backward()
        optimizer.step()

    return step


class LiteralWire(Wire):
    """WIRE with the modulus outside torch.polar, whose second derivatives are NaN where it underflows in float32."""

    def activation(self, z: Tensor, layer_index: int) -> Tensor:
        """Gabor wavelet."""
        envelope = (self.scale / self.gains[layer_index]) ** 2
        a, b = (z.real, z.imag) if z.is_complex() else (z, torch.zeros_like(z))
        modulus = torch.exp(-b - envelope * (a.square() + b.square()))
        return modulus * torch.polar(torch.ones_like(a), a)


def disagreement(family: str, dtype: torch.dtype, points: int) -> dict[str, float]:
    """Relative difference of the losses, and the largest of any parameter's gradient (in norm)."""
    torch.set_default_dtype(dtype)
    field = build_field(field_config(family), 2, 3, seed=0)
    data = [values.to(dtype) for values in problem(points)]
    results = []
    for side in (one_pass, double_backward):
        if family == "wire" and side is double_backward:
            field.__class__ = LiteralWire
        loss = side(field, *data)
        results.append((loss.detach(), torch.autograd.grad(loss, list(field.parameters()))))
    torch.set_default_dtype(torch.float32)
    (loss, gradients), (reference, references) = results
    worst = max(float((a - b).norm() / b.norm()) for a, b in zip(gradients, references, strict=True))
    return {"loss": float((loss - reference).abs() / reference), "gradient": worst, "goal": TOLERANCE[dtype]}


def print_peak_memory(side: str, points: int) -> None:
    """In a process of its own: print how far three steps raise the resident set, in MiB."""
    stepper(SIDES[side], 8)()  # loads what any first step loads
    step = stepper(SIDES[side], points)
    print(peak_mib(lambda: [step() for _ in range(3)]))


def peak_memory(side: str, args: argparse.Namespace) -> float:
    """The figure that such a process prints."""
    options = ["--points", str(args.points), "--threads", str(args.threads), "--peak-memory-of", side]
    command = [sys.executable, __file__, *options]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--points", type=int, default=16384)
    parser.add_argument("--repeats", type=int, default=11)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peak-memory-of", choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.peak_memory_of:
        return print_peak_memory(args.peak_memory_of, args.points)
    equality = {
        f"{family}_{str(dtype).removeprefix('torch.')}": disagreement(family, dtype, min(args.points, 2048))
        for family in FAMILIES
        for dtype in TOLERANCE
    }
    times = alternate({name: stepper(loss, args.points) for name, loss in SIDES.items()}, repeats=args.repeats)
    peaks = {name: peak_memory(name, args) for name in SIDES}
    write_result(
        f"derivatives_{args.points}_{args.threads}threads",
        {
            "relative_difference": equality,
            "seconds_per_step": {name: spread(values) for name, values in times.items()},
            "one_pass_over_double_backward": ratio(times, "one_pass", "double_backward"),
            "unfused_over_double_backward": ratio(times, "unfused", "double_backward"),
            "peak_mib": peaks,
            "peak_over_double_backward": {n: peaks[n] / peaks["double_backward"] for n in ("one_pass", "unfused")},
        },
    )


if __name__ == "__main__":
    main()
