#!/usr/bin/env bash
# Counts with Open MPI's own monitoring what ranks send in a training step, and compares it with
# mirabelle-train --plan and with the textbook; see launch/count_traffic.py.
#   launch/count_traffic.sh [LAYOUT...]      e.g. tensor=2,data=2,zero=1,sequence=1
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
./launch/build.sh cpu mirabelle-train mirabelle-data mirabelle-tokenizer-build
exec python3 launch/count_traffic.py --bin build/cpu/bin "$@"
