#!/usr/bin/env bash
# Runs a program on N ranks of this machine, with the machine's cores shared evenly among them.
#   launch/mpirun.sh N PROGRAM [ARGUMENT...]
set -euo pipefail
[[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]] || {
  echo "usage: launch/mpirun.sh N PROGRAM [ARGUMENT...]" >&2
  exit 2
}
ranks=$1
shift
cores=$(nproc)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((ranks < cores ? cores / ranks : 1))}

flags=(-q -n "$ranks" --bind-to none) # one line per error; threads of a rank may use any core
if ((ranks > cores)); then         # waiting ranks must leave the core to those that work
  flags+=(--oversubscribe --mca mpi_yield_when_idle 1)
fi
# Open MPI refuses root unless told twice; in a container root is who one is.
[[ $(id -u) -ne 0 ]] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
exec mpirun "${flags[@]}" "$@"
