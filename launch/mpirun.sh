#!/usr/bin/env bash
# Runs a program on N ranks of this machine, of the hosts of a file, or of the Slurm job that it
# stands in, with each host's cores shared evenly among its ranks.
#   launch/mpirun.sh [--hosts FILE] N PROGRAM [ARGUMENT...]
# FILE has a line for each host, "node1 slots=8"; hosts are alike, and get N / hosts ranks each.
#
# SIGTERM and SIGUSR1 become SIGUSR1 on every rank: mirabelle-train then writes a checkpoint and ends
# with status 75, start me again. (mpirun itself would kill the ranks a second after SIGTERM.)
# If a host is lost, mpirun would wait for it for ever: it is ended when all others have gone.
set -euo pipefail
usage() {
  echo "usage: launch/mpirun.sh [--hosts FILE] N PROGRAM [ARGUMENT...]" >&2
  exit 2
}
flags=(-q --use-hwthread-cpus) # one line per error; slots are counted as nproc counts
hosts=${SLURM_JOB_NUM_NODES:-1}
if [[ ${1:-} == --hosts ]]; then
  [[ $# -ge 2 && -r $2 ]] || usage
  hosts=$(grep -cE '^[[:space:]]*[^#[:space:]]' "$2") || usage
  # The other hosts must find programs and libraries as this one does.
  # Sessions that stay attached tell which hosts have ended.
  flags+=(--hostfile "$2" --leave-session-attached -x PATH -x OMP_NUM_THREADS ${LD_LIBRARY_PATH:+-x LD_LIBRARY_PATH})
  shift 2
fi
[[ $# -ge 2 && $1 =~ ^[1-9][0-9]*$ ]] || usage
ranks=$(((${1} + hosts - 1) / hosts)) # of a host
flags+=(-n "$1")
shift

cores=$(env -u OMP_NUM_THREADS nproc) # that variable would be its answer
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((ranks < cores ? cores / ranks : 1))}

numa_nodes=$(find /sys/devices/system/node -maxdepth 1 -name 'node[0-9]*' 2> /dev/null | wc -l)
if ((ranks > cores)); then # waiting ranks must leave the core to those that work
  flags+=(--bind-to none --oversubscribe --mca mpi_yield_when_idle 1)
elif ((numa_nodes > 1 && ranks % numa_nodes == 0)); then
  # Neighbouring ranks share a NUMA node, as neighbouring GPUs do.
  flags+=(--map-by "ppr:$((ranks / numa_nodes)):numa" --bind-to numa)
else
  flags+=(--bind-to none) # threads of a rank may use any core
fi
# Open MPI refuses root unless told twice; in a container root is who one is.
[[ $(id -u) -ne 0 ]] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1

mpirun "${flags[@]}" "$@" <&0 &
job=$!
trap 'kill -USR1 $job 2> /dev/null' TERM USR1

# Ends mpirun when some of what it has started, ranks and sessions, has gone and some stays on.
end_without_lost_hosts() {
  local now most=0 seconds=0
  while kill -0 $job 2> /dev/null; do
    now=$(wc -w 2> /dev/null < "/proc/$job/task/$job/children" || echo 0)
    ((most >= now)) || most=$now
    seconds=$((now > 0 && now < most ? seconds + 1 : 0))
    if ((seconds == 20)); then
      echo "mpirun.sh: a part of the job has ended, a host does not answer: ending without it" >&2
      kill -USR2 $$
      kill -KILL $job
    fi
    sleep 1 > /dev/null 2>&1 # holds no pipe of a caller's open
  done
}
gave_up=
trap 'gave_up=1' USR2
end_without_lost_hosts &
trap "kill $! 2> /dev/null || true" EXIT # its failure would be the status

while kill -0 $job 2> /dev/null; do wait $job || true; done # a signal ends the wait, not the job
wait $job || status=$?
if [[ -z $gave_up ]] && ((${status:-0} > 128)); then # mpirun -q keeps it to itself
  echo "mpirun.sh: SIG$(kill -l $((status - 128))) ended a rank, one that says nothing above" \
    "(SIGKILL: perhaps the host's memory ran out)" >&2
fi
exit "${status:-0}"
