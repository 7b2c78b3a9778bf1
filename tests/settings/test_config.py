from pathlib import Path

import pytest
import yaml

from uqbias.campaign.dry_run import check_parts
from uqbias.campaign.work import read_molecule
from uqbias.errors import UqbiasError
from uqbias.registry import BIASES, FEATURES, UNCERTAINTIES, VARIABLES
from uqbias.settings.file import check_campaign, flatten, load_campaign
from uqbias.settings.template import OF_KINDS, campaign_template, example_campaign, kinds_template
from uqbias.settings.yaml_text import read_yaml

SYSTEMS = sorted((Path(__file__).parents[2] / "systems").glob("*/*.yaml"))
REGISTRIES = {"bias": BIASES, "variables": VARIABLES, "driver": UNCERTAINTIES, "features": FEATURES}
MINIMAL = {"system": {"structure": "molecule.pdb", "start": "start.xyz"}}


def write(folder, text):
    (folder / "molecule.pdb").write_text("pdb")
    (folder / "start.xyz").write_text("xyz")
    path = folder / "campaign.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ({"md": {"walkres": 8}}, "md.walkres = 8: unknown key 'walkres'; did you mean 'walkers'?"),
        ({"md": {"walkers": "8"}}, "md.walkers = '8': input should be a valid integer"),
        ({"md": {"walkers": 0}}, "md.walkers = 0: input should be greater than"),
        ({"md": {"observe_every": 30}}, "md: observe_every = 30 is not a multiple of pace = 50"),
        ({"driver": {"kind": "gm"}}, "driver.kind = 'gm': unknown kind 'gm'; did you mean 'gmm'?"),
        ({"driver": {"kind": "gmm", "features": {"kind": "latnts"}}}, "driver.features.kind = 'latnts'"),
        (
            {"driver": {"kind": "gmm", "features": {"kind": "torsions", "heavy": 1}}},
            "driver.features.heavy = 1: unknown key",
        ),
        ({"bias": [{"kind": "metadynamics", "height": -1}]}, "bias.0.height = -1: input should be greater"),
        ({"bias": [{"kind": "metadynamics", "pace": 70}]}, "bias.0.pace = 70 is not a multiple of md.pace"),
        ({"oracle": {"kind": "ase"}}, "'oracle.calculator' is missing"),
        ({"oracle": None}, "oracle = None"),
        ({"sistem": {}}, "sistem = {}: unknown key 'sistem'; did you mean 'system'?"),
        ({"md": {"temperature": float("nan")}}, "md.temperature = nan"),
        ({"score": {"coordinates": {}, "basins": {"A": {"phi": [0.0, 1.0]}}}}, "names 'phi'"),
    ],
)
def test_a_fault_is_one_line_with_key_value_and_cure(section, expected):
    with pytest.raises(UqbiasError) as caught:
        check_campaign({**MINIMAL, **section})
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


#: Anchors that stand for 10^9 entries, and the same as a chain without end.
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LAUGHS, "aliases written out"),
        ("a: &a [*a]", "levels of nesting"),
        ("a: " + "[" * 100 + "]" * 100, "levels of nesting"),
        ("a: " + "[" * 100_000, "is not YAML"),
        ("seed: 2024-99-01", "is not YAML"),
        ("seed: !!timestamp x", "is not YAML"),
        ("seed: !!bool x", "is not YAML"),
        ("seed: " + "1" * 5000, "is not YAML"),
        ("seed: !!python/object/apply:os.system [true]", "is not YAML"),
        ("? [a]\n: 1", "is not YAML"),
        ("<<: &a {seed: 1}\n<<: *a", "key '<<' is given twice"),
        ("md: {<<: 3}", "'<<' without a mapping (line 2)"),
        ("seed: {1: x, 1: y}", "key '1' is given twice"),
        ("random: {amplitude: 0,002}", "random.2 = None: unknown key '2'"),
        ("seed: &a\n  1: x\n", "seed = {1: 'x'}"),
        ("no: x", "False = 'x': unknown key 'False'"),
        ("2024-01-05: x", "unknown key '2024-01-05'"),
        ("name: a/b", "name = 'a/b': give a name of one folder"),
        ("name: ..", "one folder"),
        ("name: ''", "one folder"),
        ('name: "a\\0b"', "one folder"),
        ('name: "\\e[31mred"', "one folder"),
        (f"name: {'n' * 300}", "one folder"),
        ('"\\e[31mred": 1', "unknown key '\\u001b[31mred'"),
        ("x" * 1_000_001, "larger than 1000000 bytes"),
        ("- 1\n" * 10_000, "holds no mapping"),
        ("", "holds no mapping"),
    ],
    ids=range(27),
)
def test_texts_that_are_no_campaign(tmp_path, text, expected):
    if ":" in text and "holds" not in expected and "larger" not in expected:
        text = "system: {structure: molecule.pdb, start: start.xyz}\n" + text
    with pytest.raises(UqbiasError) as caught:
        load_campaign(write(tmp_path, text))
    assert expected in str(caught.value)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_bytes_that_are_no_text(tmp_path):
    path = write(tmp_path, "")
    path.write_bytes(b"seed: \xff")
    with pytest.raises(UqbiasError, match="is not YAML"):
        load_campaign(path)


def test_merge_keys(tmp_path):
    """YAML 1.1, merge: what a mapping has itself comes before what `<<` brings in, and that in the order given."""
    text = "system: {structure: molecule.pdb, start: start.xyz}\nattack: &distort {count: 3}\nrandom: {<<: *distort}\n"
    assert load_campaign(write(tmp_path, text)).campaign.random.count == 3
    read = read_yaml("a: {in: &a {x: 1, y: 1}}\nb: {in: &b {<<: *a, x: 2}}\nc: {<<: [*b, *a], z: 3}\nd: {<<: *b, x: 4}")
    assert read["c"] == {"x": 2, "y": 1, "z": 3}
    assert read["d"] == {"x": 4, "y": 1}
    assert read["b"] == {"in": {"x": 2, "y": 1}}


def test_missing_section_and_number_of_further_faults():
    with pytest.raises(UqbiasError, match="'system' is missing"):
        check_campaign({})
    with pytest.raises(UqbiasError, match=r"and 1 more"):
        check_campaign({**MINIMAL, "seed": -1, "md": {"steps": 0}})
    with pytest.raises(UqbiasError, match="no mapping"):
        check_campaign([1])


def test_template_is_the_example_and_every_key_is_explained():
    text = campaign_template()
    assert check_campaign(yaml.safe_load(text)) == example_campaign()
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if ":" in line and not line.lstrip().startswith("#"):
            assert "#" in line or lines[number - 1].lstrip().startswith("#"), line


@pytest.mark.parametrize("section", OF_KINDS)
def test_every_kind_is_listed_with_its_keys(section):
    text = kinds_template(section)
    entries = yaml.safe_load(text)
    if section in REGISTRIES:
        assert {entry["kind"] for entry in entries} == set(REGISTRIES[section].names())
    lines = text.splitlines()
    for number, line in enumerate(lines):
        if ":" in line and not line.lstrip().startswith(("#", "- kind")):
            assert "#" in line or lines[number - 1].lstrip().startswith("#"), line
    if section == "bias":  # what has all keys that it needs is a section as it stands
        whole = [entry for entry in entries if None not in (entry.get("at", 0), entry.get("kappa", 0))]
        assert len(whole) == 9
        for entry in whole:
            assert check_campaign({**MINIMAL, "bias": [entry]}).bias[0].kind == entry["kind"]


def test_kinds_of_a_section_without_any():
    with pytest.raises(UqbiasError, match=r"no section 'biass' with kinds; did you mean 'bias'\?"):
        kinds_template("biass")


def test_yaml_numbers_duplicates_and_garbage(tmp_path):
    path = write(tmp_path, "system: {structure: molecule.pdb, start: start.xyz}\ntraining: {learning_rate: 1e-3}\n")
    assert load_campaign(path).campaign.training.learning_rate == 1e-3
    with pytest.raises(UqbiasError, match=r"key 'seed' is given twice \(line 2\)"):
        load_campaign(write(tmp_path, "seed: 1\nseed: 2\n"))
    with pytest.raises(UqbiasError, match="is not YAML"):
        load_campaign(write(tmp_path, "seed: [1\n"))
    with pytest.raises(UqbiasError, match="no such campaign file"):
        load_campaign(tmp_path / "nothing.yaml")


def test_paths_are_relative_to_the_file_and_must_exist(tmp_path):
    path = write(tmp_path, yaml.safe_dump(MINIMAL))
    file = load_campaign(path)
    assert file.path("system", "start") == tmp_path / "start.xyz"
    (tmp_path / "start.xyz").unlink()
    with pytest.raises(UqbiasError, match=r"system\.start = start\.xyz: no such file"):
        load_campaign(path)
    (tmp_path / "start.xyz").mkdir()
    with pytest.raises(UqbiasError, match=r"system\.start = start\.xyz: a folder, no file"):
        load_campaign(path)


def test_resolved_file_says_the_same_from_another_folder(tmp_path):
    file = load_campaign(write(tmp_path, yaml.safe_dump(MINIMAL)))
    (tmp_path / "run").mkdir()
    file.write(tmp_path / "run" / "campaign.yaml")
    again = load_campaign(tmp_path / "run" / "campaign.yaml")
    assert again.files() == file.files()
    assert again.identity() == file.identity()


def test_identity_follows_settings_and_file_contents_but_not_the_stop_rule(tmp_path):
    def identity(**sections):
        return load_campaign(write(tmp_path, yaml.safe_dump({**MINIMAL, **sections}))).identity()

    base = identity()
    assert identity(stop={"rounds": 9}, executors={"label": "local"}) == base
    changed = identity(md={"walkers": 3})
    assert {key for key in base if base[key] != changed[key]} == {"md.walkers"}
    file = load_campaign(write(tmp_path, yaml.safe_dump(MINIMAL)))
    (tmp_path / "start.xyz").write_text("other")
    assert file.identity()["system.start"] != base["system.start"]


class Theirs:
    """A third party's uncertainty."""

    def __init__(self, *, anything: int = 2):
        pass


def test_third_party_kinds_keep_their_options(monkeypatch):
    monkeypatch.setitem(UNCERTAINTIES.builtin, "theirs", f"{__name__}:Theirs")
    campaign = check_campaign({**MINIMAL, "driver": {"kind": "theirs", "anything": 3}})
    assert campaign.driver.arguments() == {"anything": 3}
    assert flatten(campaign.model_dump())["driver.anything"] == 3


@pytest.mark.parametrize("path", SYSTEMS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_campaigns_of_the_package_are_in_order(path):
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    start = content["systems"] if "systems" in content else content["system"]["start"]
    if not (path.parent / start).exists():
        pytest.skip(f"{start} is not here: {path.name} runs on data that are not part of this project")
    file = load_campaign(path)
    check_parts(file, *read_molecule(file))


def test_the_published_method_is_as_published():
    (path,) = (path for path in SYSTEMS if path.stem == "published")
    campaign = load_campaign(path).campaign
    assert campaign.driver == campaign.judge
    assert (campaign.driver.kind, campaign.driver.features.kind, campaign.driver.n_components) == ("gmm", "latents", 15)
    eabf, gamd = campaign.bias[:2]
    assert (eabf.kind, eabf.sigma, eabf.mass, eabf.bin_width, eabf.full_samples) == ("wtm_eabf", 0.5, 0.5, 0.1, 100)
    assert (gamd.kind, gamd.threshold) == ("gamd", "upper")
    assert campaign.md.temperature == 300.0


def test_a_force_field_of_your_own_is_a_file_and_one_of_openmm_is_a_name(tmp_path):
    (tmp_path / "mine.xml").write_text("<ForceField/>")
    oracle = {"kind": "openmm", "forcefield": ["amber14/protein.ff14SB.xml", "mine.xml"]}
    file = load_campaign(write(tmp_path, yaml.safe_dump({**MINIMAL, "oracle": oracle})))
    resolved = file.resolved.oracle.arguments()["forcefield"]
    assert resolved == ["amber14/protein.ff14SB.xml", str(tmp_path / "mine.xml")]
    before = file.identity()
    (tmp_path / "mine.xml").write_text("<ForceField></ForceField>")
    assert file.identity() != before
    (tmp_path / "mine.xml").unlink()
    with pytest.raises(UqbiasError, match=r"oracle\.forcefield\.1 = mine\.xml: no such file"):
        load_campaign(tmp_path / "campaign.yaml")
