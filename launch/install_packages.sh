#!/usr/bin/env bash
# Installs what a list (default launch/packages.txt) names and this machine lacks. Debian 12; as root
# or with sudo.
#   launch/install_packages.sh [LIST]
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

missing=()
while read -r package; do
  [[ -z $package || $package == \#* ]] && continue
  dpkg-query --show --showformat='${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed ||
    missing+=("$package")
done < "${1:-$here/packages.txt}"
[[ ${#missing[@]} -eq 0 ]] && exit 0

as_root=()
if [[ $(id -u) -ne 0 ]]; then
  command -v sudo > /dev/null || {
    echo "install_packages.sh: missing: ${missing[*]}; run as root, or install sudo" >&2
    exit 1
  }
  as_root=(sudo)
fi
echo "installing ${missing[*]}"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
export DEBIAN_FRONTEND=noninteractive
"${as_root[@]}" apt-get update -q > "$log" 2>&1 &&
  "${as_root[@]}" apt-get install -y -q --no-install-recommends "${missing[@]}" >> "$log" 2>&1 || {
  tail -n 15 "$log" >&2
  echo "install_packages.sh: apt-get failed (above: its last lines)" >&2
  exit 1
}
