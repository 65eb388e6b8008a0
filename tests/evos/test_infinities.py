"""JSON has no number for infinity, and a perfect fit has an infinite PSNR."""

import json
import math
from pathlib import Path

from evos.runs import open_run, read_json, write_json


def test_infinities_come_back_from_json_that_any_parser_reads(tmp_path: Path) -> None:
    value = {"psnr": math.inf, "curve": [{"psnr": -math.inf, "lpips": None}], "name": "inf", "other": "Infinity"}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    raw = json.loads((tmp_path / "a.json").read_text(), parse_constant=lambda name: 1 / 0)  # of no standard
    assert float(raw["psnr"]) == math.inf and float(raw["curve"][0]["psnr"]) == -math.inf


def test_a_run_with_an_infinite_option_goes_on(tmp_path: Path) -> None:
    options = {"far": math.inf}
    open_run(tmp_path / "run", options, resume=False, overwrite=False)
    assert open_run(tmp_path / "run", options, resume=True, overwrite=False).path == tmp_path / "run"
