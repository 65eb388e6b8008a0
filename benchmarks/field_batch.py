"""Fields of one shape trained as one network, beside one by one: process time of a step of each field.

    python benchmarks/field_batch.py

SIRENs of three layers on photos made of noise, a tenth of the points, by the recipe fast; sides alternate, one thread.
"""

from functools import partial
from itertools import product
from time import process_time

import torch
from common import ratio, spread, write_result

from evonas.field_space import Candidate
from evonas.field_training import FieldBatch, Target
from evos.fields.siren import SirenConfig
from evos.fields.stacked import stack_size
from evos.runs import keep_freed_memory
from evos.signals import Signal

CPU = torch.device("cpu")
FIELDS = 8


def timed(batches: list[FieldBatch]) -> float:
    """Process seconds of a step of all fields, over their number."""
    start = process_time()
    for batch in batches:
        batch.take_step()
    return (process_time() - start) / sum(map(len, batches))


def main() -> None:
    """Time every size, and write the result."""
    torch.set_num_threads(1)
    keep_freed_memory(CPU)
    found = {}
    for side, width in product((64, 128), (16, 32, 64, 128, 256)):
        target = Target(Signal("noise", torch.rand(side**2, 3), (side, side)), CPU)
        fits = [(Candidate(SirenConfig(width, 3), "schedule_free", 1e-3), target)] * FIELDS
        size = stack_size(width, target.points, CPU)
        make = partial(FieldBatch, total_steps=1, seed=0, device=CPU)
        sides = {
            "alone": [make([fit]) for fit in fits],
            "stacked": [make(fits[start : start + size]) for start in range(0, FIELDS, size)],
            "all": [make(fits)],
        }
        times: dict[str, list[float]] = {name: [] for name in sides}
        for round_ in range(13):
            for name, batches in sides.items():
                seconds = timed(batches)
                if round_ >= 3:
                    times[name].append(seconds)
        found[f"{side}x{side}, 3x{width}"] = {
            "fields_in_a_batch": min(size, FIELDS),
            "milliseconds_alone": spread([1000 * t for t in times["alone"]]),
            "stacked_over_alone": ratio(times, "stacked", "alone"),
            "all_eight_over_alone": ratio(times, "all", "alone"),
        }
    write_result("field_batch", {"clock": "process time of one thread", "fields": FIELDS, **found})


if __name__ == "__main__":
    main()
