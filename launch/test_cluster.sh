#!/usr/bin/env bash
# Tests on virtual hosts and in a local Slurm: installs what is missing, builds, and runs
# test_cluster.py, which says what; as root, on Debian 12.
#   launch/test_cluster.sh [--only WORD] [--write]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $(id -u) -eq 0 ]] || {
  echo "test_cluster.sh: makes network namespaces, mounts and daemons, so it must be run as root" >&2
  exit 2
}
./launch/install_packages.sh launch/cluster_packages.txt
./launch/build.sh cpu mirabelle-data mirabelle-tokenizer-build mirabelle-train mirabelle-evaluate \
  compare_checkpoints
exec timeout --kill-after=60 1500 python3 launch/test_cluster.py "$@"
