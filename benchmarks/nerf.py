"""Samplers of training rays inside nerfstudio: nerfacto with its own uniform sampler beside EVOS and the others.

    python benchmarks/nerf.py --scene lego=DIR --samplers nerfstudio tiles soft egra expansive --seeds 0 1 2 3 4
    python benchmarks/nerf.py --scene fox=DIR --timing --samplers nerfstudio own_manager tiles
    python benchmarks/nerf.py --scene lego=DIR --timing --full --rays 4096 --device cuda
    python benchmarks/nerf.py --scene lego=DIR --timing --other DIR --samplers nerfstudio tiles [--other_samplers ...]

DIR is a Blender, nerfstudio or LLFF scene. Every run is a process of its own with one thread: the plugin's pipeline
(``nerfstudio``: nerfacto's, with nerfstudio's PixelSampler), the same steps, rays, initial weights of each seed, and
optimizer. ``--other`` measures another version of this project, in the folder DIR, beside this one (two_trees.py). Test
PSNR is the mean over the held-out views of PSNR over the same random pixels of each.
A variant is ``tiles:keep_ratio=0.5:tile_side=10``: options of the strategy or of the pixel sampler.
``foreground``, ``hsm`` and ``mcblock`` are peers inside the host's data manager (nerf_peers.py); the first is
nerfstudio's sampler with 90 % of the rays on pixels that are not white, which explains part of any gain on objects
before a white background. ``own_manager`` is the host with the data manager that it ships with, which nerfacto runs in
another process, so that the time of a step is measured and not that of drawing. ``--disturb`` changes 15 % of the
training views, as real captures have them: blocks (of one colour, 0.35 of the shorter side wide), poses (turned by 1
degree) or exposure (half or one and a half times as bright). Steps to the baseline are read from smoothed curves.
Finished runs are kept in ``--cache`` by the contents of the code and of the scene.
"""

import argparse
import hashlib
import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import nerf_peers
import numpy as np
import torch
from common import Kernels, alternate, mean_and_deviation, ratio, spread, synchronized_clock, write_result
from nerf_peers import PEERS, attach
from nerfstudio.data.pixel_samplers import PixelSampler, PixelSamplerConfig
from scipy.spatial.transform import Rotation
from two_trees import compare, serve
from two_trees import summary as summary_of_two

from evos.config import build_config
from evos.runs import seed_everything
from evos_nerf.compare import measured, smoothed
from evos_nerf.compat import optional_lpips

BASELINE = "nerfstudio"

# nerfacto for two CPU cores. The initial density lies between that of the method's config, 0.01, with which
# nerfstudio's sampler hardly trains on lego, and that of the model's class, 1, with which a scene becomes empty in the
# first 50 steps where that is nearly right (white before white; some captures without near and far planes).
SMALL = {
    "implementation": "torch",
    "average_init_density": 0.1,
    "num_levels": 8,
    "max_res": 512,
    "num_nerf_samples_per_ray": 24,
    "num_proposal_samples_per_ray": (48, 24),
    "proposal_net_args_list": [
        {"hidden_dim": 16, "log2_hashmap_size": 14, "num_levels": 5, "max_res": size, "use_linear": False}
        for size in (64, 128)
    ],
}
TABLE_LOG2 = 15
"""Of the reduced host's hash grid; nerfacto's own is 19."""
# What nerfstudio's documentation recommends for NeRF-synthetic scenes.
SYNTHETIC = {
    "background_color": "white",
    "proposal_initial_sampler": "uniform",
    "near_plane": 2.0,
    "far_plane": 6.0,
    "use_average_appearance_embedding": False,
    "distortion_loss_mult": 0.0,
    "disable_scene_contraction": True,
}


def disturbed(dataset: Any, kind: str) -> Any:
    """The data set with 15 % of its views disturbed, always the same ones and in the same way."""
    generator, read = np.random.default_rng(0), dataset.get_numpy_image
    views = generator.permutation(len(dataset))[: round(0.15 * len(dataset))].tolist()
    draws = {view: (generator.random(2), generator.integers(0, 256, 3)) for view in views}
    if kind == "poses":
        poses = dataset.cameras.camera_to_worlds
        for view, (place, _) in draws.items():
            axis = [np.cos(2 * np.pi * place[0]), np.sin(2 * np.pi * place[0]), 0.0]  # across the viewing direction
            turn = Rotation.from_rotvec(np.radians(1) * np.array(axis)).as_matrix()
            poses[view, :, :3] = poses[view, :, :3] @ torch.as_tensor(turn, dtype=poses.dtype)
        return dataset

    def changed(view: int) -> Any:
        image = read(view).copy()
        if view not in draws:
            return image
        place, colour = draws[view]
        if kind == "exposure":
            gain = 0.5 if place[0] < 0.5 else 1.5
            image[..., :3] = (gain * image[..., :3].astype(np.float32)).clip(0, 255)
            return image
        side = round(0.35 * min(image.shape[:2]))
        y, x = (place * (np.array(image.shape[:2]) - side)).astype(int)
        image[y : y + side, x : x + side, :3], image[y : y + side, x : x + side, 3:] = colour, 255
        return image

    dataset.get_numpy_image = changed
    return dataset


HOST_SAMPLERS = {BASELINE: PixelSampler, **PEERS}
"""Samplers in nerfstudio's own data manager."""
OWN_MANAGER = "own_manager"
"""Stands for the host as it ships: of nerfacto, with a data manager that draws the rays in another process."""


def build_pipeline(
    scene: Path,
    sampler: str,
    rays: int,
    seed: int,
    device: str,
    full: bool,
    disturb: str = "none",
    host_name: str = "nerfacto",
    planes: Sequence[float] | None = None,
    table_log2: int = TABLE_LOG2,
) -> Any:
    """The reduced host (nerfacto), or the ``full`` one, with ``sampler`` and, where given, near and far planes.

    The reduced one has at most 2^``table_log2`` entries at each level of its hash grid.
    """
    from nerfstudio.cameras.camera_optimizers import CameraOptimizerConfig
    from nerfstudio.configs.method_configs import method_configs
    from nerfstudio.data.datamanagers.base_datamanager import VanillaDataManager, VanillaDataManagerConfig
    from nerfstudio.data.dataparsers.blender_dataparser import BlenderDataParserConfig
    from nerfstudio.data.dataparsers.nerfstudio_dataparser import NerfstudioDataParserConfig

    from evos_nerf.llff import LlffDataParserConfig
    from evos_nerf.methods import evos_method
    from evos_nerf.pipeline import choose_implementation

    seed_everything(seed)
    host: Any = method_configs[host_name]
    small = {} if full else {**SMALL, "log2_hashmap_size": table_log2}
    model = replace(host.pipeline.model, **small, camera_optimizer=CameraOptimizerConfig(mode="off"))
    choose_implementation(model, device)
    if (scene / "poses_bounds.npy").exists():
        parser: Any = LlffDataParserConfig(data=scene)
        # Without planes from the scene's depth bounds all mass gathers before the cameras on some captures.
        bounds = parser.setup().get_dataparser_outputs("train").metadata["bounds"]
        model = replace(model, near_plane=0.9 * float(bounds.min()), far_plane=1.1 * float(bounds.max()))
    elif (scene / "transforms_train.json").exists():
        parser, model = BlenderDataParserConfig(data=scene), replace(model, **SYNTHETIC)
    else:
        parser = NerfstudioDataParserConfig(data=scene, downscale_factor=1)
    if planes is not None:
        model = replace(model, near_plane=planes[0], far_plane=planes[1])
    if sampler == OWN_MANAGER:
        config: Any = replace(host.pipeline, datamanager=replace(host.pipeline.datamanager))
    elif sampler in HOST_SAMPLERS:
        manager = host.pipeline.datamanager
        manager = replace(manager) if type(manager) is VanillaDataManagerConfig else VanillaDataManagerConfig()
        config = replace(host.pipeline, datamanager=manager)
        config.datamanager.pixel_sampler = PixelSamplerConfig(_target=HOST_SAMPLERS[sampler])
    else:
        config = evos_method(host, f"evos-{host_name}", "").config.pipeline
        name, *words = sampler.split(":")
        pixel_sampler = replace(config.datamanager.pixel_sampler, selector=name)
        chosen = dict(word.split("=") for word in words)
        own = {option.name: chosen.pop(option.name) for option in fields(pixel_sampler) if option.name in chosen}
        strategy = getattr(pixel_sampler, name)
        strategy = build_config(type(strategy), vars(strategy) | chosen)
        pixel_sampler = replace(pixel_sampler, **{name: strategy}, **{o: json.loads(value) for o, value in own.items()})
        config.datamanager.pixel_sampler = pixel_sampler
    config.model = model
    config.datamanager.dataparser = parser
    config.datamanager.train_num_rays_per_batch = rays
    read = VanillaDataManager.create_train_dataset
    made = read if disturb == "none" else lambda manager: disturbed(read(manager), disturb)
    with mock.patch.object(VanillaDataManager, "create_train_dataset", made):
        return config.setup(device=device, test_mode="val", world_size=1, local_rank=0)


class Training:
    """nerfstudio's training loop without its viewer, files and logs."""

    def __init__(self, scene: Path, sampler: str, seed: int, args: argparse.Namespace) -> None:
        from nerfstudio.engine.callbacks import TrainingCallbackAttributes

        self.device = args.device
        with optional_lpips():
            given = ("host_name", "planes", "table_log2")
            own = {name: getattr(args, name) for name in given if hasattr(args, name)}
            self.pipeline = build_pipeline(scene, sampler, args.rays, seed, args.device, args.full, args.disturb, **own)
            self._same_start(seed)
        if sampler in PEERS:
            attach(self.pipeline.datamanager.train_pixel_sampler, self.pipeline)
        attributes = TrainingCallbackAttributes(None, None, self.pipeline, None)  # type: ignore
        self.callbacks = self.pipeline.get_training_callbacks(attributes)
        if sampler not in (OWN_MANAGER, *HOST_SAMPLERS):
            self.pipeline.datamanager.train_pixel_sampler.plan(args.steps)
        parameters = [group for groups in self.pipeline.get_param_groups().values() for group in groups]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-2, eps=1e-15)  # as in nerfacto's config
        self.done = 0

    def _same_start(self, seed: int) -> None:
        """Give every sampler the same initial weights: on fox they move the final PSNR more than any sampler does."""
        data = self.pipeline.datamanager.train_dataset
        seed_everything(seed)
        twin = self.pipeline.config.model.setup(
            scene_box=data.scene_box, num_train_data=len(data), metadata=data.metadata, device="cpu", grad_scaler=None
        )
        self.pipeline.model.load_state_dict(twin.state_dict())

    def step(self) -> None:
        """One step of training."""
        self._call("BEFORE_TRAIN_ITERATION")
        _, losses, _ = self.pipeline.get_train_loss_dict(self.done)
        self.optimizer.zero_grad()
        sum(losses.values()).backward()
        self.optimizer.step()
        self._call("AFTER_TRAIN_ITERATION")
        self.done += 1

    def _call(self, place: str) -> None:
        from nerfstudio.engine.callbacks import TrainingCallbackLocation

        for callback in self.callbacks:
            callback.run_callback_at_location(self.done, TrainingCallbackLocation[place])

    @torch.no_grad()
    def test_psnr(self, pixels: int) -> float:
        """Mean over the held-out views of the PSNR over ``pixels`` random pixels each, the same in every run."""
        data, model = self.pipeline.datamanager, self.pipeline.model
        generator = np.random.default_rng(0)
        model.eval()
        found = []
        for view in range(len(data.eval_dataset)):
            truth = data.eval_dataset[view]["image"][..., :3]
            place = generator.choice(truth[..., 0].numel(), min(pixels, truth[..., 0].numel()), replace=False)
            rows, columns = np.unravel_index(place, truth.shape[:2])
            points = torch.as_tensor(np.stack([np.full_like(rows, view), rows, columns], axis=1))
            rays = self._eval_rays(points)
            error = model(rays)["rgb"].cpu().clamp(0, 1) - truth[points[:, 1], points[:, 2]]
            found.append(-10 * float(torch.log10(error.square().mean())))
        model.train()
        return statistics.mean(found)

    def _eval_rays(self, points: torch.Tensor) -> Any:
        from nerfstudio.model_components.ray_generators import RayGenerator

        return RayGenerator(self.pipeline.datamanager.eval_dataset.cameras)(points).to(self.device)


def run_one(scene: Path, sampler: str, seed: int, args: argparse.Namespace) -> dict[str, Any]:
    """Train, with the test PSNR along the way."""
    torch.set_num_threads(1)
    training, curve = Training(scene, sampler, seed, args), []
    for _ in range(args.tests):
        for _ in range(args.steps // args.tests):
            training.step()
        curve.append([training.done, round(training.test_psnr(args.pixels), 4)])
    return {"sampler": sampler, "seed": seed, "curve": curve}


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of each sampler, over the seeds: PSNR at the end, its gain over the baseline's run of the same seed with p of a
    paired t-test, and the fraction of the baseline's steps in which it is where that run ends (1 where it never is,
    counted in ``unreached``); all of curves smoothed as by evos_nerf/compare.py."""
    curves: dict[str, dict[int, Any]] = {}
    for run in runs:
        of_sampler = curves.setdefault(run["sampler"], {})
        of_sampler[run["seed"]] = [[step, step, psnr] for step, psnr in run["curve"]]  # steps for seconds
    table = {}
    for sampler, own in curves.items():
        base = {seed: curve for seed, curve in curves[BASELINE].items() if seed in own}
        found = measured(base, own)
        shares = [1.0 if fraction is None else fraction[0] for fraction in found["fractions"]]
        table[sampler] = {
            "psnr": mean_and_deviation([smoothed(own[seed])[-1] for seed in base]),
            "gain_db": mean_and_deviation(found["gains_db"]) | {"p": None if sampler == BASELINE else found["p"]},
            "gains_db": [round(gain, 3) for gain in found["gains_db"]],
            "steps_to_baseline": mean_and_deviation(shares),
            "shares": [round(share, 3) for share in shares],
            "unreached": found["fractions"].count(None),
        }
    return table


def contents(*paths: Path) -> str:
    """A hash of files, and of folders' Python files or, where there are none, of all their files' names and sizes."""
    found = hashlib.sha256()
    for path in paths:
        code = sorted(path.rglob("*.py")) if path.is_dir() else [path]
        for file in code:
            found.update(file.read_bytes())
        for file in [] if code else sorted(path.rglob("*")):
            found.update(f"{file.relative_to(path)} {file.stat().st_size}\n".encode())
    return found.hexdigest()[:12]


def timing(scene: Path, samplers: list[str], args: argparse.Namespace) -> dict[str, Any]:
    """Seconds of a whole step and of drawing its rays alone, all samplers in turn, and operations."""
    trainings = {sampler: Training(scene, sampler, 0, args) for sampler in samplers}
    for training in trainings.values():
        for _ in range(args.warm):
            training.step()
    steps = alternate({name: training.step for name, training in trainings.items()}, repeats=args.repeats)
    result = {}
    for name, training in trainings.items():
        # On a GPU with synchronization, which training doesn't have.
        seconds = spent(training, 48, synchronized_clock)
        result[name] = {
            "step_seconds": (own := spread(steps[name])),
            **{f"step_over_{base}": ratio(steps, name, base) for base in (BASELINE, OWN_MANAGER) if base in steps},
            "sampler_seconds": seconds["sampler"],
            "sampler_share": seconds["sampler"] / own["median"],
            "rays_seconds": seconds["rays"],
            "kernels": kernels(training),
        }
    return result


def serve_steps(scene: Path, samplers: list[str], args: argparse.Namespace) -> None:
    """Take steps as two_trees.py says."""
    trainings = {sampler: Training(scene, sampler, 0, args) for sampler in samplers}
    serve({name: training.step for name, training in trainings.items()}, lambda name: kernels(trainings[name]))


def compare_trees(scene: str, args: argparse.Namespace) -> dict[str, Any]:
    """This tree's samplers against another's."""
    pairs = list(zip(args.samplers, args.other_samplers or args.samplers, strict=True))
    own = ["--scene", scene, "--timing", "--rays", str(args.rays), "--steps", str(args.steps), "--device", args.device]
    own += ["--full"] if args.full else []
    return compare(
        "nerf.py",
        args.other,
        pairs,
        lambda names: [*own, "--samplers", *names],
        repeats=args.repeats,
        warmup=args.warm,
    )


def spent(training: Training, steps: int, reading: Callable[[], float]) -> dict[str, float]:
    """What a ``reading`` grows by a step in drawing pixels and recording their errors, and in making rays of pixels.

    Rays are made while pixels are drawn where that is done for several steps at once; they count as rays all the same.
    """
    data, found = training.pipeline.datamanager, {"sampler": 0.0, "rays": 0.0}
    within: list[float] = []  # of each call that is going on: what those within it took

    def watched(part: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            within.append(0.0)
            start = reading()
            result = method(*args, **kwargs)
            took = reading() - start
            found[part] += took - within.pop()
            if within:
                within[-1] += took
            return result

        return run

    parts = [(data.train_pixel_sampler, "sampler", name) for name in ("sample", "observe", "metrics")]
    parts.append((getattr(data, "train_ray_generator", None), "rays", "forward"))  # none of the host's own manager
    with ExitStack() as patches:
        for owner, part, name in parts:
            if hasattr(owner, name):
                patches.enter_context(mock.patch.object(owner, name, watched(part, getattr(owner, name))))
        for _ in range(steps):
            training.step()
    return {part: total / steps for part, total in found.items()}


def kernels(training: Training, steps: int = 16) -> dict[str, float]:
    """Operations of a step, and of drawing its pixels and making its rays: on a GPU, where these are too small to keep
    it busy, their number is their cost. The mean of as many steps as lie between two rankings."""
    with Kernels() as whole:
        parts = spent(training, steps, lambda: whole.count)
    return {"step": whole.count / steps, **parts}


def main() -> None:
    """Run what is asked for and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scene", required=True, help="NAME=DIR")
    parser.add_argument("--samplers", nargs="+", default=[BASELINE, "tiles", "soft", "egra", "expansive"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--rays", type=int, default=512)
    parser.add_argument("--table_log2", type=int, default=TABLE_LOG2, help="entries a level of the grid; not of --full")
    parser.add_argument("--disturb", choices=["none", "blocks", "poses", "exposure"], default="none")
    parser.add_argument("--tests", type=int, default=20, help="tests along the way")
    parser.add_argument("--pixels", type=int, default=200, help="tested pixels of each held-out view")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--timing", action="store_true", help="measure the time of steps and samplers instead")
    parser.add_argument("--warm", type=int, default=60, help="with --timing: steps before")
    parser.add_argument("--repeats", type=int, default=40, help="with --timing: steps measured")
    parser.add_argument("--other", type=Path, metavar="DIR", help="with --timing: another version of this project")
    parser.add_argument("--other_samplers", nargs="+", help="what the samplers are called there; none: the same")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--full", action="store_true", help="nerfacto as it is, not reduced for two CPU cores")
    parser.add_argument("--cache", type=Path, default=Path("runs/bench-nerf"), help="folder of finished runs")
    parser.add_argument("--name", help="name of the result; default nerf_NAME")
    parser.add_argument("--one", nargs=2, metavar=("SAMPLER", "SEED"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    name, _, folder = args.scene.partition("=")
    settings = {
        key: getattr(args, key)
        for key in ("steps", "rays", "tests", "pixels", "full", "device", "disturb", "table_log2")
    }
    if args.one:
        print(json.dumps(run_one(Path(folder), args.one[0], int(args.one[1]), args)))
        return
    if args.serve:
        return serve_steps(Path(folder), args.samplers, args)
    if args.other:
        numbers = compare_trees(f"{name}={Path(folder).resolve()}", args)
        write_result(args.name or f"nerf_{name}_two_commits", {"rays": args.rays, "full": args.full, **numbers})
        return print(summary_of_two(numbers))
    if args.timing:
        numbers = timing(Path(folder), args.samplers, args)
        how = {key: settings[key] for key in ("rays", "full", "device", "table_log2")}
        write_result(args.name or f"nerf_{name}_time", {**how, "threads": torch.get_num_threads(), **numbers})
        return

    root = Path(__file__).parents[1]
    code = contents(root / "evos", root / "evos_nerf", Path(__file__), Path(nerf_peers.__file__))
    cache = args.cache / f"{name}-{contents(Path(folder))}-{code}"

    def work(job: tuple[str, int]) -> dict[str, Any]:
        sampler, seed = job
        kept = cache / f"{'-'.join(map(str, settings.values()))}-{seed}-{sampler.replace(':', '_')}.json"
        if not kept.exists():
            words = [sys.executable, __file__, *sys.argv[1:], "--one", sampler, str(seed)]
            found = subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(found)
        run = json.loads(kept.read_text())
        print(f"{name} {sampler} seed {seed}: {run['curve'][-1][1]:.2f} dB", flush=True)
        return run

    with ThreadPoolExecutor(args.workers) as pool:
        runs = list(pool.map(work, [(sampler, seed) for seed in args.seeds for sampler in args.samplers]))
    write_result(args.name or f"nerf_{name}", {**settings, "summary": summary(runs), "runs": runs})


if __name__ == "__main__":
    main()
