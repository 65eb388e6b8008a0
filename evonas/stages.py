"""The stages up to the retrained networks, each a function of the options that reads what the stage before wrote.

Below ``out``: pretrain/, train/ and retrain/PICK/ are runs (checkpoint.pt, metrics.json, event files); search/ holds
archive.jsonl, front.csv, pareto.png and hypervolume.png; each retrained network is a network.pt.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evonas.deployment import evaluate, export, points, predict
from evonas.distillation import Distillation
from evonas.engines import Evaluate, build_engine
from evonas.evaluation import Evaluator, latency
from evonas.networks import save_network
from evonas.options import FREE, Options
from evonas.search import Result, pick, read_front, search, write_report
from evonas.space import Genome, Space
from evonas.supernet import Network, load_weights, macs, parameters
from evonas.tasks import Task, build_task
from evonas.training import Plan, TrainConfig, Training, read_phases, single_plan
from evos.distributed import World, from_main, refusing_once
from evos.errors import InputError
from evos.runs import (
    EventLog,
    Run,
    Stopper,
    TrainingLoop,
    load_checkpoint,
    open_run,
    resolve_device,
    save_checkpoint,
    seed_everything,
    write_json,
)
from evos.runs.folder import check_run_folder


def fit(
    network: Network,
    task: Task,
    plan: Plan,
    config: TrainConfig,
    options: Options,
    folder: Path,
    groups: Sequence[str],
    world: World,
    stopper: Stopper,
    distillation: Distillation | None = None,
) -> None:
    """Train a network in a run folder, or go on; the network ends with its best weights."""
    settings, device = options.run, resolve_device(options.run.device)
    with refusing_once(world):
        training = Training(
            network,
            task,
            plan,
            config,
            seed=settings.seed,
            device=device,
            world=world,
            precision=settings.precision,
            distillation=distillation,
        )
    recorded = options.recorded(*groups) | {"genome": list(network.genome)}
    run: Run = from_main(
        lambda: open_run(folder, recorded, resume=settings.resume, overwrite=settings.overwrite, free=FREE)
    )
    loop = TrainingLoop(
        training,
        run,
        steps=plan.steps,
        label=folder.name,
        device=device,
        world=world,
        seed=settings.seed,
        eval_every=settings.eval_every,
        save_every=settings.save_every,
        quiet=settings.quiet,
        metric="error",
    )
    if not (run.metrics_path.exists() and loop.step == loop.steps):
        loop.train(stopper)

        def keep() -> None:
            save_checkpoint(folder / "best.pt", training.best)
            best = {"error": training.best["error"], "best_step": training.best["step"]}
            write_json(run.metrics_path, best | loop.metrics())

        from_main(keep)
    load_weights(network, load_checkpoint(folder / "best.pt")["weights"], str(folder))


def pretrain(options: Options, world: World, stopper: Stopper) -> None:
    """Train the largest network as a classifier; only its trunk is used later."""
    with refusing_once(world):
        if options.pretrain.root is None:
            raise InputError("pretrain.root", None, "the folder of a data set of classes")
        task = build_task(options.classification)
        seed_everything(options.run.seed)
        space = Space(options.space)
        network = Network(space, task.head)
        plan = single_plan(space, space.largest, options.pretrain.steps_over(task.size("train")))
        distill = replace(options.distill, teacher=options.pretrain.teacher)
        teacher = teacher_of(replace(options, distill=distill), network, task)
    folder = Path(options.run.out) / "pretrain"
    groups = ("space", "pretrain") if teacher is None else ("space", "pretrain", "distill")
    fit(network, task, plan, options.pretrain, options, folder, groups, world, stopper, teacher)


def train(options: Options, world: World, stopper: Stopper) -> None:
    """Progressive training of the supernet, from the pretrained trunk where there is one."""
    with refusing_once(world):
        task, space = build_task(options.data), Space(options.space)
        seed_everything(options.run.seed)
        network = Network(space, task.head)
        pretrained = Path(options.run.out) / "pretrain" / "best.pt"
        if options.pretrain.root is not None:
            weights = load_checkpoint(pretrained)["weights"]
            load_weights(network, weights, str(pretrained), but="head.")
        plan = read_phases(space, options.phases, task.size("train"), options.train.batch)
        teacher = teacher_of(options, network, task)
    groups = ("space", "data", "pretrain", "train", "phases", "distill")
    fit(network, task, plan, options.train, options, Path(options.run.out) / "train", groups, world, stopper, teacher)


def teacher_of(options: Options, student: Network, task: Task, supernet: Network | None = None) -> Distillation | None:
    """What ``distill.teacher`` names; max and ema are the largest network of the student, or of ``supernet``."""
    if options.distill.teacher is None:
        return None
    largest = None if supernet is None else supernet.extract(supernet.space.largest)
    return Distillation(options.distill, student, task, resolve_device(options.run.device), largest)


def load_supernet(options: Options, task: Task) -> Network:
    """The supernet with its best weights.

    Raises:
        InputError: there is none, or it is of another space.
    """
    path = Path(options.run.out) / "train" / "best.pt"
    network = Network(Space(options.space), task.head)
    load_weights(network, load_checkpoint(path)["weights"], str(path))
    return network.to(resolve_device(options.run.device))


@dataclass(frozen=True)
class ErrorsOnSearch:
    """Makes, in a worker, the function that gives the errors of architectures on the search split."""

    options: Options

    def __call__(self) -> Evaluate:
        """Reads the supernet and the data once."""
        task = build_task(self.options.data, ["search"])
        network = load_supernet(self.options, task)
        device = next(network.parameters()).device

        def errors(genomes: Sequence[Genome]) -> list[float]:
            # Rounded, because the last bits depend on where tensors lie in memory.
            return [round(task.error(found), 7) for found in task.evaluate(network, genomes, "search", device)]

        return errors


@dataclass(frozen=True)
class Costs:
    """The objectives that need no data: MACs, parameters and latency of one picture, on a supernet of its own."""

    network: Network
    height: int
    width: int

    def macs(self, genome: Genome) -> float:
        """Multiplications of one picture."""
        return float(macs(self.network.activate(genome), self.height, self.width))

    def parameters(self, genome: Genome) -> float:
        """Weights."""
        return float(parameters(self.network.activate(genome)))

    def latency(self, genome: Genome) -> float:
        """Median seconds of one picture where nothing else runs."""
        network = self.network.extract(genome).eval()
        picture = torch.zeros(1, self.height, self.width, 3, device=next(network.parameters()).device)

        def once() -> None:
            with torch.inference_mode():
                network(picture)

        return latency(once)["median"]


def search_stage(options: Options, world: World, stopper: Stopper) -> None:
    """NSGA-II, NSGA-III or random search over the supernet; goes on where it was."""
    search_in(Path(options.run.out) / "search", options, stopper)


def search_in(folder: Path, options: Options, stopper: Stopper, others: Sequence[Result] = ()) -> Result:
    """Search in a folder, and write its report beside other searches, whose hypervolume has the same reference."""
    space = Space(options.space)
    task = build_task(options.data, ["search"])
    network = load_supernet(options, task)
    recorded = options.recorded("space", "data", "search") | {"supernet": fingerprint(network)}
    check_run_folder(folder, resume=options.run.resume, overwrite=options.run.overwrite)
    costs = Costs(network, options.data.height, options.data.width)
    table = {"latency": costs.latency, "macs": costs.macs, "parameters": costs.parameters}
    objectives = {name: table[name] for name in ("latency", "macs", "parameters") if name in options.search.names}
    with build_engine(options.engine, ErrorsOnSearch(options)) as engine:  # before a search that is there is replaced
        open_run(folder, recorded, resume=options.run.resume, overwrite=options.run.overwrite, free=FREE)
        found = search(
            space,
            options.search,
            Evaluator(engine, objectives, folder, space),
            folder,
            quiet=options.run.quiet,
            stopped=lambda: stopper.exit_code,
            reference=others[0].reference if others else None,
        )
    if not (folder / "metrics.json").exists():
        with closing(EventLog(folder)) as events:
            for entry in found.history:
                events.scalars(int(entry["evaluations"]), {"hypervolume": entry["hypervolume"]})
    write_report(found, space, folder, others)
    write_json(folder / "metrics.json", {"history": found.history, "reference": found.reference, "front": found.front})
    return found


def fingerprint(network: Network) -> str:
    """A short text that tells two sets of weights apart."""
    found = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        found.update(name.encode())
        found.update(weight.detach().cpu().numpy().tobytes())
    return found.hexdigest()[:16]


def retrain(options: Options, world: World, stopper: Stopper) -> None:
    """Train networks of the front further, or one by its genes, from inherited weights or from scratch."""
    out, settings, space = Path(options.run.out), options.retrain, Space(options.space)
    with refusing_once(world):
        if settings.genome is not None:
            chosen = {"genome": space.check(read_genome(settings.genome))}
        else:
            front = read_front(out / "search" / "front.csv", space)
            chosen = {name: pick(front, name) for name in settings.names}
        task = build_task(options.data)
        inherits, follows = settings.weights == "inherited", options.distill.teacher in ("max", "ema")
        supernet = load_supernet(options, task) if inherits or follows else None
    for name, genome in chosen.items():
        seed_everything(options.run.seed)
        network = supernet.extract(genome) if supernet and inherits else Network(space, task.head, genome)
        folder = out / "retrain" / (name if inherits else f"{name}-scratch")
        plan = single_plan(space, genome, settings.steps_over(task.size("train")))
        groups = ("space", "data", "retrain", "distill")
        with refusing_once(world):
            teacher = teacher_of(options, network, task, supernet if follows else None)
        fit(network, task, plan, settings, options, folder, groups, world, stopper, teacher)
        if world.is_main:
            save_network(folder / "network.pt", network, options.data, task.classes)


def read_genome(text: str) -> list[int]:
    """The genes of a list as text; raises InputError if it is none."""
    try:
        genes = json.loads(text)
        if not isinstance(genes, list) or not all(type(gene) is int for gene in genes):
            raise ValueError
    except ValueError:
        raise InputError("retrain.genome", text, "a list of whole numbers, as in front.csv") from None
    return genes


STAGE_FUNCTIONS: dict[str, Callable[[Options, World, Stopper], None]] = {
    "pretrain": pretrain,
    "train": train,
    "search": search_stage,
    "retrain": retrain,
    "evaluate": evaluate,
    "predict": predict,
    "points": points,
    "export": export,
}


def run(options: Options, world: World, stopper: Stopper) -> None:
    """All stages up to export, each going on where it stopped."""
    again = replace(options, run=replace(options.run, resume=not options.run.overwrite))
    stages = ["pretrain"] * (options.pretrain.root is not None) + ["train", "search", "retrain", "evaluate", "export"]
    for stage in stages:
        if not options.run.quiet and world.is_main:
            print(f"== {stage}", flush=True)
        STAGE_FUNCTIONS[stage](again, world, stopper)
