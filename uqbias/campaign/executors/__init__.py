"""Executors: where labels, training and explorations run, on this machine or on a cluster."""

from uqbias import kinds
from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {"base": ("LostJob", "LostLabel", "TaskExecutor", "results_of")},
    kinds.EXECUTORS.values(),
)
