"""Contract tests: what every kind of part must keep, built-in or a third party's, in one call.

`check_uncertainty` takes the name of a kind, `check_potential`, `check_bias`, `check_variable`, `check_oracle` and
`check_sampler` a finished part.

>>> from uqbias.testing import check_uncertainty
>>> print(check_uncertainty("gmm", {"n_components": 2}))  # doctest: +SKIP

An uncertainty is put around a small potential of a small molecule (`build_case`): trained with the potential where it
has weights, fitted, calibrated on frames held out. Then every check is run; each may also be called by itself on a
case.
"""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "case": ("Case", "build_case"),
        "checks": ("check_exploded", "check_gradient", "check_invariance", "check_outputs", "check_smoothness"),
        "parts": ("check_bias", "check_oracle", "check_potential", "check_variable"),
        "report": ("ContractError", "Measurement", "Report"),
        "routes": ("check_routes",),
        "samplers": ("check_sampler",),
        "storage": ("check_refit", "check_round_trip"),
        "systems": ("check_systems",),
        "uncertainties": ("check_uncertainty",),
    },
)
