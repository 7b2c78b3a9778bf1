"""Figures, summary and HTML report of a run folder; nothing here feeds back into a campaign."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "direction_plots": ("save_direction_figure",),
        "free_energy_plot": ("save_figure",),
        "page": ("write_figures", "write_report"),
        "run_data": ("Observations", "RunData"),
        "summary": ("print_summary", "summary_json"),
    },
)
