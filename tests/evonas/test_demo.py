"""The demonstration, very small."""

import pytest

from evonas.demo import main
from evos.images import read_image
from evos.runs import read_json


@pytest.mark.slow
def test_the_demonstration_ends_in_a_report(tmp_path, capsys):
    out = tmp_path / "demo"
    words = [f"out={out}", "rooms=2", "generations=2", "scale=0.01"]
    main(words)
    said = capsys.readouterr().out
    assert "hypervolume after 32 evaluations" in said and str(out / "report.png") in said
    report = read_image(out / "report.png").pixels
    assert report.shape[:2] == (900, 1400) and report.std() > 0.1
    volumes = [read_json(out / name / "metrics.json")["history"][-1] for name in ("search", "random")]
    assert all(0 < volume["hypervolume"] < 1 and volume["evaluations"] == 32 for volume in volumes)
    with pytest.raises(SystemExit):
        main(words)
    assert "a new folder" in capsys.readouterr().err
