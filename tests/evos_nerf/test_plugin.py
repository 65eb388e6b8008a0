"""How nerfstudio finds us, and what it finds when we are broken."""

import sys
import tomllib
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

pytest.importorskip("nerfstudio")

import evos_nerf
from evos_nerf.plugin import warn_of_error

pytestmark = [pytest.mark.nerf, pytest.mark.filterwarnings("ignore")]

PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]["entry-points"]


@pytest.fixture
def discover(monkeypatch):
    """discover() -> the names of methods and data parsers that nerfstudio finds by our pyproject.toml."""
    from nerfstudio.plugins import registry, registry_dataparser

    def entry_points(group):
        return EntryPoints(EntryPoint(name, value, group) for name, value in PROJECT[group].items())

    for module in (registry, registry_dataparser):
        monkeypatch.setattr(module, "entry_points", entry_points)
    warn_of_error.cache_clear()
    return lambda: {*registry.discover_methods()[0], *registry_dataparser.discover_dataparsers()[0]}


def test_nerfstudio_finds_every_method_and_data_parser(discover, capsys):
    assert discover() == {*PROJECT["nerfstudio.method_configs"], *PROJECT["nerfstudio.dataparser_configs"]}
    assert "Warning" not in capsys.readouterr().out


def test_what_does_not_even_import_is_one_warning_and_stops_no_command(discover, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "evos_nerf.methods", None)
    monkeypatch.delattr(evos_nerf, "methods", raising=False)
    assert discover() == set(PROJECT["nerfstudio.dataparser_configs"])
    assert capsys.readouterr().out.count("EVOS doesn't work with this nerfstudio") == 1


def test_a_method_that_cannot_be_made_is_left_out_of_those_that_can(discover, capsys, monkeypatch):
    from evos_nerf import methods

    monkeypatch.delitem(methods.HOSTS, "evos_instant_ngp")
    assert set(PROJECT["nerfstudio.method_configs"]) - discover() == {"evos-instant-ngp"}
    assert "evos_instant_ngp" in capsys.readouterr().out


def test_all_images_may_be_infinitely_many_as_on_the_hosts_main_branch():
    from evos_nerf.datamanager import EvosDataManagerConfig

    assert EvosDataManagerConfig(train_num_images_to_sample_from=float("inf")).pixel_sampler.selector == "tiles"
