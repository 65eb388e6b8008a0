"""New signals: patterns drawn from the distribution of those that a folder was encoded to.

    evos encode run=runs/many input=FOLDER out=patterns.safetensors
    python generalizable/generate.py run=runs/many patterns=patterns.safetensors count=16 out=drawn.safetensors
    evos render run=runs/many patterns=drawn.safetensors out=drawn

The distribution is a mixture of Gaussians over the patterns' whitened principal components; how many Gaussians, and
whether each has correlations of its own, is what makes held-out patterns likeliest. Source of the task: Dupont et al.,
"From data to functa" (ICML 2022), section 4, where the generator is a flow or a diffusion model.
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV

from evos.command_line import parse_options
from evos.config import check_range
from evos.errors import InputError, exit_on_input_error
from evos.runs.outputs import check_new_file
from generalizable.codec import Codec
from generalizable.patterns import Encoded, read_patterns, write_patterns

FOLDS = 3
GAUSSIANS = (1, 2, 4, 8)
"""Numbers of Gaussians that are tried, as far as each has two patterns of a fold."""
FEWEST = 8
"""Fewest patterns that a distribution is fitted to."""


@dataclass(frozen=True)
class GenerateConfig:
    """Options of the generator."""

    run: str = ""
    """Folder of the trained run."""

    patterns: str = ""
    """File of patterns that the run made."""

    out: str = ""
    """File of the patterns drawn, to be decoded by evos render."""

    count: int = 16
    """How many are drawn, at least 1."""

    components: int = 64
    """Principal components of the patterns, at least 1; fewer where there are fewer patterns."""

    seed: int = 0
    """Seed of the fit and of the draws, in [0, 2^32)."""

    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda or cuda:n."""

    overwrite: bool = False
    """Replace the file."""

    def __post_init__(self) -> None:
        check_range("count", self.count, 1)
        check_range("components", self.components, 1)
        check_range("seed", self.seed, 0, 2**32 - 1)
        for name in ("run", "patterns", "out"):
            if not getattr(self, name):
                raise InputError(name, "nothing", f"{name}={'FOLDER' if name == 'run' else 'FILE'}")


class Distribution:
    """A mixture of Gaussians over the principal components of N vectors of F numbers.

    Attributes:
        explained: the fraction of the vectors' variance that the components have.
        gaussians: how many, and of which covariance ("diag" or "full").
        score: mean log-likelihood of held-out vectors, per component, above that of one isotropic Gaussian.
    """

    def __init__(self, vectors: Float[np.ndarray, "N F"], components: int, seed: int) -> None:
        """Fit; more than half as many components as a fold has vectors are not used."""
        in_fold = len(vectors) * (FOLDS - 1) // FOLDS
        components = max(1, min(components, vectors.shape[1], in_fold // 2))
        self.axes = PCA(components, whiten=True, random_state=seed)
        white = self.axes.fit_transform(vectors)
        self.explained = float(self.axes.explained_variance_ratio_.sum())
        choices = {
            "n_components": [count for count in GAUSSIANS if 2 * count <= in_fold],
            "covariance_type": ["diag", "full"],
        }
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is a setting like others
            search = GridSearchCV(GaussianMixture(reg_covar=1e-2, random_state=seed), choices, cv=FOLDS)
            self.mixture: GaussianMixture = search.fit(white).best_estimator_
        self.gaussians = f"{self.mixture.n_components} ({self.mixture.covariance_type})"
        isotropic = -0.5 * (math.log(2 * math.pi) + 1)  # of whitened numbers, each
        self.score = search.best_score_ / components - isotropic

    def draw(self, count: int) -> Float[np.ndarray, "count F"]:
        """Vectors of their own, in random order of the Gaussians that they are from."""
        white = np.random.default_rng(self.mixture.random_state).permutation(self.mixture.sample(count)[0])
        return self.axes.inverse_transform(white)


def as_parts(vector: Float[np.ndarray, "F"], like: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The parts of one instance, of the shapes of ``like``."""
    sizes = [part[0].numel() for part in like.values()]
    pieces = torch.as_tensor(vector, dtype=torch.float32).split(sizes)
    return {name: piece.view(1, *part.shape[1:]) for (name, part), piece in zip(like.items(), pieces, strict=True)}


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    config = parse_options(GenerateConfig, argv, "python generalizable/generate.py", __doc__ or "")
    check_new_file(Path(config.out), config.overwrite)
    codec = Codec.load(config.run, config.device)
    signals = read_patterns(Path(config.patterns), codec)
    vectors = np.concatenate([each.vectors for each in signals.values()])
    if len(vectors) < FEWEST:
        raise InputError("patterns", f"{config.patterns} of {len(vectors)} instances", f"at least {FEWEST}")
    found = Distribution(vectors, config.components, config.seed)
    like = next(iter(signals.values())).parts
    drawn = {
        f"drawn_{number:03}": Encoded(as_parts(vector, like), codec.task.instance_form)
        for number, vector in enumerate(found.draw(config.count))
    }
    write_patterns(Path(config.out), drawn, codec)
    print(
        f"{len(vectors)} patterns, {found.axes.n_components_} components with {100 * found.explained:.1f} % of their "
        f"variance, Gaussians: {found.gaussians}, {found.score:+.2f} nats a component of held-out patterns above one "
        f"isotropic Gaussian; {config.count} drawn -> {config.out}"
    )


if __name__ == "__main__":
    main()
