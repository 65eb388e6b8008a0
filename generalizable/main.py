"""Train one network for whole data sets, each instance a small pattern.

    python generalizable/main.py --config configs/generalizable/composer_images.yaml data.root=DIR out=runs/NAME
    torchrun --nproc_per_node=2 generalizable/main.py --config ... data.root=DIR out=runs/NAME

``--help`` lists every option; ``--resume`` goes on from the checkpoint, ``--eval out=runs/NAME`` only evaluates it, on
its own data or on those of ``data.root``.
"""

import sys
from collections.abc import Iterable, Mapping, Sequence

import torch

from evos.distributed import World, process_group, read_world, refusing_once
from evos.errors import exit_on_input_error
from evos.runs import Stopped, Stopper, keep_freed_memory, resolve_device, resume_command
from generalizable.data import Sources, find_sources
from generalizable.evaluation import evaluate_run
from generalizable.options import Options, parse
from generalizable.run import train


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    words = sys.argv[1:] if argv is None else list(argv)
    world = read_world()
    options, sources, device = prepare(words, world)
    if world.is_main and not options.run.quiet and not options.run.eval:
        print("\n".join(sources.described()), flush=True)
    with Stopper() as stopper, process_group(world, device):
        try:
            if options.run.eval:
                found = evaluate_run(options, sources, world, device)
            else:
                metrics = train(options, sources, world, device, stopper)
        except Stopped as stopped:
            if world.is_main:
                command = resume_command(__file__, words, overwrite=options.run.overwrite)
                print(f"stopped; go on with: {command}", file=sys.stderr)
            raise SystemExit(stopped.exit_code) from None
    if not world.is_main:
        return
    if options.run.eval:
        report_sources(found)
        for name, entry in found.items():
            report_skipped([name], entry["skipped"]["files"])
        print(f"the model of step {next(iter(found.values()))['step']} -> {options.run.out}/eval")
    else:
        report(metrics, options)


def prepare(words: Sequence[str], world: World) -> tuple[Options, Sources, torch.device]:
    """Options, data sets and this process's device; what is wrong with them is wrong on every process."""
    with refusing_once(world):
        options = parse(words)
        device = resolve_device(options.run.device)
        keep_freed_memory(device)
        if device.type == "cuda":
            device = device if device.index is not None else torch.device("cuda", world.local_rank)
            torch.cuda.set_device(resolve_device(str(device)))
        seed, trains = options.run.seed, not options.run.eval
        sources = find_sources(options.sources, options.data, seed=seed, world=world, train=trains)
        sources.check()
        return options, sources, device


def report_sources(sources: Mapping[str, dict]) -> None:
    """A line for each source's test part."""
    for name, entry in sources.items():
        extras = [
            f"{title} " + ", ".join(f"{key}: {value:.2f}" for key, value in entry[key_of].items())
            for title, key_of in (
                ("by inner step", "psnr_by_inner_step"),
                ("by support views", "psnr_by_support_views"),
            )
            if key_of in entry
        ]
        held_out = " (held out)" if entry["held_out"] else ""
        shown = {"ssim": "SSIM", "lpips": "LPIPS", "stft_distance": "STFT distance"}
        extras = [*(f"{title} {entry[key]:.3f}" for key, title in shown.items() if entry.get(key) is not None), *extras]
        print(
            "; ".join([f"{name}{held_out}: {entry['psnr']:.2f} dB over {entry['instances']} unseen instances", *extras])
        )


def report_skipped(names: Iterable[str], lines: Sequence[str]) -> None:
    """A line for each source of which something was skipped: how much, and why the first."""
    for name in names:
        if reasons := [line.removeprefix(f"{name}: ") for line in lines if line.startswith(f"{name}: ")]:
            more = f", and {len(reasons) - 1} more in the run's metrics" if len(reasons) > 1 else ""
            print(f"{name}: skipped {len(reasons)}: {reasons[0]}{more}")


def report(metrics: dict, options: Options) -> None:
    """The last lines on standard output."""
    report_sources(metrics["sources"])
    report_skipped(metrics["sources"], metrics["skipped"]["files"])
    print(f"{metrics['train_seconds']:.1f} s of training, {metrics['points_trained']:,} points -> {options.run.out}")


if __name__ == "__main__":
    main()
