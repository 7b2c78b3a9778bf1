#!/usr/bin/env bash
# The campaign and the labels in turns, as a job script would do it.
#   examples/dft_handoff/loop.sh [CAMPAIGN.yaml]
set -u
here="$(cd "$(dirname "$0")" && pwd)"
campaign=${1:-$here/campaign.yaml} out=${OUT:-run}
while true; do
  uqbias run "$campaign" -o "$out" -q
  code=$?
  [ $code -eq 3 ] || exit $code  # 0: done; 2: somebody must look
  python "$here/label.py" "$out/to_label.xyz" "$out/labelled.xyz" || exit 1
done
