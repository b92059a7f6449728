#!/usr/bin/env bash
# Builds the readers' fuzz targets (docs/fuzzing.md), runs them one after the other, and prints a table. Fails
# if an input makes a reader do anything but take it or say an error of one line; that input is then kept in
# build/fuzz/findings. What was found interesting stays in build/fuzz/corpus, where the next run goes on.
#   launch/fuzz.sh [--runs N | --seconds N] [--built] [TARGET...]      (default: 20,000 runs of every target)
#   --built: builds nothing, and begins with the committed seeds alone, with the same inputs every time
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
limit=-runs=20000 built=false targets=()
while (($# > 0)); do
  case $1 in
    --runs) limit=-runs=${2:?--runs wants a number} && shift ;;
    --seconds) limit=-max_total_time=${2:?--seconds wants a number} && shift ;;
    --built) built=true ;;
    -*) echo "fuzz.sh: unknown option $1; see the head of this file" >&2 && exit 2 ;;
    *) targets+=("$1") ;;
  esac
  shift
done
$built || ./launch/build.sh fuzz > /dev/null
if ((${#targets[@]} == 0)); then
  for program in build/fuzz/bin/*_fuzz; do targets+=("$(basename "${program%_fuzz}")"); done
fi

findings=build/fuzz/findings logs=build/fuzz/logs
mkdir -p "$findings" "$logs"
stat() { sed -n "s/^stat::$1: *//p" "$log"; }
failed=0
printf '%-22s %12s %10s %9s %9s %9s\n' target executions exec/s coverage 'peak MB' findings
for target in "${targets[@]}"; do
  log=$logs/$target.log options=()
  if $built; then
    corpus=$(mktemp -d) options=(-seed=1)
  else
    corpus=build/fuzz/corpus/$target && mkdir -p "$corpus"
  fi
  # Inputs of at most 4 KiB: no single allocation above 4 MiB (a reader's buffers have 1 MiB), and the whole
  # program, of which the address sanitizer takes most, below 512 MiB.
  found=0
  ASAN_OPTIONS=quarantine_size_mb=4:malloc_context_size=4 \
    "build/fuzz/bin/${target}_fuzz" "$limit" "${options[@]}" -max_len=4096 -timeout=10 \
    -malloc_limit_mb=4 -rss_limit_mb=512 -print_final_stats=1 -artifact_prefix="$findings/$target-" \
    "$corpus" "tests/fuzz/seeds/$target" > "$log" 2>&1 || found=1
  ((found == 0)) || failed=1
  coverage=$(sed -n 's/.* cov: \([0-9]*\) .*/\1/p' "$log" | tail -n 1)
  printf '%-22s %12s %10s %9s %9s %9s\n' "$target" "$(stat number_of_executed_units)" \
    "$(stat average_exec_per_sec)" "$coverage" "$(stat peak_rss_mb)" "$found"
  ((found == 0)) || { grep -E '^(SUMMARY|==[0-9]+== ERROR|.*runtime error|artifact_prefix)|terminate' "$log" || tail -n 5 "$log"; } | head -n 6 >&2
  ! $built || rm -rf "$corpus"
done
exit $failed
