"""Every file of a run, HILLS, COLVAR, trajectories, observations and snapshots: one writer and one reader."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "hills": ("Hills", "HillsFile", "load_hills", "read_hills"),
        "observation": ("ExternalBias", "GuardEvent", "Observation"),
        "reader": ("Column", "RunFolder"),
        "series": ("ColvarFiles", "read_colvar"),
        "snapshot": ("open_snapshot", "restore_bias", "write_snapshot"),
        "trajectories": ("Trajectories",),
        "writer": ("RunWriter",),
    },
)
