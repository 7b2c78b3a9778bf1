"""The campaign file: its sections, its template, its checks."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "file": ("CampaignFile", "check_campaign", "load_campaign"),
        "schema": ("Campaign",),
        "template": ("campaign_template", "example_campaign", "kinds_template"),
    },
)
