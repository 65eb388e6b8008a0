"""Mutation check: plausible bugs of one line each, and whether the tests that should see them do.

Each mutation is made on a copy of the tree in a temporary folder, never here, and the tests named beside it run on the
copy, one process at a time. All these tests must pass on the unchanged copy first. Ends with the number caught; exit
status 1 if more than one in thirty survives.

Usage: python tests/mutations.py [WORD...]   only the mutations whose file or description has one of the words
"""

import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
SURVIVORS_ALLOWED = 1 / 30
MOMENTS = itertools.count(1)


class Mutation(NamedTuple):
    """A bug: in ``file``, the only occurrence of ``old`` becomes ``new``."""

    what: str
    file: str
    old: str
    new: str
    tests: str
    """Files or single tests, separated by spaces."""


DRAWS, CROSSOVER, CACHE = (f"tests/evos/selection/test_{name}.py" for name in ("draws", "crossover", "cache"))
EVOS, ERROR, TILES = (f"tests/evos/selection/test_{name}.py" for name in ("evos", "error_sampling", "tiles"))
PROGRESS = "tests/evos/selection/test_progress.py"
NINT, INT, EDGES = (f"tests/evos/selection/test_{name}.py" for name in ("nint", "nonparametric", "edge_priors"))
SOFT, BASE, CONTRACT = (f"tests/evos/selection/test_{name}.py" for name in ("soft_mining", "base", "contract"))
LOSSES, FITNESS, SCHEDULES = (f"tests/evos/test_{name}.py" for name in ("losses", "fitness", "schedules"))
DERIVATIVES, OPTIMIZERS, SEEDS = (f"tests/evos/test_{name}.py" for name in ("derivatives", "optimizers", "seeding"))
LOOP, CHECKPOINT, GENERATORS = (f"tests/evos/runs/test_{name}.py" for name in ("loop", "checkpoint", "seeding"))
SAMPLER = "tests/evos_nerf/test_pixel_sampler.py"
NEUTRAL = "tests/image_regression/test_neutral.py"
SEARCH = (
    f"{NEUTRAL}::test_the_search_finds_a_peak_anywhere_within_its_limit "
    f"{NEUTRAL}::test_rates_are_ranked_by_their_mean_over_inputs_and_the_lower_of_equals_is_taken"
)
RESUME = "tests/image_regression/test_resume.py"
VIDEOS, VOLUMES, SHAPES = (f"tests/evos/test_{name}.py" for name in ("videos", "volumes", "shapes"))
MOVED = f"{RESUME}::test_half_a_fit_and_the_other_half_are_a_whole_fit_however_weights_are_moved"
HALVES = f"{RESUME}::test_half_a_fit_and_the_other_half_are_a_whole_fit"
FIELD_SPACE, FIELD_TRAINING = (f"tests/evonas/test_field_{name}.py" for name in ("space", "training"))
BLOCKS, TRAINING, DISTILLATION = (f"tests/evonas/test_{name}.py" for name in ("blocks", "training", "distillation"))
SUPERNET, NAS_SEARCH, METRICS = (f"tests/evonas/test_{name}.py" for name in ("supernet", "search", "metrics"))
SEGMENTATION, DETECTION, SCENES = (f"tests/evonas/test_{name}.py" for name in ("segmentation", "detection", "scenes"))
META = "tests/generalizable/test_train.py::test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit"

MUTATIONS = [
    # ---- draws
    Mutation(
        "effective sample fraction over all cells instead of the known",
        "evos/selection/draws.py",
        "count = error.shape[1] if known is None else known.sum(1, keepdim=True).clamp(min=1)",
        "count = error.shape[1]",
        DRAWS,
    ),
    Mutation(
        "effective sample fraction clamped at 1e-6",
        "evos/selection/draws.py",
        "squares.clamp(min=torch.finfo(error.dtype).tiny)",
        "squares.clamp(min=1e-6)",
        DRAWS,
    ),
    Mutation(
        "weighted draws by odds times exponential numbers",
        "evos/selection/draws.py",
        "(odds / log_uniform)",
        "(odds * log_uniform)",
        DRAWS,
    ),
    Mutation(
        "weighted draws from the global generator",
        "evos/selection/draws.py",
        "torch.rand(odds.shape, generator=generator, device",
        "torch.rand(odds.shape, device",
        CONTRACT,
    ),
    Mutation(
        "warm-up draws from the global generator",
        "evos/selection/draws.py",
        "torch.rand(len(order), count, generator=generator, device",
        "torch.rand(len(order), count, device",
        TILES,
    ),
    Mutation(
        "draws in float32, which cannot address every cell of a large pool",
        "evos/selection/draws.py",
        "dtype = widest_float(order.device)",
        "dtype = torch.float32",
        DRAWS,
    ),
    Mutation(
        "strata in float32",
        "evos/selection/draws.py",
        "dtype = widest_float(selected.device)",
        "dtype = torch.float32",
        DRAWS,
    ),
    Mutation(
        "mutants drawn from survivors too",
        "evos/selection/draws.py",
        "rest = order[:, survivors:]",
        "rest = order",
        DRAWS,
    ),
    Mutation(
        "stratified draws take the first of each stretch",
        "evos/selection/draws.py",
        "torch.arange(count, device=selected.device) + uniform",
        "torch.arange(count, device=selected.device)",
        DRAWS,
    ),
    # ---- crossover
    Mutation(
        "one parent too many",
        "evos/selection/crossover.py",
        "device=low.device) < n, high_rank < n",
        "device=low.device) <= n, high_rank < n",
        CROSSOVER,
    ),
    Mutation(
        "the parents' fractions swapped",
        "evos/selection/crossover.py",
        "p = mean_low / (mean_low",
        "p = mean_high / (mean_low",
        CROSSOVER,
    ),
    Mutation(
        "the parents' split rounded instead of cut",
        "evos/selection/crossover.py",
        "from_low = (open_places * p).int()",
        "from_low = (open_places * p).round().int()",
        CROSSOVER,
    ),
    Mutation(
        "means of fitness over masked cells",
        "evos/selection/crossover.py",
        "masked_mean(low, counted), masked_mean(high, counted)",
        "masked_mean(low, None), masked_mean(high, None)",
        CROSSOVER,
    ),
    # ---- cache
    Mutation(
        "NaN written into the cache",
        "evos/selection/cache.py",
        "finite = error < torch.inf",
        "finite = torch.ones_like(error, dtype=torch.bool)",
        CACHE,
    ),
    Mutation(
        "one finite channel is enough to be written",
        "evos/selection/cache.py",
        "residual.abs().amax(-1)",
        "residual.abs().amin(-1)",
        CACHE,
    ),
    Mutation(
        "all cells age at a write",
        "evos/selection/cache.py",
        "flat[place] = self.momentum * flat[place]",
        "flat.mul_(self.momentum)",
        CACHE,
    ),
    Mutation(
        "of a tile drawn twice one visit counts",
        "evos/selection/cache.py",
        "flat.index_add_(0, place, visit)",
        "flat[place] += visit",
        CACHE,
    ),
    Mutation(
        "a refused residual makes its cell unseen",
        "evos/selection/cache.py",
        "self.seen[cells] |= taken",
        "self.seen[cells] = taken",
        CACHE,
    ),
    Mutation(
        "residuals cached unclamped",
        "evos/selection/cache.py",
        "return residual.clamp(-LARGEST, LARGEST), self",
        "return residual, self",
        CACHE,
    ),
    Mutation(
        "forgotten cells still count as seen",
        "evos/selection/cache.py",
        "if values is not None:\n                values[rows] = 0",
        "if values is not None and values.is_floating_point():\n                values[rows] = 0",
        CACHE,
    ),
    Mutation(
        "borrowed visits counted as one",
        "evos/selection/cache.py",
        "/ (count + strength)",
        "/ (count + 1)",
        CACHE,
    ),
    Mutation(
        "residuals of masked cells cached",
        "evos/selection/cache.py",
        "return finite & (valid if selection.index is None else valid.gather(1, selection.index))",
        "return finite",
        EVOS,
    ),
    # ---- the method
    Mutation(
        "forget leaves the order",
        "evos/selection/evos.py",
        "        super().forget(rows)\n        self.order[rows] = random_order(",
        "        super().forget(rows)\n        random_order(",
        CONTRACT,
    ),
    Mutation(
        "mutants follow the scheduled ratio instead of the initial one",
        "evos/selection/evos.py",
        "int(ratio * config.keep_ratio * self.usable_cells + 1e-6)",
        "int(ratio * keep + 1e-6)",
        EVOS,
    ),
    Mutation(
        "bred from the errors of the key step before",
        "evos/selection/evos.py",
        "self.cache.write(selection, feedback.residual)\n            self.breed(selection.step, selection.rows)",
        "self.breed(selection.step, selection.rows), self.cache.write(selection, feedback.residual)",
        EVOS,
    ),
    Mutation(
        "masked cells may be parents by their Laplacian",
        "evos/selection/evos.py",
        "low.masked_fill(masked, -1.0), high.masked_fill(masked, -1.0)",
        "low.masked_fill(masked, -1.0), high",
        EVOS,
    ),
    Mutation(
        "evos: crossover counts masked cells in its means",
        "evos/selection/evos.py",
        "survivors, self.valid_in(rows))",
        "survivors, None)",
        EVOS,
    ),
    Mutation(
        "Laplacian over all axes of a stack of views",
        "evos/selection/evos.py",
        "self.pool.shape, self.pool.grid_axes, config",
        "self.pool.shape, len(self.pool.shape), config",
        EVOS,
    ),
    # ---- sampling by error
    Mutation(
        "stratified draws whose odds are not capped",
        "evos/selection/draws.py",
        "return odds.minimum(odds.sum(1, keepdim=True) / count).cumsum(",
        "return odds.cumsum(",
        "tests/evos/selection/test_draws.py",
    ),
    Mutation(
        "whole views are never trimmed",
        "evos/selection/tiles.py",
        "found = views if found is None else found | views",
        "pass",
        TILES,
    ),
    Mutation(
        "odds by the squared error",
        "evos/selection/cache.py",
        "error = mean_square(residual.detach().float()).sqrt()",
        "error = mean_square(residual.detach().float())",
        ERROR,
    ),
    Mutation(
        "a cell without error counts as unseen",
        "evos/selection/cache.py",
        "error.clamp(TINY, LARGEST)",
        "error.clamp(0.0, LARGEST)",
        CACHE,
    ),
    Mutation(
        "mean error over unseen cells too",
        "evos/selection/error_sampling.py",
        "error.sum(1, keepdim=True) / seen.sum(1, keepdim=True)",
        "error.mean(1, keepdim=True)",
        ERROR,
    ),
    Mutation(
        "masked cells keep their odds",
        "evos/selection/error_sampling.py",
        "odds if self.valid is None else odds.masked_fill(~self.valid[rows], 0.0), count",
        "odds, count",
        CONTRACT,
    ),
    # ---- tiles
    Mutation(
        "rows of a batch not ranked when drawn",
        "evos/selection/tiles.py",
        "and (is_key or rows is not None)",
        "and is_key",
        TILES,
    ),
    Mutation(
        "concentration over masked tiles",
        "evos/selection/tiles.py",
        "effective_sample_fraction(error, weight)",
        "effective_sample_fraction(error)",
        TILES,
    ),
    Mutation(
        "concentration of absolute errors",
        "evos/selection/tiles.py",
        "effective_sample_fraction(error, weight)",
        "effective_sample_fraction(error.sqrt(), weight)",
        TILES,
    ),
    Mutation(
        "the split of draws floored",
        "evos/selection/tiles.py",
        "(count * (1 - mutants)).round().clamp",
        "(count * (1 - mutants)).floor().clamp",
        TILES,
    ),
    Mutation(
        "the number of fit tiles floored",
        "evos/selection/tiles.py",
        "self.usable[rows]).round().long()",
        "self.usable[rows]).long()",
        TILES,
    ),
    Mutation(
        "steps alike run past the end of the warm-up",
        "evos/selection/tiles.py",
        "if n == warmup + 1 or (n > warmup and self.ranks_at(n))",
        "if n > warmup + 1 and self.ranks_at(n)",
        TILES,
    ),
    Mutation(
        "pressure by the square of the concentration",
        "evos/selection/tiles.py",
        ".pow(4).clamp(max=1)",
        ".pow(2).clamp(max=1)",
        TILES,
    ),
    Mutation(
        "few draws may all be survivors", "evos/selection/tiles.py", "most = count - 1 if", "most = count if", TILES
    ),
    Mutation(
        "tiles: crossover counts masked tiles in its means",
        "evos/selection/tiles.py",
        "(low, high, fittest, counted)",
        "(low, high, fittest, None)",
        TILES,
    ),
    Mutation(
        "a forgotten row keeps its pressure",
        "evos/selection/tiles.py",
        "self.evenness[rows] = 1.0",
        "pass",
        TILES,
    ),
    Mutation(
        "a forgotten row keeps its learning curve",
        "evos/selection/tiles.py",
        "self.curve[rows] = 0.0",
        "pass",
        TILES,
    ),
    Mutation(
        "the learning curve is of what is drawn",
        "evos/selection/tiles.py",
        "place.gather(1, index) < fittest, fittest",
        "place.gather(1, index) < 0 * fittest, fittest",
        TILES,
    ),
    Mutation(
        "the learning curve is of outliers, too",
        "evos/selection/tiles.py",
        "self.outlying[rows] = outliers",
        "pass",
        TILES,
    ),
    Mutation(
        "less pressure only where the error rises",
        "evos/selection/tiles.py",
        "evenness.maximum(1 - learning.clamp(max=1))",
        "evenness.maximum((learning == 0).float())",
        TILES,
    ),
    Mutation(
        "old points of a learning curve weigh as much as new ones",
        "evos/selection/progress.py",
        "(2 * (curve[:, :1] - x)).exp() * curve[:, 1:]",
        "curve[:, 1:]",
        PROGRESS,
    ),
    # ---- other strategies
    Mutation(
        "NINT scores by the sum of the update's channels",
        "evos/selection/nint.py",
        "feedback.update.float().square().sum(-1)",
        "feedback.update.float().sum(-1).abs()",
        NINT,
    ),
    Mutation(
        "NINT ranks an infinite update first",
        "evos/selection/nint.py",
        ".nan_to_num(0.0, 0.0)",
        ".nan_to_num(0.0)",
        NINT,
    ),
    Mutation(
        "INT looks a step early", "evos/selection/nonparametric.py", "(step - 1) % interval", "step % interval", INT
    ),
    Mutation(
        "INT by the signed error",
        "evos/selection/nonparametric.py",
        "evaluate(rows).abs().sum",
        "evaluate(rows).sum",
        INT,
    ),
    Mutation(
        "EGRA never shifts by the largest radius",
        "evos/selection/edge_priors.py",
        "config.radius_high + 1",
        "config.radius_high",
        EDGES,
    ),
    Mutation(
        "expansive: anchors drawn again among the others",
        "evos/selection/edge_priors.py",
        "weighted_draw(odds.scatter(1, anchors, -1e30),",
        "weighted_draw(odds,",
        CONTRACT,
    ),
    Mutation(
        "soft mining: correction without its warm-up",
        "evos/selection/soft_mining.py",
        "selection.step / (self.config.correction_warmup * self.total_steps)",
        "selection.step / self.total_steps",
        SOFT,
    ),
    Mutation(
        "soft mining: points of unknown error walk",
        "evos/selection/soft_mining.py",
        "torch.where(self.observed[rows, None, None], moved, points)",
        "moved",
        SOFT,
    ),
    Mutation(
        "soft mining: one-sided scale of the central difference",
        "evos/selection/soft_mining.py",
        "* self.last_cell / 4",
        "* self.last_cell / 2",
        SOFT,
    ),
    Mutation(
        "soft mining squares before it widens",
        "evos/selection/soft_mining.py",
        "mean_square(feedback.residual.float())",
        "mean_square(feedback.residual)",
        SOFT,
    ),
    # ---- what all selectors share
    Mutation(
        "selectors ignore the seed", "evos/selection/base.py", "mixed_seed(seed, rank)", "mixed_seed(0, rank)", CONTRACT
    ),
    Mutation(
        "keep count cut below its decimal fraction",
        "evos/selection/base.py",
        "int(ratio * self.usable_cells + 1e-6)",
        "int(ratio * self.usable_cells)",
        BASE,
    ),
    Mutation(
        "the selector's generator is not restored",
        "evos/selection/base.py",
        "self.generator.set_state(saved)",
        "pass",
        CONTRACT,
    ),
    Mutation(
        "a loaded state is shared, not copied",
        "evos/selection/base.py",
        "saved.to(self.device, copy=True)",
        "saved.to(self.device)",
        CONTRACT,
    ),
    # ---- losses and fitness
    Mutation(
        "a cell selected twice counts once",
        "evos/losses.py",
        'scatter_reduce(1, selection.index, live, "mean", include_self=False)',
        "scatter(1, selection.index, live)",
        LOSSES,
    ),
    Mutation(
        "the cached residual stays in the mean", "evos/losses.py", "include_self=False", "include_self=True", LOSSES
    ),
    Mutation(
        "masked cells in the mean of cross-frequency supervision",
        "evos/losses.py",
        "return error.mean() if valid is None else (error * valid).sum() / valid.sum()",
        "return error.mean()",
        LOSSES,
    ),
    Mutation(
        "cross-frequency supervision over all axes of a stack",
        "evos/losses.py",
        "laplacian(live.unflatten(-1, pool.shape), pool.grid_axes)",
        "laplacian(live.unflatten(-1, pool.shape), len(pool.shape))",
        LOSSES,
    ),
    Mutation(
        "the derivative loss averages axes and channels",
        "evos/losses.py",
        ".square().sum((-2, -1))",
        ".square().mean((-2, -1))",
        LOSSES,
    ),
    Mutation(
        "blue and red swapped in the luma", "evos/fitness.py", "red, green, blue =", "blue, green, red =", FITNESS
    ),
    Mutation(
        "Laplacian along the first axes",
        "evos/fitness.py",
        "padded.narrow(-axis, 0, size)",
        "padded.narrow(-axis, 1, size)",
        FITNESS,
    ),
    # ---- schedules
    Mutation(
        "keep-ratio schedule unclamped",
        "evos/schedules.py",
        "((min(step, total) - 1) / total, start)",
        "((step - 1) / total, start)",
        SCHEDULES,
    ),
    Mutation(
        "key steps where step % interval == 0",
        "evos/schedules.py",
        "interval == 1 or step % interval == 1",
        "interval == 1 or step % interval == 0",
        SCHEDULES,
    ),
    Mutation(
        "mutation-ratio schedule unclamped",
        "evos/schedules.py",
        "(min(step, total) / total, start, end)\n\n\ndef key_interval",
        "(step / total, start, end)\n\n\ndef key_interval",
        SCHEDULES,
    ),
    Mutation("key intervals rounded", "evos/schedules.py", "max(1, int(linear(", "max(1, round(linear(", SCHEDULES),
    Mutation(
        "the learning rate ends before its end", "evos/schedules.py", "/ max(1, total - first)", "/ total", SCHEDULES
    ),
    # ---- derivatives
    Mutation(
        "the gradient through an activation's derivative left out",
        "evos/derivatives.py",
        "through_derivative.addcmul_(gradient, tangent)",
        "pass",
        DERIVATIVES,
    ),
    Mutation(
        "derivatives by x before y",
        "evos/derivatives.py",
        "[derivative(axis) for axis in axes]",
        "[derivative(axis) for axis in reversed(axes)]",
        DERIVATIVES,
    ),
    Mutation(
        "the Laplacian's first-order part left out",
        "evos/derivatives.py",
        "first * derivatives[-1] + from_first_order",
        "first * derivatives[-1]",
        DERIVATIVES,
    ),
    Mutation(
        "zeros instead of repeated edges",
        "evos/derivatives.py",
        "torch.cat([signal.narrow(axis, 0, 1), signal",
        "torch.cat([0 * signal.narrow(axis, 0, 1), signal",
        DERIVATIVES,
    ),
    # ---- optimizers and seeds
    Mutation(
        "a gradient that is not finite enters the running norm",
        "evos/optimizers.py",
        "torch.where(norm.isfinite(), usual.lerp(norm.minimum(limit), 1 - CLIP_MEMORY), self.mean)",
        "usual.lerp(norm.minimum(limit), 1 - CLIP_MEMORY)",
        OPTIMIZERS,
    ),
    Mutation(
        "the running norm is that of unclipped gradients",
        "evos/optimizers.py",
        "usual.lerp(norm.minimum(limit),",
        "usual.lerp(norm,",
        OPTIMIZERS,
    ),
    Mutation(
        "the weight average biased to its start",
        "evos/optimizers.py",
        "(1 - decay) / (1 - decay**step)",
        "1 - decay",
        OPTIMIZERS,
    ),
    Mutation(
        "seed + rank", "evos/seeding.py", "SeedSequence(seed, spawn_key=(rank,))", "SeedSequence(seed + rank)", SEEDS
    ),
    Mutation(
        "NumPy's generator is not restored",
        "evos/runs/seeding.py",
        "np.random.set_state((algorithm,",
        "tuple((algorithm,",
        GENERATORS,
    ),
    # ---- checkpoints
    Mutation(
        "dict subclasses accepted in checkpoints",
        "evos/runs/checkpoint.py",
        "if type(value) in (dict, OrderedDict):",
        "if isinstance(value, dict):",
        CHECKPOINT,
    ),
    Mutation(
        "subclasses of numbers accepted in checkpoints",
        "evos/runs/checkpoint.py",
        "elif type(value) not in _LEAVES:",
        "elif not isinstance(value, _LEAVES):",
        CHECKPOINT,
    ),
    Mutation("pickles run code", "evos/runs/checkpoint.py", "weights_only=True", "weights_only=False", CHECKPOINT),
    Mutation(
        "flipped bits not noticed",
        "evos/runs/checkpoint.py",
        "(part := archive.testzip())",
        "(part := None)",
        CHECKPOINT,
    ),
    Mutation(
        "image_regression: the clip's norm is not restored",
        "image_regression/trainer.py",
        'self.clip.mean = state["gradient_norm"].to(self.device, copy=True)',
        "pass",
        MOVED,
    ),
    Mutation(
        "threeaxes: cells have neighbours along two axes only",
        "image_regression/sources.py",
        "axes=len(shape)",
        "axes=min(2, len(shape))",
        "tests/image_regression/test_three_axes.py::test_cells_have_neighbours_along_all_three_axes",
    ),
    Mutation("threeaxes: an open mesh passes", "evos/shapes.py", "if not mesh.is_watertight:", "if False:", SHAPES),
    Mutation(
        "threeaxes: a mesh that is inside out stays so",
        "evos/shapes.py",
        "if mesh.is_watertight and not mesh.is_volume:",
        "if False:",
        SHAPES,
    ),
    Mutation(
        "threeaxes: a film without its end passes", "evos/videos.py", "if len(frames) < declared:", "if False:", VIDEOS
    ),
    Mutation(
        "threeaxes: frames shown longer are read once",
        "evos/videos.py",
        "for _ in range(number))",
        "for _ in range(min(number, 1)))",
        VIDEOS,
    ),
    Mutation(
        "threeaxes: whole numbers are cut, not rounded",
        "evos/volumes.py",
        "array.round() if dtype.kind",
        "array if dtype.kind",
        VOLUMES,
    ),
    Mutation(
        "threeaxes: a reduced volume moves in the world",
        "evos/volumes.py",
        "[(each - 1) / 2 for each in scale]",
        "[0.0 for each in scale]",
        VOLUMES,
    ),
    Mutation(
        "threeaxes: all axes have as many vertices",
        "evos/fields/hashgrid.py",
        "ratios = [side / max(sides) for side in sides]",
        "ratios = [1 for side in sides]",
        "tests/evos/fields/test_hashgrid.py::test_an_axis_has_vertices_in_proportion_to_its_side",
    ),
    Mutation(
        "image_regression: visits are not restored",
        "image_regression/trainer.py",
        'self.visits = state["visits"].to(self.device, copy=True)',
        "pass",
        HALVES,
    ),
    Mutation(
        "image_regression: the selector ignores --seed",
        "image_regression/trainer.py",
        "seed=run.seed,\n            target",
        "seed=0,\n            target",
        f"{RESUME}::test_another_seed_selects_other_points",
    ),
    Mutation(
        "generalizable: the clip's norm is not restored",
        "generalizable/trainer.py",
        'self.clip.mean = state["gradient_norm"].to(self.device, copy=True)',
        "pass",
        META,
    ),
    Mutation(
        "generalizable: the selector ignores run.seed",
        "generalizable/trainer.py",
        "seed=options.run.seed,\n            rank",
        "seed=0,\n            rank",
        "tests/generalizable/test_train.py::test_another_seed_selects_other_points",
    ),
    Mutation(
        "patterns of other weights are decoded",
        "generalizable/patterns.py",
        'if metadata.get("weights") != codec.fingerprint:',
        "if not metadata:",
        "tests/generalizable/test_encode.py::test_patterns_of_another_run_are_refused",
    ),
    Mutation(
        "an evaluation takes other options than the run's",
        "generalizable/options.py",
        "if name not in (*OF_EVALUATION, *PARTS) and new[name] != old[name]:",
        "if name not in new:",
        "tests/generalizable/test_evaluation.py::test_an_option_that_is_not_the_runs_is_refused",
    ),
    Mutation(
        "a stream begins again",
        "generalizable/shards.py",
        "first, skip = self._positions.get(self.part, (0, 0))",
        "first, skip = 0, 0",
        "tests/generalizable/test_data.py::test_a_stream_goes_on_where_it_was",
    ),
    Mutation(
        "the last square of a picture is left out",
        "generalizable/forms.py",
        "return -(-max(shape) // size)",
        "return max(1, max(shape) // size)",
        "tests/generalizable/test_encode.py::test_squares_cover_a_picture_and_join_to_it",
    ),
    Mutation(
        "recordings that are cut are read",
        "evos/sounds.py",
        'if _is_cut_wav(log) or (kind == "OGG" and _is_cut_ogg(data.read())):',
        "if False:",
        "tests/generalizable/test_data.py::test_a_recording_that_is_cut_is_refused",
    ),
    Mutation(
        "hidden folders are walked",
        "evos/folders.py",
        'return name.startswith(".") or name in LEFT_BY_SYSTEMS',
        "return name in LEFT_BY_SYSTEMS",
        "tests/evos/test_folders.py",
    ),
    Mutation(
        "a linked folder within is walked twice",
        "evos/folders.py",
        "if target.is_relative_to(top) or top.is_relative_to(target) or target in seen:",
        "if top.is_relative_to(target) or target in seen:",
        "tests/evos/test_folders.py",
    ),
    # ---- the loop
    Mutation(
        "losses not yet logged are lost on resume",
        "evos/runs/loop.py",
        'self._loss_total, self._loss_count = state["pending_loss"]',
        "pass",
        LOOP,
    ),
    Mutation("the global generators are not restored", "evos/runs/loop.py", 'set_rng_state(own["rng"])', "pass", LOOP),
    Mutation(
        "weights that are not finite are saved",
        "evos/runs/loop.py",
        "elif not all_finite(",
        "elif all_finite(()) is None and (",
        LOOP,
    ),
    Mutation(
        "a bad loss is named a step late",
        "evos/runs/loop.py",
        "self.step - len(losses) + 1",
        "self.step - len(losses) + 2",
        LOOP,
    ),
    Mutation("a stop saves nothing", "evos/runs/loop.py", "save = last or stop or", "save = last or", LOOP),
    Mutation(
        "the last evaluation twice in the curve of a run stopped in it",
        "evos/runs/loop.py",
        'if self.curve and self.curve[-1]["step"] == self.step:',
        "if False:",
        LOOP,
    ),
    Mutation(
        "processes that resume in another number draw alike",
        "evos/runs/loop.py",
        "seed_everything(mixed_seed(mixed_seed(self.seed, self.step), self.world.rank))",
        "seed_everything(self.seed)",
        LOOP,
    ),
    # ---- rays drawn ahead, and the benchmark's search
    Mutation(
        "all survivors go to the first of the steps drawn ahead",
        "evos_nerf/pixel_sampler.py",
        '"1 (k n) -> n k"',
        '"1 (n k) -> n k"',
        SAMPLER,
    ),
    Mutation(
        "rays drawn ahead past a ranking",
        "evos_nerf/pixel_sampler.py",
        "min(self.selector.steps_alike(step), STEPS_AHEAD, fitting, left)",
        "min(STEPS_AHEAD, fitting, left)",
        SAMPLER,
    ),
    Mutation(
        "the search takes the largest rate",
        "benchmarks/neutral_search.py",
        "max(sorted(self.psnrs), key=lambda exponent: mean(self.psnrs[exponent]), default=0)",
        "max(self.psnrs, default=0)",
        SEARCH,
    ),
    # ---- the search of fields
    Mutation(
        "the limit shrinks fields as much as it can",
        "evonas/field_space.py",
        "genes = max(fewer or smaller",
        "genes = min(fewer or smaller",
        FIELD_SPACE,
    ),
    Mutation(
        "tables larger than their levels need count as other fields",
        "evonas/field_space.py",
        'own["table_log2"] = min([own["table_log2"], *enough])',
        'own["table_log2"] = own["table_log2"]',
        FIELD_SPACE,
    ),
    Mutation(
        "halving goes by the error alone",
        "evonas/field_training.py",
        "kept = non_dominated(np.array([costs[i] for i in left], float))",
        "kept = non_dominated(np.array([costs[i][:1] for i in left], float))",
        FIELD_TRAINING,
    ),
    Mutation(
        "those kept are clipped against the norms of others",
        "evonas/field_training.py",
        "self.clip.mean = self.clip.mean[list(members)] if self.clip.mean.ndim else self.clip.mean",
        "self.clip.mean = self.clip.mean[: len(members)] if self.clip.mean.ndim else self.clip.mean",
        FIELD_TRAINING,
    ),
    Mutation(
        "stacked fields all have the gains of the first",
        "evos/fields/stacked.py",
        "gain = self.gains[:, index, None]",
        "gain = self.gains[:1, index, None]",
        "tests/evos/fields/test_stacked.py",
    ),
    Mutation(
        "stacked fields all have the frequencies of the first",
        "evos/fields/stacked.py",
        "(buffer, None) if shared else (torch.stack(others), 0)",
        "(buffer, None)",
        "tests/evos/fields/test_stacked.py",
    ),
    # ---- grids
    Mutation(
        "the table's gradient forgets the weights",
        "evos/fields/hashgrid.py",
        "index_add_(0, row, weight * column)",
        "index_add_(0, row, column)",
        "tests/evos/fields/test_hashgrid.py::test_gradients_equal_those_of_the_plain_formula",
    ),
    Mutation(
        "a compact grid is one size too fine",
        "evos/recipes.py",
        "finest = resolutions[fitting - 1]",
        "finest = resolutions[min(fitting, len(resolutions) - 1)]",
        "tests/image_regression/test_recipes.py::test_compact_takes_the_finest_grid_within_the_budget",
    ),
    Mutation(
        "a fitted field forgets the constant that derivatives leave open",
        "evos/fitted.py",
        "self.transform.inverse(self.field(coords) + self.shift)",
        "self.transform.inverse(self.field(coords))",
        "tests/image_regression/test_render.py::test_a_fitted_field_has_the_values_that_the_run_evaluates",
    ),
    # ---- architecture search
    Mutation(
        "the state is written with what it is read with",
        "evonas/blocks.py",
        "state = write.mT @ values / places",
        "state = read.mT @ values / places",
        BLOCKS,
    ),
    Mutation(
        "heads of attention are scaled twice",
        "evonas/blocks.py",
        "(query @ key.mT / math.sqrt(query.shape[-1])).softmax(-1)",
        "(query @ key.mT / query.shape[-1]).softmax(-1)",
        f"{BLOCKS} {SUPERNET}",
    ),
    Mutation(
        "the stem's second convolution is not counted",
        "evonas/supernet.py",
        "total += height * width * 9 * first * first",
        "total += 0 * first",
        SUPERNET,
    ),
    Mutation(
        "phases draw the same networks",
        "evonas/training.py",
        "np.random.default_rng([mixed_seed(seed, 1), number, step])",
        "np.random.default_rng([mixed_seed(seed, 1), step])",
        TRAINING,
    ),
    Mutation(
        "losses are summed over the networks of a step",
        "evonas/training.py",
        "loss = loss / len(genomes)",
        "loss = loss / 1",
        f"{TRAINING} {DISTILLATION}",
    ),
    Mutation(
        "the optimizer forgets the projector",
        "evonas/training.py",
        "torch.optim.AdamW(self.trained, weight_decay",
        "torch.optim.AdamW(network.parameters(), weight_decay",
        DISTILLATION,
    ),
    Mutation(
        "the running average stands still",
        "evonas/distillation.py",
        "average.lerp_(value, 1 - decay)",
        "average.lerp_(value, 0)",
        DISTILLATION,
    ),
    Mutation(
        "the highest frequency has no weight",
        "evonas/distillation.py",
        "torch.sqrt((rows[:, None].square() + columns.square()) / 2)",
        "1 - torch.sqrt((rows[:, None].square() + columns.square()) / 2)",
        DISTILLATION,
    ),
    Mutation(
        "pixels of void count in the loss",
        "evonas/tasks/segmentation.py",
        "(truth != VOID).sum((1, 2)).clamp(min=1)",
        "truth[0].numel()",
        SEGMENTATION,
    ),
    Mutation(
        "classes that occur nowhere count in mIoU",
        "evonas/tasks/segmentation.py",
        "(hits / union)[union > 0].mean()",
        "(hits / union.clamp(min=1)).mean()",
        SEGMENTATION,
    ),
    Mutation(
        "boxes are not mirrored",
        "evonas/tasks/detection.py",
        "torch.stack([width - right, top, width - left, bottom, label, score], -1)",
        "torch.stack([left, top, right, bottom, label, score], -1)",
        DETECTION,
    ),
    Mutation(
        "depth metrics of invalid pixels",
        "evonas/tasks/depth.py",
        "weight = valid.double() / valid.sum((1, 2), keepdim=True).clamp(min=1)",
        "weight = torch.ones_like(truth).double() / truth[0].numel()",
        METRICS,
    ),
    Mutation(
        "scale and shift by least squares",
        "evonas/scenes.py",
        "weight = 1 / (depth * np.sqrt(np.maximum(error, 1e-3)))",
        "weight = 1 / depth",
        SCENES,
    ),
    Mutation(
        "points behind a camera are seen",
        "evonas/scenes.py",
        "(depth > 0) & (places >= 0).all(1) & (places < (size[1], size[0])).all(1)",
        "(places >= 0).all(1) & (places < (size[1], size[0])).all(1)",
        SCENES,
    ),
    Mutation(
        "views of one name share a depth map",
        "evonas/scenes.py",
        "return stems if len(set(stems)) == len(stems) else",
        "return stems if stems else",
        SCENES,
    ),
    Mutation(
        "a network's outputs are read in the range of the data",
        "evonas/tasks/base.py",
        "meter.update(self.result(reader.answer(network(pictures))), truth)",
        "meter.update(self.result(self.answer(network(pictures))), truth)",
        "tests/evonas/test_stages.py",
    ),
]


def copied(folder: Path) -> None:
    """Copy what git tracks, and what it does not ignore, into ``folder``."""
    listed = subprocess.check_output(["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, text=True)
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)


def failing_test(folder: Path, tests: list[str]) -> str | None:
    """The first of ``tests`` that fails in the copy; None if all pass.

    In a fork of this process, which has imported what takes long; the packages under test are imported by the fork.
    """
    log = folder / "mutation.log"
    child = os.fork()
    if child == 0:
        os.chdir(folder)
        for number in (1, 2):
            os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        import pytest

        sys.path[:] = [str(folder), *(path for path in sys.path if path != str(ROOT))]
        code = pytest.main(["-x", "-q", "-m", "not slow", "-p", "no:cacheprovider", "--tb=line", *tests])
        sys.stdout.flush()
        os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    text = log.read_text(errors="replace")
    if code not in (0, 1):
        raise SystemExit(f"the tests {tests} did not run (exit status {code}):\n{text[-3000:]}")
    found = re.search(r"^(?:FAILED|ERROR) \S*?::(.+?)(?: - .*)?$", text, re.MULTILINE)
    return None if code == 0 else found[1] if found else "a test that is not named"


def write(file: Path, text: str) -> None:
    """Write a source file with a time of its own: bytecode of the same length and second would be taken for its."""
    file.write_text(text)
    os.utime(file, (moment := next(MOMENTS), moment))


def survives(mutation: Mutation, folder: Path) -> bool:
    """Make the mutation in the copy, run its tests, and undo it; prints a line."""
    file = folder / mutation.file
    text, began = file.read_text(), time.monotonic()
    write(file, text.replace(mutation.old, mutation.new))
    caught = failing_test(folder, mutation.tests.split())
    write(file, text)
    by = f"survived {mutation.tests}" if caught is None else f"caught by {caught}"
    print(f"{mutation.file}: {mutation.what}\n    {by}, {time.monotonic() - began:.0f} s", flush=True)
    return caught is None


def main(words: list[str]) -> int:
    """Run the check; see the module's docstring."""
    chosen = [one for one in MUTATIONS if not words or any(word in f"{one.file} {one.what}" for word in words)]
    for one in chosen:
        if (times := (ROOT / one.file).read_text().count(one.old)) != 1:
            raise SystemExit(f"{one.file} has {times} times, not once: {one.old}")
    os.environ["OMP_NUM_THREADS"] = "1"
    import kornia.filters
    import scipy.stats
    import torch

    torch.set_num_threads(1)
    del kornia, scipy
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        folder = Path(name)
        copied(folder)
        os.environ["PYTHONPATH"] = name
        tests = sorted({test for one in chosen for test in one.tests.split()})
        if red := failing_test(folder, tests):
            raise SystemExit(f"red without any mutation: {red}")
        print(f"{len(chosen)} mutations; their tests pass without them", flush=True)
        survived = sum([survives(one, folder) for one in chosen])
    print(f"{len(chosen) - survived} of {len(chosen)} caught")
    return int(survived > SURVIVORS_ALLOWED * len(chosen))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
