"""The stages that take a retrained network: evaluate, predict, points and export."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from evonas.data import read_colours
from evonas.networks import load_network
from evonas.options import Options
from evonas.report import draw_results
from evonas.space import as_text
from evonas.supernet import macs, parameters
from evonas.tasks import build_task
from evonas.tasks.base import coloured
from evos.distributed import World
from evos.errors import InputError
from evos.images import list_images, write_image
from evos.runs import Progress, Stopper, resolve_device, write_json
from evos.runs.files import save_figure
from evos.runs.outputs import check_folder, make_folder


def retrained(options: Options) -> list[Path]:
    """``network`` alone, or all retrained ones, the knee's first; raises InputError where there is none."""
    if options.run.network is not None:
        return [Path(options.run.network)]
    found = sorted((Path(options.run.out) / "retrain").glob("*/network.pt"))
    if not found:
        raise InputError("network", None, f"a network.pt; there is none in {options.run.out}/retrain")
    return sorted(found, key=lambda path: path.parent.name != "knee")


def evaluate(options: Options, world: World, stopper: Stopper) -> None:
    """All metrics of the retrained networks (or of ``network``) on the test split, which nothing was chosen on."""
    from matplotlib.figure import Figure

    out, device = Path(options.run.out), resolve_device(options.run.device)
    paths, results, shown = sorted(retrained(options)), {}, {}
    task = build_task(options.data, ["test"])
    for path in paths:
        network, reader = load_network(path, device)
        if (reader.config.task, reader.classes) != (task.config.task, task.classes):
            raise InputError("network", f"{path}, for {reader.meaning}", f"one for {task.meaning}, as the data")
        # What outputs mean is the network's matter, the size of the pictures that of the data.
        reader.config = replace(reader.config, height=options.data.height, width=options.data.width)
        costs = {
            "macs": macs(network, options.data.height, options.data.width),
            "parameters": parameters(network),
            "architecture": as_text(network.space.decode(network.genome)),
        }
        name = path.parent.name if path.name == "network.pt" else path.stem
        shown[name] = network, reader
        results[name] = costs | task.evaluate(network, [network.genome], "test", device, reader)[0]
        numbers = ", ".join(f"{key} {value:.4g}" for key, value in results[name].items() if isinstance(value, float))
        print(f"{name}: {numbers}, {costs['macs'] / 1e6:.1f} MMAC, {costs['parameters']:,} parameters")
    make_folder(out / "evaluate")
    figure = Figure(figsize=(3 * (2 + len(shown)), 7), layout="constrained")
    draw_results(figure, task, shown)
    save_figure(figure, out / "evaluate" / "report.png")
    write_json(out / "evaluate" / "metrics.json", {"pictures": task.size("test"), "networks": results})


def predict(options: Options, world: World, stopper: Stopper) -> None:
    """Results for pictures: depth as 16-bit PNG (``data.depth_scale`` units a metre, 1000 by default), masks, boxes as
    JSON; and coloured pictures of them."""
    if options.run.input is None:
        raise InputError("input", None, "a picture or a folder of pictures")
    device = resolve_device(options.run.device)
    network, task = load_network(retrained(options)[0], device)
    task.config = replace(task.config, depth_scale=options.data.depth_scale)
    pictures = list_images(options.run.input)
    stems = [path.stem for path in pictures]
    if twice := sorted(n for n, count in Counter([*stems, *map(coloured, stems)]).items() if count > 1):
        raise InputError("input", f"{', '.join(twice)}: results of several pictures", "pictures of different names")
    folder = output_folder(options, "predict", ("*.png", "*.json"), pictures[0].parent)
    with Progress(len(pictures), "predict", quiet=options.run.quiet) as progress:
        for done, path in enumerate(pictures, 1):
            picture = read_colours(path)
            task.write(folder, path.stem, picture, task.predict(network, picture.to(device)).cpu())
            progress.update(done)
    print(f"{len(pictures)} pictures: {folder}")


def points(options: Options, world: World, stopper: Stopper) -> None:
    """Depth of a scene's views, aligned to its sparse points, and one cloud of the views to train on."""
    from evonas import scenes

    if options.run.scene is None:
        raise InputError("scene", None, "a folder with poses_bounds.npy or transforms.json")
    device, scene = resolve_device(options.run.device), scenes.read_scene(options.run.scene)
    network, task = load_network(retrained(options)[0], device)
    if task.config.task != "depth":
        raise InputError("network", f"one for {task.config.task}", "one for depth")
    written = ("transforms.json", "points.ply", "depths/*.npy", "*_coloured.png")
    folder, depths, colours = output_folder(options, "points", written, Path(options.run.scene)), [], []
    with Progress(len(scene.views), "points", quiet=options.run.quiet) as progress:
        for done, (name, view) in enumerate(zip(scene.names, scene.views, strict=True), 1):
            picture = read_colours(view.picture)
            found = task.predict(network, picture.to(device)).cpu()
            depths.append(scenes.aligned(view, found.numpy(), scene.points))
            colours.append(scenes.to_bytes(picture))
            spread = depths[-1] - depths[-1].min()
            shown = torch.from_numpy(task.config.max_depth * (0.05 + 0.95 * spread / max(spread.max(), 1e-9)))
            write_image(folder / f"{coloured(name)}.png", task.illustrate(picture[None], shown[None])[0])
            progress.update(done)
    train, count = scene.train, options.run.points
    views, shades = [scene.views[i] for i in train], [colours[i] for i in train]
    cloud = scenes.fused(views, [scene.views[i].unmasked(depths[i]) for i in train], shades, count)
    if not len(cloud[0]):
        raise InputError("scene", "views of which no two agree on any depth", "views that overlap")
    scenes.write_scene(folder, scene, depths, cloud)
    print(f"{len(depths)} depth maps, {len(cloud[0])} points: {folder}")


def output_folder(options: Options, name: str, written: Iterable[str], reads: Path | None = None) -> Path:
    """A folder of that name in ``out``, whose files are replaced; or ``output``, where nothing but ``written`` is.

    Raises:
        InputError: it is where the stage ``reads``, can't be written, or is an ``output`` that has files already, and
            no leave to overwrite them.
    """
    given = options.run.output
    folder = Path(options.run.out) / name if given is None else Path(given)
    if reads is not None and folder.resolve() == reads.resolve():
        raise InputError("output", f"{folder}, which is read", "another folder than the one that is read")
    if given is not None:
        check_folder(folder, written, options.run.overwrite, "output")
    make_folder(folder, "output")
    return folder


def export(options: Options, world: World, stopper: Stopper) -> None:
    """A network as safetensors and ONNX, the latter run by onnxruntime beside torch, and its trunk as a program."""
    from evonas.exporting import write_encoder, write_onnx, write_safetensors

    network, task = load_network(retrained(options)[0], torch.device("cpu"))
    folder = output_folder(options, "export", ("network.safetensors", "network.onnx", "encoder.pt2"))
    write_safetensors(folder / "network.safetensors", network, task)
    difference = write_onnx(folder / "network.onnx", network, task)
    write_encoder(folder / "encoder.pt2", network, (task.config.height, task.config.width))
    print(f"{folder}: network.safetensors, encoder.pt2, network.onnx (answers differ by {difference:.1e} at most)")
