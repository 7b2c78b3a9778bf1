"""Campaigns: rounds of sampling, harvest, labels and training, recorded in a ledger and continued from it."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "ledger": ("Ledger", "open_ledger"),
        "progress": ("Progress", "make_progress"),
        "rounds": ("run_campaign",),
        "selection": ("Candidates", "Picks", "SelectionOptions", "select"),
    },
)
