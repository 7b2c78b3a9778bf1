"""PLUMED: the kernel, the bridge inside OpenMM, input files, and the build of the plugin."""

from uqbias.lazy import exports

__getattr__, __dir__, __all__ = exports(
    __name__,
    {
        "bridge": ("PlumedBridge",),
        "compile_plugin": ("build_plugin", "plugin_status"),
        "input_writer": ("PlumedOptions", "write_plumed_input"),
        "kernel": ("find_kernel",),
        "plumed_walkers": ("PlumedWalkers",),
    },
)
