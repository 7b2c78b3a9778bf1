"""Forward and backward pass as one graph: flattening, compiled runners, their cache, the fused evaluation of a step."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "cache": ("default_cache_dir",),
        "fused": ("Evaluation", "FusedEvaluator"),
        "runners": ("CompiledFunction", "compile_function", "find_compiler", "trace_to_torchscript"),
    },
)
