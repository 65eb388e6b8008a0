"""Neural fields: coordinate networks, one module per family, one table of their configs."""

from collections.abc import Mapping
from typing import Any

from evos.config import build_config, check_choice
from evos.fields.base import Field, FieldConfig, MLPField, RealMLPField, build_field
from evos.fields.finer import FinerConfig
from evos.fields.fourier import FourierConfig
from evos.fields.gauss import GaussConfig
from evos.fields.hashgrid import HashGridConfig
from evos.fields.mlp import PemlpConfig, ReluConfig
from evos.fields.siren import SirenConfig
from evos.fields.wire import WireConfig

__all__ = ["FIELDS", "Field", "FieldConfig", "MLPField", "RealMLPField", "build_field", "field_config"]

FIELDS: dict[str, type[FieldConfig]] = {
    config.name: config
    for config in (
        SirenConfig,
        FinerConfig,
        WireConfig,
        GaussConfig,
        ReluConfig,
        PemlpConfig,
        FourierConfig,
        HashGridConfig,
    )
}


def field_config(name: str, options: Mapping[str, Any] | None = None) -> FieldConfig:
    """The config of a family by name, with options by name (texts or typed values).

    Raises:
        InputError: unknown name or option (with the nearest right one), or an option out of range.
    """
    check_choice("field", name, FIELDS)
    return build_config(FIELDS[name], options or {})
