#!/usr/bin/env bash
# Packs a build into one folder that runs on any x86-64 Linux with glibc 2.36 or later, without root
# and without our packages: executables, tests, configurations, an Open MPI of its own for one
# machine, and every library except glibc, libstdc++ and NVIDIA's.
#   launch/bundle.sh FOLDER [PRESET [FILE...]]     (preset cuda; further files go to FOLDER/files)
# There:
#   . FOLDER/env.sh && cd FOLDER && ./launch/mpirun.sh 2 build/cuda/bin/mirabelle-train --help
set -euo pipefail
[[ $# -ge 1 && $1 != -* ]] || {
  sed -n '2,8s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
folder=$1 preset=${2:-cuda}
shift $(($# < 2 ? $# : 2))
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -x build/$preset/bin/mirabelle-train ]] || {
  echo "bundle.sh: build/$preset/bin/mirabelle-train is not there; launch/build.sh $preset makes it" >&2
  exit 2
}
[[ ! -e $folder ]] || {
  echo "bundle.sh: $folder exists already" >&2
  exit 2
}
partial=$folder.partial
rm -rf "$partial"
mkdir -p "$partial"/{build/"$preset",system/{bin,lib},files}

cp -r launch configs "$partial"/
cp -r "build/$preset/bin" "build/$preset/lib" "$partial/build/$preset/"
[[ $# -eq 0 ]] || cp -rL "$@" "$partial/files/"

# Open MPI: mpirun, its plugins and PMIx's, without those for fabrics, schedulers and MPI files.
system=$partial/system
mpirun=$(readlink -f "$(command -v mpirun)")
cp "$mpirun" "$system/bin/mpirun"
cp "$(readlink -f "$(command -v orted)")" "$system/bin/orted"
library_folder=$(dirname "$(ldd "$mpirun" | awk '$1 ~ /^libopen-rte/ {print $3}')")
plugins() { # plugins FROM TO PATTERN-TO-LEAVE-OUT
  mkdir -p "$2"
  find -L "$1" -name '*.so' -type f | grep -Ev "$3" | xargs -r -I{} cp -L {} "$2"/
}
plugins "$(find "$library_folder" -type d -path '*openmpi/lib/openmpi*' | head -n 1)" \
  "$system/lib/openmpi" 'openib|ucx|ofi|psm|usnic|portals|slurm|_tm|alps|lsf|fcoll|fbtl|sharedfp|_fs_|_io_'
plugins "$(find "$library_folder" -type d -path '*pmix*/lib/pmix' | head -n 1)" "$system/lib/pmix" '^$'
find -L "$library_folder" -path '*pmix*' -name 'libpmix.so.2' -exec cp -L {} "$system/lib/" \; -quit
for share in openmpi pmix; do
  [[ ! -d /usr/share/$share ]] || cp -rL "/usr/share/$share" "$system/$share"
done
mkdir -p "$system/etc"
cat > "$system/etc/openmpi-mca-params.conf" << 'PARAMETERS'
mca_base_component_show_load_errors = 0
plm = isolated
pml = ob1
btl = self,vader,tcp
btl_vader_single_copy_mechanism = none
PARAMETERS

# What all of these load, but for what every machine with an NVIDIA driver and CUDA has.
others='^(linux-vdso|ld-linux.*|libmirabelle_[a-z_]*|lib(c|m|dl|rt|pthread|resolv|gcc_s|stdc\+\+|cuda|cudart|cublas|cublasLt|nccl|cudnn[a-z_]*|nv[a-zA-Z-]*))\.so'
find "$partial/build" "$system" -type f \( -perm -u+x -o -name '*.so*' \) -print0 |
  xargs -0 -n 64 ldd 2> /dev/null | awk '$2 == "=>" && $3 ~ /^\// {print $1, $3}' | sort -u |
  while read -r name path; do
    [[ $name =~ $others || $path == "$PWD"/* || -e $system/lib/$name ]] || cp -L "$path" "$system/lib/$name"
  done
find "$partial" -type f \( -name '*.so*' -o -path '*/bin/*' \) -exec strip --strip-unneeded {} + 2> /dev/null || true

cat > "$partial/env.sh" << 'ENVIRONMENT'
# To be sourced: where this folder's programs, libraries and Open MPI are, and where NVIDIA's
# libraries may be: in CUDA's folder, or in Python packages.
bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
system=$bundle/system
nvidia=
for folder in /usr/local/cuda/lib64 /usr/local/cuda/lib \
  $(python3 -c 'import glob, site, sys
for root in site.getsitepackages() + [site.getusersitepackages()]:
    print("\n".join(sorted(glob.glob(root + "/nvidia/*/lib"))))' 2> /dev/null); do
  [ -d "$folder" ] && nvidia=$nvidia:$folder
done
export PATH=$system/bin:$PATH
export LD_LIBRARY_PATH=$system/lib$nvidia${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}
export OPAL_PREFIX=$system OPAL_LIBDIR=$system/lib OPAL_PKGLIBDIR=$system/lib/openmpi
export OPAL_PKGDATADIR=$system/openmpi OPAL_SYSCONFDIR=$system/etc
export OMPI_MCA_mca_base_param_files=$system/etc/openmpi-mca-params.conf
export OMPI_MCA_mca_base_component_path=$system/lib/openmpi
export PMIX_INSTALL_PREFIX=$system PMIX_MCA_mca_base_component_path=$system/lib/pmix
export PMIX_MCA_mca_base_component_show_load_errors=0
[ "$(id -u)" -ne 0 ] || export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
ENVIRONMENT
mv "$partial" "$folder"
echo "$folder: $(du -sh "$folder" | cut -f 1); use it with  . $folder/env.sh"
