"""Measuring a model on the test part of every data set: on the way, at the end of a run, and on others after it."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evos.distributed import World, from_main, gather, reduce_mean, reduce_sum
from evos.errors import InputError
from evos.runs import common_metrics, read_json, write_json
from evos.runs.outputs import make_folder
from generalizable.codec import Codec
from generalizable.data import Shards, Source, Sources, evaluation_batches, unreadable
from generalizable.options import Options, SourceConfig, from_values, recorded_options
from generalizable.pictures import show_source


def measure_source(
    codec: Codec, source: Source | Shards, world: World, limit: int | None, skipped: list[str]
) -> dict[str, Any]:
    """Metrics of one test part: each instance counts once, whichever process has it. Without a limit, those of how
    alike instances look or sound besides.

    Args:
        codec: the model.
        source: a test part.
        world: this process among those that measure together.
        limit: the most instances; None: all.
        skipped: grows by a line for each instance that can't be read.

    Raises:
        InputError: nothing can be read.
    """
    variants, batch = codec.variants, max(1, codec.options.train.batch // world.size)
    total, count = torch.zeros(len(variants), dtype=torch.float64), torch.zeros(1)
    similarities: dict[str, Tensor] = {}
    with codec.evaluating():
        for instance in evaluation_batches(source, batch, world=world, limit=limit, skipped=skipped):
            instance = instance.to(codec.device)
            *others, trained = variants
            measured = [codec.measure(instance, variant) for variant in others]
            values, target = codec.reconstruct(instance, trained), codec.task.evaluation_target(instance)
            measured.append(codec.task.psnr(values, target))
            total += torch.stack([each.sum() for each in measured]).cpu()
            count += len(instance.signal)
            if limit is None:
                for title, each in codec.task.similarity(values, target, codec.options.run.lpips).items():
                    known = each[each.isfinite()].double()  # a silent sound is like nothing
                    sums = torch.tensor([known.sum(), len(known)], dtype=torch.float64)
                    similarities[title] = similarities.get(title, 0) + sums
    if not reduce_sum(count).item():
        raise unreadable(source.name, "test", skipped)
    mean = reduce_mean(total, count.expand(len(variants))).tolist()
    metrics: dict[str, Any] = {"psnr": mean[-1], "instances": int(reduce_sum(count))}
    named = gather(list(similarities))  # a process without an instance has none
    for title in from_main(lambda: sorted({title for titles in named for title in titles})):
        sums, known = reduce_sum(similarities.get(title, torch.zeros(2))).tolist()
        metrics[title] = sums / known if known else None
    if codec.adapts_in_inner_loop:
        metrics["psnr_by_inner_step"] = {
            str(v.inner_steps): value
            for v, value in zip(variants, mean, strict=True)
            if v.support_views == variants[-1].support_views
        }
    if variants[-1].support_views is not None:
        metrics["psnr_by_support_views"] = {
            str(v.support_views): value
            for v, value in zip(variants, mean, strict=True)
            if v.inner_steps == variants[-1].inner_steps
        }
    return metrics


def measure(
    codec: Codec, sources: Sources, world: World, limit: int | None, skipped: list[str]
) -> dict[str, dict[str, Any]]:
    """Metrics of every source's test part by its name, as ``measure_source`` has them."""
    return {
        config.title: measure_source(codec, sources.test[config.title], world, limit, skipped)
        | {"held_out": config.weight == 0}
        for config in sources.configs
    }


def evaluate_run(options: Options, sources: Sources, world: World, device: torch.device) -> dict[str, dict[str, Any]]:
    """Evaluate a finished or stopped run; every source gets eval/NAME.json, and pictures beside it.

    The run's own results stay as they are. Every process calls it.

    Returns:
        what the files hold, by the name of the source.

    Raises:
        InputError: the checkpoint doesn't fit, nothing can be read, a file of that name is of another data set, or the
            disk is full.
    """
    folder = Path(options.run.out)
    from_main(lambda: check_results(folder / "eval", sources.configs))
    codec = Codec.trained(options, folder, device)
    own = from_values(recorded_options(folder, "out")).sources
    trained_on = {place(source) for source in own if source.weight}
    found = {}
    for config in sources.configs:
        skipped: list[str] = []
        source = sources.test[config.title]
        measured = measure_source(codec, source, world, None, skipped)
        everywhere = sorted({line for lines in gather(skipped) for line in lines})
        found[config.title] = measured | {
            "held_out": place(config) not in trained_on,
            "step": codec.step,
            "source": described(config),
            "skipped": {"count": len(everywhere), "files": everywhere},
            "processes": world.size,
            **common_metrics(codec.model.parameters(), device),
            "options": options.resolved(),
        }
        if world.is_main:
            make_folder(folder / "eval")
            show_source(codec, source, options.train.pictures, folder=folder / "eval")
            write_json(folder / "eval" / f"{config.title}.json", found[config.title])
    return found


def check_results(folder: Path, configs: Sequence[SourceConfig]) -> None:
    """Raise InputError if a source would replace the result of another data set of the same name."""
    for config in configs:
        path = folder / f"{config.title}.json"
        if path.exists() and read_json(path).get("source") != described(config):
            raise InputError(
                "data.sources", f"{path} of another data set", "a name of its own: {root: DIR, name: NAME}"
            )


def described(config: SourceConfig) -> dict[str, Any]:
    """Which data set a source is."""
    return {name: value for name, value in asdict(config).items() if name in ("root", "layout")} | {
        "root": place(config)
    }


def place(config: SourceConfig) -> str:
    """Where a data set lies: the same for all ways to write its path."""
    return str(Path(config.root).resolve()) if Path(config.root).exists() else config.root
