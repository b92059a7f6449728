#!/usr/bin/env bash
# Installs what is missing, builds presets (default cpu) and runs their tests: all, or those of a
# label. Ends with one line, "N passed, M failed", over all of them, and fails if any test did.
#   launch/test.sh [PRESET[:LABEL]...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $# -gt 0 ]] || set -- cpu

passed=0 failed=0 skipped=0
for run in "$@"; do
  preset=${run%%:*}
  label=${run#"$preset"}
  ./launch/build.sh "$preset"

  results=build/$preset/test-results.xml
  rm -f "$results"
  status=0
  ctest --preset "$preset" ${label:+--label-regex "^${label#:}\$"} --parallel "$(nproc)" \
    --output-junit "$PWD/$results" || status=$?
  count() { sed -n "s/.*<testsuite .*//; s/^[[:space:]]*$1=\"\([0-9]*\)\".*/\1/p" "$results" | head -n 1; }
  total=$(count tests)
  failures=$(count failures)
  skips=$(($(count skipped) + $(count disabled)))
  passed=$((passed + total - failures - skips)) failed=$((failed + failures)) skipped=$((skipped + skips))
  ((total > 0 && status == 0 || failures > 0)) || {
    echo "test.sh: ctest ended with status $status" >&2
    failed=$((failed + 1))
  }
done
echo "$passed passed, $failed failed$( ((skipped == 0)) || echo ", $skipped skipped")"
((failed == 0))
