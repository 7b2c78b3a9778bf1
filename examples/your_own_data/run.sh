#!/usr/bin/env bash
# Train, evaluate and sample with your own frames; without arguments, with those of alanine dipeptide.
#   examples/your_own_data/run.sh [DATA.xyz [TEST.xyz [STRUCTURE.pdb]]]
set -euo pipefail
system="$(cd "$(dirname "$0")/../.." && pwd)/systems/alanine_dipeptide"
data=${1:-$system/start.xyz}
test=${2:-$system/reference/test_set.xyz}
structure=(${3:+--structure "$3"})
[ $# -gt 0 ] || structure=(--structure "$system/structure.pdb")
steps=${STEPS:-1500} md_steps=${MD_STEPS:-10000} runner=${RUNNER:-auto} out=${OUT:-own}

mkdir -p "$out"
uqbias train "$data" "${structure[@]}" -o "$out/model.uqb" --steps "$steps" --runner "$runner"
uqbias evaluate "$out/model.uqb" "$test"
uqbias md "$out/model.uqb" --start "$data" --steps "$md_steps" --walkers 4 --runner "$runner" -o "$out/md"
