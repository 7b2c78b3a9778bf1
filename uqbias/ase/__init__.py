"""uqbias in ASE: a calculator of a model, its uncertainty and a bias on it."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(__name__, {"calculator": ("UncertaintyCalculator",)})
