#!/usr/bin/env bash
# Uncertainty and driver of a model, for every frame of a trajectory, by PLUMED alone.
#   examples/plumed/driver/run.sh [MODEL.uqb]
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# driver.pt, judge.pt and frames.xyz; without a model one is trained in half a minute.
python "$here/prepare.py" "${1:-model.uqb}"
# libuqbias.so for this PLUMED and this torch; compiled once, then taken from the cache.
uqbias plumed --build -o .
# Needs neither Python nor an MD engine.
plumed --no-mpi driver --plumed "$here/plumed.dat" --ixyz frames.xyz --length-units A
python "$here/plot.py" COLVAR figure.png
