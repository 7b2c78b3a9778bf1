"""Sampling in the user's own Simulation goes on beside files that are not of its run."""

import numpy as np
import pytest
from caged_molecule import state_of, two_dimensional

from uqbias.errors import UqbiasError


def test_load_does_not_overwrite_the_files_of_another_run(tmp_path, tiny_model, tiny_positions):
    """Its HILLS is kept aside; a COLVAR that does not fit is an error before anything is changed."""
    sampling, simulation = two_dimensional(tiny_model, tiny_positions, tmp_path)
    sampling.step(simulation, 30)
    path = tmp_path / "snapshot.npz"
    sampling.save(simulation, path)
    ours, rows = (tmp_path / "HILLS").read_text(), (tmp_path / "COLVAR").read_text()
    lines = ours.splitlines(keepends=True)

    (tmp_path / "COLVAR").write_text("my notes\n")
    again, other = two_dimensional(tiny_model, tiny_positions, tmp_path)
    before = state_of(other)
    for content, message in (
        ("my notes\n", "COLVAR has other columns"),
        (rows.replace(" d\n", " e\n", 1), "COLVAR has other columns"),
        (rows + "0.5 half a row\n", "COLVAR, line 5"),
    ):
        (tmp_path / "COLVAR").write_text(content)
        with pytest.raises(UqbiasError, match=message):
            again.load(other, path)
        assert (tmp_path / "COLVAR").read_text() == content
        assert (tmp_path / "HILLS").read_text() == ours
        assert not len(again.bias.biases[0].hills)
        np.testing.assert_array_equal(state_of(other), before)
    (tmp_path / "COLVAR").write_text(rows)

    # Not a HILLS file; another bias's; of another run of this bias; with a hill that this run has not deposited.
    words = lines[-1].split()
    foreign = [
        "precious hills of another run\n",
        ours.replace(" d ", " e ").replace("sigma_d", "sigma_e"),
        "".join(lines[:-1]) + " ".join([words[0], "1.5", *words[2:]]) + "\n",
        ours.replace(words[0], "0.012000") + lines[-1],
    ]
    for number, content in enumerate(foreign):
        (tmp_path / "HILLS").write_text(content)
        again.load(other, path)
        assert (tmp_path / f"bck.{number}.HILLS").read_text() == content
        assert (tmp_path / "HILLS").read_text() == ours
    # Of this run: cut short, or longer.
    for content in (ours[:-30], "", ours + lines[-1].replace(words[0], "0.020000")):
        (tmp_path / "HILLS").write_text(content)
        again.load(other, path)
        assert (tmp_path / "HILLS").read_text() == ours
    assert len(list(tmp_path.glob("bck.*"))) == len(foreign)
    assert (tmp_path / "COLVAR").read_text() == rows


def test_restart_does_not_mix_columns(tmp_path, tiny_model, tiny_positions):
    sampling, simulation = two_dimensional(tiny_model, tiny_positions, tmp_path)
    sampling.step(simulation, 20)
    sampling._output.close()
    kept = (tmp_path / "COLVAR").read_text().replace(" d\n", " e\n", 1)
    (tmp_path / "COLVAR").write_text(kept)
    sampling, simulation = two_dimensional(tiny_model, tiny_positions, tmp_path, restart=True)
    with pytest.raises(UqbiasError, match="COLVAR has other columns"):
        sampling.step(simulation, 20)
    assert (tmp_path / "COLVAR").read_text() == kept
