#!/usr/bin/env bash
# Makes the Debian package, installs it in a fresh Debian 12 (debootstrap, chroot), and does there what
# a user would: versions, help, and the quickstart on two ranks, all from where they are installed.
# Then builds a program against the installed headers and libraries. As root, with a network.
#   launch/test_package.sh [FOLDER]       FOLDER for the fresh Debian; kept, and used again if there
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ $(id -u) -eq 0 ]] || {
  echo "test_package.sh: makes a chroot, so it must be run as root" >&2
  exit 2
}
if [[ $# -gt 0 ]]; then
  root=$1
else
  root=$(mktemp -d)
  trap 'rm -rf --one-file-system "$root"' EXIT
fi
./launch/build.sh cpu mirabelle-data mirabelle-tokenizer-build mirabelle-train mirabelle-evaluate \
  mirabelle-recommend mirabelle-convert mirabelle-bench
command -v debootstrap dpkg-shlibdeps > /dev/null ||
  apt-get install -y -q --no-install-recommends debootstrap dpkg-dev > /dev/null

echo "== package"
rm -f build/cpu/mirabelle_*.deb
(cd build/cpu && cpack -G DEB > cpack.log 2>&1) || {
  tail -n 20 build/cpu/cpack.log >&2
  exit 1
}
deb=$(echo build/cpu/mirabelle_*.deb)
dpkg-deb --show --showformat='${Package} ${Version}, ${Installed-Size} KiB, needs ${Depends}\n' "$deb"

echo "== a fresh Debian"
if [[ ! -e $root/etc/debian_version ]]; then
  mkdir -p "$root"
  debootstrap --variant=minbase bookworm "$root" > "$root.log" 2>&1 || {
    tail -n 5 "$root.log" >&2
    exit 1
  }
  cp -r /etc/apt/apt.conf.d/. "$root/etc/apt/apt.conf.d/" # how this machine reaches the mirror
  [[ ! -e /etc/ssl/certs/ca-certificates.crt ]] || {
    mkdir -p "$root/etc/ssl/certs"
    cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
  }
fi
cp /etc/resolv.conf /etc/hosts "$root/etc/"
cp "$deb" "$root/root/mirabelle.deb"
inside() { # with mounts and processes of its own, which end with the command
  unshare --mount --pid --fork bash -c '
    mount -t proc proc "$0/proc"
    mount --rbind /dev "$0/dev"
    mount --rbind /sys "$0/sys"
    mount -t tmpfs tmpfs "$0/tmp"
    exec chroot "$0" env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 \
      DEBIAN_FRONTEND=noninteractive bash -euo pipefail -c "cd; $1"' "$root" "$1"
}
inside 'apt-get update -q > apt.log && apt-get install -y -q --no-install-recommends ./mirabelle.deb >> apt.log 2>&1 ||
  { tail -n 20 apt.log; exit 1; }'

echo "== programs"
inside '
  for program in /usr/bin/mirabelle-*; do
    "$program" --version
    "$program" --help > /dev/null
  done'

echo "== quickstart"
inside '
  rm -rf runs
  /usr/share/mirabelle/launch/quickstart.sh --ranks 2 --minutes 0.3 --output runs > quickstart.log 2>&1 || {
    tail -n 20 quickstart.log
    exit 1
  }
  grep -A 2 "recall@5 " quickstart.log
  grep "backend cpu" quickstart.log | tail -n 1'

echo "== a program of one's own"
inside '
  apt-get install -y -q --no-install-recommends $(cat) >> apt.log 2>&1 || { tail -n 20 apt.log; exit 1; }
  rm -rf own && mkdir own && cd own
  cat > CMakeLists.txt << TEXT
cmake_minimum_required(VERSION 3.25)
project(own LANGUAGES C CXX)
find_package(mirabelle REQUIRED)
add_executable(own own.cpp)
target_link_libraries(own PRIVATE mirabelle::mirabelle_data)
TEXT
  cat > own.cpp << TEXT
#include <iostream>
#include <mirabelle/data/corpus.h>
int main() { std::cout << mirabelle::Corpus("../runs/corpus").num_items() << " items\n"; }
TEXT
  (cmake -B build . && cmake --build build) > own.log 2>&1 || { tail -n 20 own.log; exit 1; }
  build/own' < <(grep -vE '^#|^(ccache|hdf5-tools|libgtest-dev|ninja-build|python3)$' launch/packages.txt)
echo "1 passed, 0 failed"
