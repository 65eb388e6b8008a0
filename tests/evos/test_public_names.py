"""The public surface: a change of it is a decision, with a line in the changelog, and not an accident."""

import importlib
import subprocess
import sys

import pytest

import evos

NAMES = """
ErrorConfig EvosConfig FIELDS Feedback Field FieldConfig FittedField InputError Pool SELECTORS Selection Selector
SelectorConfig TilesConfig UniformConfig build_field build_selector cross_frequency_loss derivative_loss field_config
grid load value_and_jacobian value_loss
"""
MODULES = (
    "config coords derivatives errors fields fitness fitted images losses metrics optimizers schedules selection "
    "sounds transforms"
)


def test_the_public_names_are_these():
    assert set(evos.__all__) == set(NAMES.split())
    assert " ".join(evos.PUBLIC_MODULES) == MODULES


@pytest.mark.parametrize("name", evos.__all__)
def test_a_public_name_is_its_modules_own(name):
    homes = [importlib.import_module(f"evos.{module}") for module in evos.PUBLIC_MODULES]
    assert any(getattr(home, name, None) is getattr(evos, name) for home in homes)


def test_a_module_is_an_attribute_and_a_misspelt_name_is_not():
    assert evos.fitness is importlib.import_module("evos.fitness")
    assert {"build_selector", "fitness", "__version__"} <= set(dir(evos))
    with pytest.raises(AttributeError, match="no attribute 'build_selectr'"):
        evos.build_selectr  # noqa: B018


def test_importing_evos_imports_no_torch():
    code = "import sys, evos; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
