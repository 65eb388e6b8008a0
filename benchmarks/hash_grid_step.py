"""Time of a training step of the hash grid in this tree, over that in another version of this project.

    OMP_NUM_THREADS=1 python benchmarks/hash_grid_step.py --other DIR

A step is forward, loss and backward on so many random points, the optimizer left out. Both trees run this script, each
in a process of its own, in turn. The norms of the gradients, from the same weights and points, show that both compute
the same; tests/evos/fields/test_hashgrid.py has gradients against the plain formula.
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import Kernels, write_result
from two_trees import compare, serve, summary

from evos.fields import Field, build_field, field_config
from evos.fields.fused import Fused
from evos.runs import keep_freed_memory


def stepper(field: Field, coords: torch.Tensor, target: torch.Tensor) -> Callable[[], None]:
    """A step's forward and backward pass."""
    network = Fused(field)

    def step() -> None:
        field.zero_grad()
        (network(coords) - target).square().mean().backward()

    return step


def build(points: int, axes: int) -> tuple[Field, Callable[[], None]]:
    """The hash grid as it ships, and its step on random points."""
    field = build_field(field_config("hashgrid"), axes, 3, seed=0)
    generator = torch.Generator().manual_seed(0)
    coords, target = (torch.rand(points, columns, generator=generator) for columns in (axes, 3))
    return field, stepper(field, 2 * coords - 1, target)


def operations(name: str, axes: int) -> dict[str, float]:
    """Operations of a step, and the norm of its gradient by the table and by the layers."""
    field, step = build(int(name), axes)
    counted = Kernels()
    with counted:
        step()
    norms = {False: 0.0, True: 0.0}
    for key, parameter in field.named_parameters():
        assert parameter.grad is not None
        norms["table" in key] += parameter.grad.double().square().sum().item()
    return {"operations": counted.count, "table": norms[True] ** 0.5, "layers": norms[False] ** 0.5}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sides", "--points", nargs="+", default=["6553", "65536"], help="points of a step")
    parser.add_argument("--axes", type=int, default=2)
    parser.add_argument("--other", type=Path, metavar="DIR", help="the other version's tree")
    parser.add_argument("--repeats", type=int, default=41)
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory("cpu")
    if args.serve:
        steps = {name: build(int(name), args.axes)[1] for name in args.sides}
        return serve(steps, partial(operations, axes=args.axes))
    if args.other is None:
        parser.error("--other: the tree of the version to compare with")
    pairs = [(name, name) for name in args.sides]
    numbers = compare(
        str(Path(__file__).resolve()),  # the other version may not have it
        args.other,
        pairs,
        lambda names: ["--axes", str(args.axes), "--sides", *names],
        repeats=args.repeats,
        warmup=5,
    )
    write_result(f"hash_grid_step_{args.axes}d_{torch.get_num_threads()}threads", numbers)
    print(summary(numbers))


if __name__ == "__main__":
    main()
