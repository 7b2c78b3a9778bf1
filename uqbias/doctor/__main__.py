"""The checks of one backend, in a process of its own: ``python -m uqbias.doctor BACKEND [--quick]``."""

from __future__ import annotations

import sys

from uqbias.doctor.installation import check_backend

check_backend(sys.argv[1], "--quick" in sys.argv)
