"""Evolve networks for dense prediction: train a supernet, search it, and retrain what was found.

    python evonas/main.py run --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms
    torchrun --nproc_per_node=2 evonas/main.py train --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms

Stages: pretrain, train, search, retrain, evaluate, predict, export, and run: all of them but predict, going on where it
stopped. ``--help`` lists every option.
"""

import sys
from collections.abc import Sequence

import torch

from evonas.options import parse
from evonas.stages import STAGE_FUNCTIONS, run
from evos.distributed import process_group, read_world, refusing_once
from evos.errors import InputError, exit_on_input_error
from evos.runs import Stopped, Stopper, keep_freed_memory, resolve_device, resume_command

TRAINING = ("pretrain", "train", "retrain")


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    words = sys.argv[1:] if argv is None else list(argv)
    world = read_world()
    with refusing_once(world):
        stage, options = parse(words)
        device = resolve_device(options.run.device)
        keep_freed_memory(device)
        if device.type == "cuda" and device.index is None:
            torch.cuda.set_device(resolve_device(f"cuda:{world.local_rank}"))
        if world.size > 1 and stage not in TRAINING:
            allowed = f"{', '.join(TRAINING)}; a search has workers of its own"
            raise InputError("STAGE", f"{stage} under torchrun", allowed)
    with Stopper() as stopper, process_group(world, device):
        try:
            (run if stage == "run" else STAGE_FUNCTIONS[stage])(options, world, stopper)
        except Stopped as stopped:
            if world.is_main:
                command = resume_command(__file__, words, overwrite=options.run.overwrite)
                print(f"stopped; go on with: {command}", file=sys.stderr)
            raise SystemExit(stopped.exit_code) from None


if __name__ == "__main__":
    main()
