"""Evolve networks for dense prediction: train a supernet, search it, and retrain what was found.

    python evonas/main.py run --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms
    torchrun --nproc_per_node=2 evonas/main.py train --config configs/evonas/rooms.yaml data.root=DIR out=runs/rooms

Stages: pretrain, train, search, retrain, evaluate, predict, points, export, and run: all of them but predict and
points, going on where it stopped. ``--help`` lists every option. ``fields``, or ``input=FILE`` without a stage,
searches for a neural field of your own signals: see field_search.py.
"""

import sys
from collections.abc import Callable, Sequence

import torch

from evonas import field_search
from evonas.options import FIELDS, parse, stage_word
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
    if wants_fields(words):
        if world.size > 1:
            raise InputError("STAGE", f"{FIELDS} under torchrun", "one process; a search has workers of its own")
        return stoppable(words, lambda stopper: field_search.main(words[words[:1] == [FIELDS] :], stopper))
    with refusing_once(world):
        stage, options = parse(words)
        device = resolve_device(options.run.device)
        keep_freed_memory(device)
        if device.type == "cuda" and device.index is None:
            torch.cuda.set_device(resolve_device(f"cuda:{world.local_rank}"))
        if world.size > 1 and stage not in TRAINING:
            allowed = f"{', '.join(TRAINING)}; a search has workers of its own"
            raise InputError("STAGE", f"{stage} under torchrun", allowed)

    def work(stopper: Stopper) -> None:
        with process_group(world, device):
            (run if stage == "run" else STAGE_FUNCTIONS[stage])(options, world, stopper)

    stoppable(words, work, overwrite=options.run.overwrite, says=world.is_main)


def wants_fields(words: Sequence[str]) -> bool:
    """Whether a command line is one of the search of fields."""
    stage = stage_word(words)
    if stage is not None:
        return stage == FIELDS
    return "input" in {word.removeprefix("--").partition("=")[0] for word in words}


def stoppable(
    words: Sequence[str], work: Callable[[Stopper], None], *, overwrite: bool = False, says: bool = True
) -> None:
    """Work that a signal may stop; ``says``: this process then prints the command that goes on."""
    with Stopper() as stopper:
        try:
            work(stopper)
        except Stopped as stopped:
            if says:
                print(f"stopped; go on with: {resume_command(__file__, words, overwrite=overwrite)}", file=sys.stderr)
            raise SystemExit(stopped.exit_code) from None


if __name__ == "__main__":
    main()
