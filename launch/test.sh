#!/usr/bin/env bash
# Installs what is missing, builds a preset (default cpu) and runs every test. Ends with one line,
# "N passed, M failed", and fails if any test did.
#   launch/test.sh [PRESET]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=${1:-cpu}
./launch/build.sh "$preset"

results=build/$preset/test-results.xml
rm -f "$results"
status=0
ctest --preset "$preset" --parallel "$(nproc)" --output-junit "$PWD/$results" || status=$?
count() { sed -n "s/.*<testsuite .*//; s/^[[:space:]]*$1=\"\([0-9]*\)\".*/\1/p" "$results" | head -n 1; }
total=$(count tests)
failed=$(count failures)
skipped=$(($(count skipped) + $(count disabled)))
((total > 0 && status == 0 || failed > 0)) || {
  echo "test.sh: ctest ended with status $status" >&2
  failed=$((failed + 1))
}
echo "$((total - failed - skipped)) passed, $failed failed$( ((skipped == 0)) || echo ", $skipped skipped")"
((failed == 0))
