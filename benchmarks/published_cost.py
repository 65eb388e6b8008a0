"""What the published configurations of generalizable fields cost: operations of a training step, counted, not run.

    python benchmarks/published_cost.py

Matrix products of one instance's forward and backward pass (PyTorch's counter, on tensors without data), times the
instances and steps of the configuration. Hours are for a device that sustains --tflops in them, which is an assumption.
"""

import argparse
from typing import Any

import torch
from common import write_result
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from generalizable import published
from generalizable.inner import outer_loss
from generalizable.instances import Instance
from generalizable.models import build_model
from generalizable.options import Options
from generalizable.tasks import build_task


class Counter(TorchDispatchMode):
    """Counts what PyTorch's FlopCounterMode counts, which cannot follow torch.func's gradients."""

    total = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operation and add its count."""
        result = func(*args, **(kwargs or {}))
        if (count := flop_registry.get(func._overloadpacket)) is not None:
            self.total += count(*args, **(kwargs or {}), out_val=result)
        return result


def operations(options: Options) -> float:
    """Multiplications and additions of one instance in a training step."""
    task, meta = build_task(options.data), torch.device("meta")
    with meta:
        model = build_model(options.model, task.model_task)
        signal = torch.zeros(1, task.model_task.out_features, *task.shape)
        count = signal[0, 0].numel()
        views = task.support_views(options.data.support_views if task.all_views else None)
        if task.all_views:
            shape = 1, len(views), 3, options.data.size, options.data.size
            data = {name: torch.zeros(shape) for name in ("images", "origins", "directions")}
            points, target = torch.zeros(1, count, 6), torch.zeros(1, count, 3)
        else:
            points, target = torch.zeros(1, count, len(task.shape)), task.cells(signal)
            data = (
                {"coords": points, "target": target} if model.inner_steps else task.support_signal(Instance(signal), ())
            )
    kept = count if options.selector.name == "full" else round(options.selector.keep_ratio * count)
    with Counter() as counter, meta:
        outer_loss(model, data, points[:, :kept], target[:, :kept])[0].backward()
    return counter.total


def main() -> None:
    """Count, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tflops", type=float, default=50.0, help="10^12 operations a second that a device sustains")
    args = parser.parse_args()
    found = {}
    for method, name in published.combinations():
        options = published.options_of(method, name)
        step = operations(options) * options.train.batch
        total = step * options.train.steps
        found[f"{method}_{name}"] = {
            "step_gflop": round(step / 1e9, 1),
            "steps": options.train.steps,
            "total_eflop": round(total / 1e18, 2),
            "hours": round(total / (args.tflops * 1e12) / 3600, 1),
        }
    write_result("published_cost", {"tflops": args.tflops, "configurations": found})


if __name__ == "__main__":
    main()
