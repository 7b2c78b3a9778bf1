"""Run a flattened graph: compiled ahead of time (``aoti``), as TorchScript, or eagerly."""

from __future__ import annotations

import copy
import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx import GraphModule

from uqbias.compile.cache import default_cache_dir, graph_key, is_cached, load_or_build, make_private, private_part
from uqbias.compile.flatten import TensorFunction, check_dynamic, flatten
from uqbias.compile.scatter import without_index_add
from uqbias.errors import UqbiasError, did_you_mean

RUNNERS = ("aoti", "torchscript", "eager")
#: Largest difference between machine code and graph that rounding may make, relative to the largest value of an output.
ROUNDING = {torch.float32: 1e-2, torch.float64: 1e-7}
logger = logging.getLogger(__name__)


class CompiledFunction:
    """A flattened function with fixed input shapes; call it with the flat list of inputs.

    Attributes
    ----------
    runner : ``aoti``, ``torchscript`` or ``eager``: the one in use.
    plain : the graph as it is, run eagerly; what ``unchecked`` must agree with.
    unchecked : the same without the check of the inputs (a few microseconds), for inner loops. Inputs must match the
        examples in shape, dtype and device and be contiguous; ``aoti`` reads wrong memory otherwise.

    Notes
    -----
    Outputs carry no autograd history. Outputs of ``aoti`` may be non-contiguous: call ``.contiguous()`` before handing
    gradients to code that assumes dense ones (``Adam(fused=True)`` trains wrongly on strided gradients, without an
    error).
    """

    def __init__(
        self,
        run: Callable[[list[Tensor]], Sequence[Tensor]],
        runner: str,
        example_inputs: Sequence[Tensor],
        dynamic: Mapping[int, int],
        plain: Callable[[list[Tensor]], Sequence[Tensor]] | None = None,
    ) -> None:
        self.unchecked, self.plain = run, plain or run
        self.runner = runner
        self._expected = [
            (tuple(None if dynamic.get(index) == dim else size for dim, size in enumerate(tensor.shape)), tensor.dtype)
            for index, tensor in enumerate(example_inputs)
        ]

    def __call__(self, inputs: list[Tensor]) -> Sequence[Tensor]:
        """Evaluate.

        Raises
        ------
        UqbiasError
            If an input's shape, dtype or memory layout is not that of the examples.
        """
        if len(inputs) != len(self._expected):
            raise UqbiasError(f"{len(inputs)} inputs given", f"the function was compiled for {len(self._expected)}")
        for index, (tensor, (shape, dtype)) in enumerate(zip(inputs, self._expected, strict=True)):
            fits = len(tensor.shape) == len(shape) and all(
                want is None or size == want for size, want in zip(tensor.shape, shape, strict=True)
            )
            if not fits or tensor.dtype != dtype or not tensor.is_contiguous():
                raise UqbiasError(
                    f"input {index} is {tuple(tensor.shape)} {tensor.dtype}, contiguous: {tensor.is_contiguous()}",
                    f"the function was compiled for {shape} {dtype}, contiguous",
                )
        return self.unchecked(inputs)


def compile_function(
    function: TensorFunction,
    example_inputs: Sequence[Tensor],
    *,
    runner: str = "auto",
    name: str = "function",
    dynamic: Mapping[int, int] | None = None,
    cache_dir: Path | None = None,
    threads: int = 1,
    check_inputs: Sequence[Tensor] | None = None,
) -> CompiledFunction:
    """Flatten ``function``, gradients included, and make it fast.

    Machine code is compared with the graph as it is, once, whenever it is made or read from the cache: AOTInductor has
    lost parts of a gradient without a word. Where they differ the graph is compiled again in other words
    (`uqbias.compile.scatter`), and if that fails too, it runs as TorchScript, with a warning.

    Parameters
    ----------
    function : takes a list of tensors, returns a tuple of tensors; may call ``torch.autograd.grad``.
    example_inputs : contiguous tensors of the shapes, dtypes and device that later calls will have.
    runner : ``aoti`` compiles to machine code (25 to 50 s once, then from the cache), ``torchscript`` traces,
        ``eager`` runs the graph as it is. ``auto`` is ``aoti`` where a C++ compiler is found or the graph is in the
        cache, else ``torchscript`` with a warning.
    name : prefix of the cache entry, shown in messages.
    dynamic : input index to the dimension whose length may change between calls; see `flatten`.
    cache_dir : default `default_cache_dir()`.
    threads : OpenMP threads of the ``aoti`` code. Small models run fastest with one.
    check_inputs : where machine code is compared with the graph: values at which every part of the outputs counts;
        ``example_inputs`` if None.

    Returns
    -------
    CompiledFunction

    Raises
    ------
    UqbiasError
        If the runner's name is unknown, ``aoti`` is asked for without a C++ compiler, or an example is not contiguous.
    """
    if runner != "auto" and runner not in RUNNERS:
        raise UqbiasError(f"unknown runner '{runner}'", did_you_mean(runner, ["auto", *RUNNERS]))
    for index, tensor in enumerate(example_inputs):
        if not tensor.is_contiguous():
            raise UqbiasError(f"example input {index} of {name} is not contiguous", "call .contiguous() on it")
    requested = runner
    dynamic = dict(dynamic or {})
    directory = default_cache_dir() if cache_dir is None else private_part(Path(cache_dir))
    graph_module = flatten(function, example_inputs)
    build = _Build(name, directory, example_inputs, dynamic, {"cpp.threads": threads}, check_inputs or example_inputs)
    cached = runner in {"auto", "aoti"} and is_cached(directory, build.entry(graph_module))
    if dynamic and not cached:  # a graph in the cache passed this check when it was made
        check_dynamic(graph_module, function, example_inputs, dynamic)
    if runner in {"auto", "aoti"} and not cached and find_compiler() is None:
        if runner == "aoti":
            raise UqbiasError("runner 'aoti' needs a C++ compiler and none was found", "install g++ or set CXX")
        logger.warning("no C++ compiler found: %s runs as TorchScript, about 3 times slower; install g++", name)
        runner = "torchscript"
    elif runner == "auto":
        runner = "aoti"
    if runner == "eager":
        run = _eager(graph_module)
    elif runner == "torchscript":
        run = _torchscript(graph_module, example_inputs)
    else:
        try:
            run = build(graph_module)
        except Exception as error:
            if requested == "aoti":
                raise
            logger.warning("compiling %s failed, it runs as TorchScript, about 3 times slower: %s", name, error)
            run, runner = _torchscript(graph_module, example_inputs), "torchscript"
    return CompiledFunction(run, runner, example_inputs, dynamic, _eager(graph_module))


class _Build(NamedTuple):
    """Machine code of a graph, made or read from the cache, and compared with the graph."""

    name: str
    directory: Path
    example_inputs: Sequence[Tensor]
    dynamic: Mapping[int, int]
    options: Mapping[str, object]
    check_inputs: Sequence[Tensor]

    def entry(self, graph_module: GraphModule) -> str:
        """Name in the cache."""
        key = graph_key(graph_module, self.example_inputs, dynamic=self.dynamic, options=self.options)
        return f"{self.name}-{key[:32]}.pt2"

    def __call__(self, graph_module: GraphModule) -> Callable[[list[Tensor]], Sequence[Tensor]]:
        """Compile or load.

        Raises
        ------
        UqbiasError
            If the machine code does not do what the graph does.
        """
        expected = _eager(graph_module)(list(self.check_inputs))
        if problem := disagreement(expected, expected):
            raise UqbiasError(f"{self.name} cannot be checked: {problem}", "are the model's weights whole?")
        run = self._load(graph_module)
        computed = run(list(self.check_inputs))
        if not disagreement(computed, expected):
            return run
        spread = _spread(_eager(graph_module), self.check_inputs, expected)
        if disagreement(computed, expected, spread=spread):
            logger.warning("torch compiled %s wrongly; once more, without index_add", self.name)
            reworded = copy.deepcopy(graph_module)
            without_index_add(reworded, self.example_inputs)
            run = self._load(reworded)
            if problem := disagreement(run(list(self.check_inputs)), expected, spread=spread):
                raise UqbiasError(f"torch {torch.__version__} compiles {self.name} wrongly: {problem}", "report this")
        return run

    def _load(self, graph_module: GraphModule) -> Callable[[list[Tensor]], Sequence[Tensor]]:
        return load_or_build(
            self.directory,
            self.entry(graph_module),
            lambda path: _build_aoti(graph_module, self.example_inputs, self.dynamic, self.options, self.name, path),
            _load_aoti,
        )


def disagreement(
    computed: Sequence[Tensor], expected: Sequence[Tensor], least: float = 0.0, spread: Sequence[float] = ()
) -> str:
    """The first output that differs by more than rounding explains, or that proves nothing; empty if there is none.

    Outputs agree in shape, and in which of their values are not finite: some must be.

    Parameters
    ----------
    least : size of an output below which rounding is not relative to it.
    spread : what rounding of the inputs makes of each output; far more than its share of an output that is a small
        difference of large numbers.
    """
    # What comes in double precision may come from single precision.
    rounding = max((ROUNDING[other.dtype] for other in expected if other.is_floating_point()), default=0.0)
    for index, (one, other) in enumerate(zip(computed, expected, strict=True)):
        if one.shape != other.shape:
            return f"output {index} is of shape {tuple(one.shape)}, not {tuple(other.shape)}"
        if not other.is_floating_point() or not other.numel():
            continue
        finite = torch.isfinite(other)
        if (strays := int((torch.isfinite(one) != finite).sum())) or not finite.any():
            where = f"{strays} place(s) where the graph is, or the reverse" if strays else "any place"
            return f"output {index} is not finite in {where}"
        error, scale = float((one - other)[finite].abs().max()), max(least, float(other[finite].abs().max()))
        if error > max(rounding * scale, 10.0 * spread[index] if spread else 0.0):
            return f"output {index} is off by {error:.3g} of {scale:.3g}"
    return ""


def _spread(
    run: Callable[[list[Tensor]], Sequence[Tensor]], inputs: Sequence[Tensor], expected: Sequence[Tensor]
) -> list[float]:
    """Largest change of each output when every number of the inputs is off by its last digit, up or down by chance."""
    dice = torch.Generator().manual_seed(0)

    def rounded(one: Tensor) -> Tensor:
        if not one.is_floating_point():
            return one
        ups = torch.randint(0, 2, one.shape, generator=dice).to(one) * 2 - 1
        return one * (1 + ups * torch.finfo(one.dtype).eps)

    moved = run([rounded(one) for one in inputs])
    return [
        float((one - other).abs().nan_to_num().max()) if other.is_floating_point() and other.numel() else 0.0
        for one, other in zip(moved, expected, strict=True)
    ]


def find_compiler() -> str | None:
    """Path or name of the C++ compiler that AOTInductor would use, or None."""
    from torch._inductor.cpp_builder import get_cpp_compiler

    try:
        return str(get_cpp_compiler())
    except Exception:
        return None


def trace_to_torchscript(module: torch.nn.Module, example_inputs: Sequence[Tensor]) -> Any:
    """Return ``torch.jit.trace`` of a module that computes no gradients by autograd."""
    with warnings.catch_warnings(), torch.no_grad():
        # The graph has no control flow to lose, so what the tracer warns about does not apply.
        warnings.simplefilter("ignore")
        return torch.jit.trace(module, tuple(example_inputs), check_trace=False)  # type: ignore[no-untyped-call]


def _eager(graph_module: GraphModule) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    def run(inputs: list[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs: Sequence[Tensor] = graph_module(*inputs)
        return outputs

    return run


def _torchscript(
    graph_module: GraphModule, example_inputs: Sequence[Tensor]
) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    traced = trace_to_torchscript(graph_module, example_inputs)

    def run(inputs: list[Tensor]) -> Sequence[Tensor]:
        with torch.no_grad():
            outputs: Sequence[Tensor] = traced(*inputs)
        return outputs

    return run


def _build_aoti(
    graph_module: GraphModule,
    example_inputs: Sequence[Tensor],
    dynamic: Mapping[int, int],
    options: Mapping[str, object],
    name: str,
    path: Path,
) -> None:
    import torch._inductor

    logger.info("compiling %s for this machine (25 to 50 s, once; kept in %s)", name, path.parent)
    shapes = tuple(
        {dynamic[index]: torch.export.Dim.DYNAMIC} if index in dynamic else None for index in range(len(example_inputs))
    )
    # A CUDA toolkit without a GPU makes this logger complain about what the graph does not use.
    chatty = logging.getLogger("torch.utils.cpp_extension")
    level = chatty.level
    chatty.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _own_workplace()
            program = torch.export.export(graph_module, tuple(example_inputs), dynamic_shapes=shapes, strict=False)
            torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=dict(options))
    finally:
        chatty.setLevel(level)


def _own_workplace() -> None:
    """Keep torch from compiling in a folder of a known name below /tmp that another user made before."""
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir as torch_cache_dir

    # Before torch makes it, open to the user's group where the umask says so.
    directory = private_part(Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR") or torch_cache_dir()))
    try:
        make_private(directory)
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(directory)
    except PermissionError:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(prefix="uqbias-")


def _load_aoti(path: Path) -> Callable[[list[Tensor]], Sequence[Tensor]]:
    import torch._inductor

    model = torch._inductor.aoti_load_package(str(path), run_single_threaded=True)
    # loader.run takes the flat list as it is; model(...) would walk two pytrees a call, boxed_run empties the list.
    run: Callable[[list[Tensor]], Sequence[Tensor]] = model.loader.run
    return run
