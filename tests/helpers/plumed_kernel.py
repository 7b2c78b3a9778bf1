"""Whether tests can run PLUMED here, and the mark that says loudly why they are skipped where they cannot."""

import pytest

from uqbias.errors import UqbiasError
from uqbias.plumed.kernel import find_kernel, make_plumed


def kernel_fault(module=None):
    """Why there is no kernel, or none with this module of PLUMED's; None where there is."""
    try:
        kernel = find_kernel()
        make_plumed(kernel)
    except UqbiasError as error:
        return str(error)
    return f"its module {module} is off" if module and kernel.modules and module not in kernel.modules else None


def needs_kernel(module=None):
    """Mark of tests that are skipped without a kernel."""
    fault = kernel_fault(module)
    reason = f"set PLUMED_KERNEL or put plumed on PATH, and install the wrapper: {fault}"
    return pytest.mark.skipif(fault is not None, reason=reason)
