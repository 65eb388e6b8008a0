"""The models by name. Patterns come from a transformer, or from an inner loop of gradient steps."""

from evos.errors import unknown_name
from generalizable.base import KINDS, Data, Model, ModelConfig, Patterns, Task
from generalizable.models.learned_init import LearnedInit, LearnedInitConfig
from generalizable.models.locality_aware import LocalityAware, LocalityAwareConfig
from generalizable.models.meta_pattern_composer import MetaPatternComposer, MetaPatternComposerConfig
from generalizable.models.pattern_composer import PatternComposer, PatternComposerConfig
from generalizable.models.transinr import TransINR, TransINRConfig

MODELS: dict[str, tuple[type[ModelConfig], type[Model]]] = {
    "pattern_composer": (PatternComposerConfig, PatternComposer),
    "meta_pattern_composer": (MetaPatternComposerConfig, MetaPatternComposer),
    "transinr": (TransINRConfig, TransINR),
    "learned_init": (LearnedInitConfig, LearnedInit),
    "locality_aware": (LocalityAwareConfig, LocalityAware),
}
"""Every model by name. To add one, write its config and module in a file of its own and name them here."""


def build_model(config: ModelConfig, task: Task) -> Model:
    """The model that a config describes, its weights drawn from PyTorch's global generator.

    Raises:
        InputError: unknown model, or options that don't fit the field or each other.
    """
    if config.name not in MODELS:
        raise unknown_name("model", config.name, MODELS)
    return MODELS[config.name][1](config, task)


__all__ = ["KINDS", "MODELS", "Data", "Model", "ModelConfig", "Patterns", "Task", "build_model"]
