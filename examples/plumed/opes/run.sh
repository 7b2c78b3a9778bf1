#!/bin/sh
# The script of ../bridge with OPES in the place of metadynamics; further options are passed on.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
exec "${PYTHON:-python}" "$here/../bridge/run.py" --input "$here/plumed.dat" --output opes_out "$@"
