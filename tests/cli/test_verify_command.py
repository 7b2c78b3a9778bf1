"""`uqbias verify`: what it prints, and how it ends."""

import json

import numpy as np
from command_line import call, refused

from uqbias.campaign.ledger import open_ledger


def begun(folder):
    with open_ledger(folder, {"seed": 1}, np.array([1, 1]), {"seed": 1}) as ledger:
        x = np.arange(6.0).reshape(2, 3)
        ledger.append("label", round=0, index=0, key="k", positions=x, energy=1.0, forces=x, info={})
    return folder


def test_a_run_in_order(tmp_path):
    done = call("verify", begun(tmp_path / "run"))
    assert done.exit_code == 0
    assert "lines of ledger.jsonl  2\n" in done.stdout
    assert done.stdout.endswith("run is in order\n")
    assert "campaign.yaml" in done.stderr
    facts = json.loads(call("verify", tmp_path / "run", "--json").stdout)
    assert (facts["checked"]["labels"], facts["faults"]) == (1, [])


def test_each_fault_is_a_line_and_the_exit_code_2(tmp_path):
    path = begun(tmp_path / "run") / "ledger.jsonl"
    path.write_text(path.read_text().replace('"energy": 1.0', '"energy": 1.5').replace('"seed": 1', '"seed": 2'))
    (tmp_path / "run" / "summary.json").write_text("{")
    done = call("verify", tmp_path / "run")
    assert done.exit_code == 2
    faults = [line for line in done.stderr.splitlines() if line.startswith("uqbias: ")]
    assert [fault.partition(" ")[2][:22] for fault in faults] == [
        "ledger.jsonl: line 1 d",
        "ledger.jsonl: line 2 d",
        "summary.json is damage",
    ]
    done = call("verify", tmp_path / "run", "--json")
    assert done.exit_code == 2
    assert len(json.loads(done.stdout)["faults"]) == 3


def test_what_is_no_run(tmp_path):
    assert "no such run directory" in refused("verify", tmp_path / "none")
    assert "no such campaign file" in refused("verify", begun(tmp_path / "run"), "--rebuild")
