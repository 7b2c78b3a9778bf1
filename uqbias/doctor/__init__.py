"""Examination of an installation: versions, backends, forces against finite differences, PLUMED."""

from __future__ import annotations

from uqbias.doctor.installation import examine, healthy
from uqbias.doctor.row import Row

__all__ = ["Row", "examine", "healthy"]
