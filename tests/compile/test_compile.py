import logging
import multiprocessing
import os
from pathlib import Path

import pytest
import torch

from uqbias.compile import cache, runners
from uqbias.compile.flatten import flatten
from uqbias.errors import UqbiasError
from uqbias.files import sha256


def well_with_grid(tensors):
    """Energy of points in a trained well plus a bias read from a grid whose length is free; forces on the points."""
    points, stiffness, grid, spacing = tensors
    points = points.detach().requires_grad_()
    energy = (stiffness * points.pow(2)).sum(-1)
    driver = points.pow(2).sum(-1).sqrt()
    cell = (driver / spacing).detach().floor().long()
    bias = grid.index_select(0, cell) * driver
    (gradient,) = torch.autograd.grad(energy.sum() + bias.sum(), points)
    return energy, bias, -gradient


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return [
        torch.rand(4, 3, generator=generator),
        torch.tensor([1.0, 2.0, 3.0]),
        torch.arange(20.0),
        torch.tensor(0.1),
    ]


def assert_same(outputs, reference):
    for output, expected in zip(outputs, reference, strict=True):
        torch.testing.assert_close(output, expected.detach(), rtol=1e-5, atol=1e-6)


def test_flattened_graph_has_no_autograd(inputs):
    module = flatten(well_with_grid, inputs)
    assert "detach" not in module.code
    with torch.no_grad():
        outputs = module(*inputs)
    assert_same(outputs, well_with_grid(inputs))


def test_length_of_a_dynamic_input_must_not_be_baked_in(inputs):
    def bakes_length(tensors):
        return (tensors[2].sum() / tensors[2].shape[0] + tensors[0].sum(),)

    with pytest.raises(UqbiasError, match="dynamic input"):
        flatten(bakes_length, inputs, dynamic={2: 0})


@pytest.mark.parametrize("runner", ["eager", "torchscript"])
def test_grid_grows_without_tracing(inputs, runner):
    compiled = runners.compile_function(well_with_grid, inputs, runner=runner, dynamic={2: 0})
    assert compiled.runner == runner
    grown = [*inputs[:2], torch.arange(33.0) * 2, inputs[3]]
    for values in (inputs, grown):
        outputs = compiled(values)
        assert not any(output.requires_grad for output in outputs)
        assert_same(outputs, well_with_grid(values))


def test_inputs_are_checked(inputs):
    compiled = runners.compile_function(well_with_grid, inputs, runner="eager", dynamic={2: 0})
    with pytest.raises(UqbiasError, match="input 0 is"):
        compiled([torch.rand(3, 4).T, *inputs[1:]])
    with pytest.raises(UqbiasError, match="input 1 is"):
        compiled([inputs[0], inputs[1].double(), *inputs[2:]])
    with pytest.raises(UqbiasError, match="4"):
        compiled(inputs[:3])


def test_unknown_runner(inputs):
    with pytest.raises(UqbiasError, match="did you mean 'torchscript'"):
        runners.compile_function(well_with_grid, inputs, runner="torchscrip")


def test_without_compiler(inputs, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(runners, "find_compiler", lambda: None)
    with caplog.at_level(logging.WARNING):
        compiled = runners.compile_function(well_with_grid, inputs, cache_dir=tmp_path / "none")
    assert compiled.runner == "torchscript"
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert not (tmp_path / "none").exists()
    with pytest.raises(UqbiasError, match=r"C\+\+ compiler"):
        runners.compile_function(well_with_grid, inputs, runner="aoti", cache_dir=tmp_path / "none")


def test_key_depends_on_what_the_code_depends_on(inputs):
    def key(function, values, options=None, dynamic=None):
        module = flatten(function, values, dynamic=dynamic)
        return cache.graph_key(module, values, dynamic=dynamic or {}, options=options or {})

    def scaled(factor):
        return lambda tensors: (tensors[0] * factor,)

    base = key(well_with_grid, inputs, dynamic={2: 0})
    grown = [*inputs[:2], torch.arange(33.0), inputs[3]]
    other_values = [torch.rand(4, 3), *inputs[1:]]
    assert key(well_with_grid, grown, dynamic={2: 0}) == base
    assert key(well_with_grid, other_values, dynamic={2: 0}) == base
    assert key(well_with_grid, inputs) != base
    assert key(well_with_grid, [value.double() for value in inputs], dynamic={2: 0}) != base
    assert key(well_with_grid, inputs, {"cpp.threads": 2}, dynamic={2: 0}) != base
    assert key(scaled(torch.ones(3)), inputs) != key(scaled(2 * torch.ones(3)), inputs)
    assert key(scaled(1.0), inputs) != key(scaled(1.0 + 1e-12), inputs)


def test_default_cache_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("UQBIAS_CACHE", str(tmp_path / "chosen"))
    assert cache.default_cache_dir() == tmp_path / "chosen"
    assert not (tmp_path / "chosen").exists()


class Builder:
    def __init__(self, log):
        self.log = log

    def __call__(self, path):
        with self.log.open("a") as stream:
            stream.write("built\n")
        path.write_text("content")


def load_text(path):
    if (text := path.read_text()) != "content":
        raise ValueError(text)
    return text


def load_or_build_in(directory, log):
    cache.load_or_build(directory, "entry", Builder(log), load_text)


def test_two_processes_build_once(tmp_path):
    log = tmp_path / "log"
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=load_or_build_in, args=(tmp_path / "cache", log)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 4
    assert log.read_text().splitlines() == ["built"]


@pytest.mark.parametrize("damage", ["", "contenT", "conten"])
def test_damaged_entry_is_rebuilt(tmp_path, damage):
    log = tmp_path / "log"
    load_or_build_in(tmp_path, log)
    (tmp_path / "entry").write_text(damage)
    load_or_build_in(tmp_path, log)
    load_or_build_in(tmp_path, log)
    assert log.read_text().splitlines() == ["built"] * 2
    assert (tmp_path / "entry").read_text() == "content"


def test_entry_that_does_not_load_is_rebuilt(tmp_path, caplog):
    cache.load_or_build(tmp_path, "entry", lambda path: path.write_text("old"), lambda path: path.read_text())
    log = tmp_path / "log"
    with caplog.at_level(logging.WARNING):
        load_or_build_in(tmp_path, log)
    assert (tmp_path / "entry").read_text() == "content"


def test_failed_build_leaves_nothing(tmp_path):
    def fail(path):
        path.write_text("half")
        raise RuntimeError("compiler crashed")

    with pytest.raises(RuntimeError, match="crashed"):
        cache.load_or_build(tmp_path, "entry", fail, load_text)
    assert not [path for path in tmp_path.iterdir() if path.suffix != ".lock"]


def test_unwritable_cache(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    with caplog.at_level(logging.WARNING):
        load_or_build_in(tmp_path / "file" / "cache", tmp_path / "log")
    assert "compiling without it" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(runners.find_compiler() is None, reason="no C++ compiler")
def test_aoti_compiles_once_and_survives_damage(inputs, graph_cache, monkeypatch):
    builds = []
    build = runners._build_aoti
    monkeypatch.setattr(runners, "_build_aoti", lambda *arguments: (builds.append(1), build(*arguments)))
    reference = well_with_grid(inputs)
    grown = [*inputs[:2], torch.arange(33.0) * 2, inputs[3]]
    for example in (inputs, grown):
        compiled = runners.compile_function(
            well_with_grid, example, runner="aoti", name="well", dynamic={2: 0}, cache_dir=graph_cache
        )
        assert_same(compiled(inputs), reference)
        assert_same(compiled(grown), well_with_grid(grown))
    assert len(builds) == 1
    (package,) = graph_cache.glob("well-*.pt2")
    package.write_bytes(package.read_bytes()[:1000])
    compiled = runners.compile_function(
        well_with_grid, inputs, runner="auto", name="well", dynamic={2: 0}, cache_dir=graph_cache
    )
    assert compiled.runner == "aoti"
    assert len(builds) == 2
    assert_same(compiled(inputs), reference)


@pytest.mark.parametrize("harm", ["entry", "digest", "owner", "folder of another"])
def test_what_another_user_can_have_written_is_not_loaded(tmp_path, harm):
    folder = tmp_path / "cache"
    folder.mkdir()
    target, digest = folder / "x.pt2", folder / "x.pt2.sha256"
    target.write_bytes(b"theirs")
    digest.write_text(sha256(target))
    assert cache.is_cached(folder, "x.pt2")
    if harm in {"owner", "folder of another"}:
        if os.geteuid() != 0:
            pytest.skip("only root can give files away")
        os.chown(target if harm == "owner" else folder, 65534, 65534)
    else:
        (target if harm == "entry" else digest).chmod(0o666)
    assert not cache.is_cached(folder, "x.pt2")
    assert cache.load_or_build(folder, "x.pt2", lambda path: path.write_bytes(b"mine"), Path.read_bytes) == b"mine"
    if harm == "folder of another":
        assert target.read_bytes() == b"theirs"  # nothing is left where another user could change it
    else:
        assert cache.is_cached(folder, "x.pt2")


@pytest.mark.parametrize(("mode", "kept"), [(0o1777, True), (0o3777, True), (0o2775, True), (0o777, False)])
def test_a_folder_that_others_write_to_stays_theirs(tmp_path, monkeypatch, caplog, mode, kept):
    tmp_path.chmod(mode)
    monkeypatch.setenv("UQBIAS_CACHE", str(tmp_path))
    for _ in range(2):
        directory = cache.default_cache_dir()
        cache.load_or_build(directory, "x.pt2", lambda path: path.write_bytes(b"mine"), Path.read_bytes)
    assert tmp_path.stat().st_mode & 0o7777 == mode
    assert directory == (tmp_path / f"uqbias-{os.geteuid()}" if kept else tmp_path)
    assert cache.is_cached(directory, "x.pt2") == kept
    assert caplog.text.count("compiling without it") == (0 if kept else 1)


def test_a_new_cache_folder_is_closed_to_others(tmp_path):
    before = os.umask(0)
    try:
        cache.make_private(tmp_path / "cache")
    finally:
        os.umask(before)
    assert cache.is_private(tmp_path / "cache")
