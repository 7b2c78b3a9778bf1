"""PLUMED: the kernel, the bridge inside OpenMM, input files and the plugin."""
