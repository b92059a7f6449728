#!/usr/bin/env bash
# Installs what is missing and builds a preset (default cpu) into build/PRESET.
#   launch/build.sh [PRESET [TARGET...]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=${1:-cpu}
[[ $# -gt 0 ]] && shift
./launch/install_packages.sh
cmake --preset "$preset" > /dev/null
cmake --build --preset "$preset" ${1:+--target "$@"}
