"""What patterns know: classifiers on the patterns of labelled signals, beside the same on the signals themselves.

    python generalizable/probe.py run=runs/digits input=recordings "label=(\\d)_[a-z]+_"

A linear classifier and a small network are trained on each, by five-fold cross-validation. Labels are part of a
signal's name, which patterns travel under. Source of the task: Dupont et al., "From data to functa" (ICML 2022),
section 4.
"""

import re
import sys
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from evos.command_line import parse_options
from evos.config import check_range
from evos.errors import InputError, exit_on_input_error
from evos.runs import write_json
from generalizable.codec import Codec
from generalizable.encode import encode, find_named_signals

FOLDS = 5
STRENGTHS = (0.001, 0.01, 0.1, 1.0)
"""Inverse strengths of regularisation among which the linear classifier's is chosen, within each fold."""


@dataclass(frozen=True)
class ProbeConfig:
    """Options of the probe."""

    run: str = ""
    """Folder of the trained run."""

    input: str = ""
    """Folder of labelled signals, at any depth."""

    label: str = r"([^/]+)/[^/]*$"
    """Regular expression whose first group is the label in a signal's name (its path in ``input`` without the
    extension); the first match counts. The default is the folder that the file lies in."""

    components: int = 128
    """Principal components that classifiers see of either, at least 1; fewer where there are fewer signals."""

    seed: int = 0
    """Seed of the folds and of the network's weights, in [0, 2^32)."""

    out: str | None = None
    """File of the results (JSON); none: they are only printed."""

    device: str = "auto"
    """auto (cuda where there is one), cpu, cuda or cuda:n."""

    quiet: bool = False
    """No progress bar."""

    def __post_init__(self) -> None:
        check_range("components", self.components, 1)
        check_range("seed", self.seed, 0, 2**32 - 1)
        for name in ("run", "input"):
            if not getattr(self, name):
                raise InputError(name, "nothing", f"{name}=FOLDER")
        try:
            groups = re.compile(self.label).groups
        except re.error as error:
            raise InputError("label", f"{self.label} ({error})", "a regular expression") from None
        if groups != 1:
            raise InputError("label", self.label, "a regular expression with one group, the label")


def find_labels(names: Sequence[str], pattern: str) -> list[str]:
    """The label in each name.

    Raises:
        InputError: a name has none, there is one label only, or one of fewer signals than there are folds.
    """
    labels = []
    for name in names:
        if (found := re.search(pattern, name)) is None:
            raise InputError("label", f"{pattern}, which {name} does not match", "a label in each signal's name")
        labels.append(found[1])
    counts = Counter(labels)
    rarest = min(counts, key=counts.__getitem__)
    if len(counts) < 2 or counts[rarest] < FOLDS:
        got = f"{len(counts)} labels, of {rarest} {counts[rarest]} signals"
        raise InputError("label", got, f"at least 2 labels and {FOLDS} signals of each")
    return labels


def accuracies(
    features: Float[np.ndarray, "N F"], labels: Sequence[str], components: int, seed: int
) -> dict[str, list[float]]:
    """The fraction of held-out signals that each classifier names rightly, by fold."""
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
    components = min(components, features.shape[1], len(labels) * (FOLDS - 1) // FOLDS // 2)
    choices = {"logisticregression__C": STRENGTHS}
    linear = GridSearchCV(classifier(LogisticRegression(max_iter=2000), components, seed), choices, cv=3)
    network = classifier(MLPClassifier((256,), alpha=0.1, max_iter=400, random_state=seed), components, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the number of iterations is a setting like others
        return {
            name: cross_val_score(model, features, labels, cv=folds).tolist()
            for name, model in (("linear", linear), ("network", network))
        }


def classifier(last: object, components: int, seed: int) -> object:
    """A classifier on the principal components of standardised features."""
    return make_pipeline(StandardScaler(), PCA(components, random_state=seed), last)


def probe(codec: Codec, config: ProbeConfig) -> dict[str, dict[str, list[float]]]:
    """Accuracies by fold, of each classifier, on the patterns and on the signals themselves.

    Raises:
        InputError: nothing can be read, or the labels are no such.
    """
    encoded = encode(codec, config.input, crop=True, quiet=config.quiet)
    paths = find_named_signals(codec.task, config.input)
    signals = [codec.task.load(paths[name]).signal.flatten().numpy() for name in encoded]
    labels = find_labels(list(encoded), config.label)
    patterns = np.concatenate([each.vectors for each in encoded.values()])
    kinds = {"patterns": patterns, "signals": np.stack(signals)}
    return {kind: accuracies(features, labels, config.components, config.seed) for kind, features in kinds.items()}


def report(found: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """A line for each kind of features: mean and standard deviation over the folds, in percent."""
    return "\n".join(
        f"{kind}: "
        + ", ".join(f"{name} {100 * mean(folds):.1f} ± {100 * stdev(folds):.1f} %" for name, folds in each.items())
        for kind, each in found.items()
    )


@exit_on_input_error
def main(argv: Sequence[str] | None = None) -> None:
    """The program."""
    config = parse_options(ProbeConfig, argv, "python generalizable/probe.py", __doc__ or "")
    found = probe(Codec.load(config.run, config.device), config)
    print(report(found))
    if config.out is not None:
        command = ["python", "generalizable/probe.py", *(sys.argv[1:] if argv is None else argv)]
        write_json(Path(config.out), {"command": " ".join(command), "accuracy": found})


if __name__ == "__main__":
    main()
