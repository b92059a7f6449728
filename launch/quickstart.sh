#!/usr/bin/env bash
# From a data set to recall@k: installs, builds, imports, makes semantic IDs, trains, evaluates.
set -euo pipefail
usage() {
  cat << 'TEXT'
usage: launch/quickstart.sh [--data DIR] [--ranks N] [--minutes M] [--output DIR] [--json FILE]
                            [--seed S] [--config FILE]

  --data DIR     a data set: sequences.txt, items.jsonl, features/*.npy, as the README says;
                 without it a synthetic world is drawn, whose best possible recall is known
  --ranks N      MPI ranks (2)
  --minutes M    train for at most so long (3)
  --output DIR   everything goes there (runs/quickstart)
  --json FILE    also write the result there, for machines
  --seed S       of weights, dropout and data order (0)
  --config FILE  model and training (configs/quickstart.yaml; without --data
                 configs/synthetic/semantic_ids.yaml)

DIR holds afterwards: corpus/ tokenizer.h5 train/ result.json predictions.jsonl report.html
TEXT
}
fail() {
  echo "quickstart.sh: $1" >&2
  exit 2
}

data='' ranks=2 minutes=3 output=runs/quickstart json='' seed=0 config=''
while [[ $# -gt 0 ]]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --data | --ranks | --minutes | --output | --json | --seed | --config)
      [[ $# -ge 2 ]] || fail "$1 needs a value"
      declare "${1#--}=$2"
      shift 2
      ;;
    *) fail "unknown argument '$1' (--help lists all)" ;;
  esac
done
[[ $ranks =~ ^[1-9][0-9]*$ ]] || fail "--ranks wants a positive number, not '$ranks'"
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ && $minutes =~ [1-9] ]] ||
  fail "--minutes wants a positive number, not '$minutes'"
[[ $seed =~ ^[0-9]+$ ]] || fail "--seed wants a number, not '$seed'"
[[ -z $data || -d $data ]] || fail "--data: '$data' is not a folder"
[[ -z $config || -f $config ]] || fail "--config: '$config' is not a file"

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -z $config ]]; then
  config=$root/configs/quickstart.yaml
  [[ -n $data ]] || config=$root/configs/synthetic/semantic_ids.yaml
fi
# The ranks share the parts of a global batch evenly.
batch=()
micro=$(sed -n 's/^ *micro_batch_tokens: *\([0-9]*\).*/\1/p' "$config")
global=$(sed -n 's/^ *global_batch_tokens: *\([0-9]*\).*/\1/p' "$config")
if [[ -n $micro && -n $global ]] && ((global / micro % ranks != 0)); then
  batch=(--set "training.global_batch_tokens=$(((global / micro + ranks - 1) / ranks * ranks * micro))")
fi
step() { printf '\n== %s\n' "$*"; }
run() { "$root/launch/mpirun.sh" "$ranks" "$@"; }

if [[ -e $root/CMakeLists.txt ]]; then
  step "install and build"
  "$root/launch/build.sh" cpu mirabelle-data mirabelle-tokenizer-build mirabelle-train mirabelle-evaluate
  bin=$root/build/cpu/bin
else # of an installed package
  bin=$(dirname "$(command -v mirabelle-train)") || fail "mirabelle-train is not in PATH"
fi
mkdir -p "$output"
# Every program reads the same configuration; these are the paths and the time.
settings=(--config "$config" --set "data.corpus=$output/corpus" --set "tokenizer.file=$output/tokenizer.h5"
  --set "training.output=$output/train" --set "training.seed=$seed"
  --set "training.max_wall_seconds=$(awk "BEGIN { print 60 * $minutes }")" "${batch[@]}")

if [[ -n $data ]]; then
  step "import $data"
  "$bin/mirabelle-data" import "$data" --output "$output/corpus"
else
  step "draw a synthetic world"
  "$bin/mirabelle-data" synth --output "$output/corpus"
fi

step "build the tokenizer"
run "$bin/mirabelle-tokenizer-build" "${settings[@]}"

step "train for at most $minutes minutes on $ranks ranks"
run "$bin/mirabelle-train" "${settings[@]}" --set training.resume=false

step "evaluate on the test split"
run "$bin/mirabelle-evaluate" --config "$output/train/config.yaml" \
  --set "evaluation.checkpoint=$output/train" --json "$output/result.json" \
  --predictions "$output/predictions.jsonl" --report "$output/report.html"
[[ -z $json ]] || cp "$output/result.json" "$json"
printf '\nA picture of this run: %s\n' "$output/report.html"
