#!/usr/bin/env bash
# Checks everything that needs a GPU, on a machine that has one: the tests, training against the CPU
# backend step by step, several ranks on one GPU, the sanitizer. Writes report.json and report.md.
set -uo pipefail
usage() {
  cat << 'TEXT'
usage: launch/validate_gpu.sh [--output DIR] [--data DIR] [--only STEP[,STEP...]] [--preset NAME]

  --output DIR   reports and logs (runs/validate_gpu)
  --data DIR     also trains on this data set (Amazon Beauty)
  --only STEPS   of: tests tokenizer losses layouts ranks train sanitizer benchmark
  --preset NAME  the build to check (cuda)

Works in a source tree after launch/build.sh cuda, and in a folder made by launch/bundle.sh.
TEXT
}
output=runs/validate_gpu data='' preset=cuda only=tests,tokenizer,losses,layouts,ranks,train,sanitizer,benchmark
while [[ $# -gt 0 ]]; do
  case $1 in
    --help | -h) usage && exit 0 ;;
    --output | --data | --only | --preset)
      [[ $# -ge 2 ]] || { echo "validate_gpu.sh: $1 needs a value" >&2; exit 2; }
      declare "${1#--}=$2"
      shift 2
      ;;
    *) echo "validate_gpu.sh: unknown argument '$1' (--help lists all)" >&2; exit 2 ;;
  esac
done
[[ -z $data || -d $data ]] || { echo "validate_gpu.sh: --data: '$data' is not a folder" >&2; exit 2; }
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[[ ! -f $root/env.sh ]] || . "$root/env.sh" # a bundle
bin=$root/build/$preset/bin
[[ -x $bin/mirabelle-train ]] || {
  echo "validate_gpu.sh: $bin/mirabelle-train is not there; launch/build.sh $preset makes it" >&2
  exit 2
}
mkdir -p "$output"
device=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader 2> /dev/null | head -n 1)
[[ -n $device ]] || {
  echo "validate_gpu.sh: this machine has no GPU (nvidia-smi lists none); nothing was checked" >&2
  exit 3
}

# One line per check goes to the table and to the JSON: name, passed or failed, what was seen.
checks=()
record() { # record NAME STATUS DETAIL
  checks+=("$1"$'\t'"$2"$'\t'"$3")
  printf '%-34s %-7s %s\n' "$1" "$2" "$3"
}
logged() { # logged NAME COMMAND...: its output goes to a log
  local log=$output/$1.log
  shift
  "$@" > "$log" 2>&1
}
mpirun() { "$root/launch/mpirun.sh" "$@"; }
wants() { [[ ,$only, == *,$1,* ]]; }
train=$bin/mirabelle-train

check_tests() {
  local test name ranks passed skipped
  for test in "$bin"/*_test; do
    name=$(basename "$test")
    [[ $("$test" --gtest_list_tests --gtest_filter='*cuda*:*Cuda*:*gpu*:*Gpu*:*nccl*' 2> /dev/null) ]] || continue
    for ranks in 1 $([[ $name == @(communicator|rank_independence)_test ]] && echo "2 4"); do
      if logged "$name.$ranks" mpirun "$ranks" env OMP_NUM_THREADS=2 "$test" \
        --gtest_filter='*cuda*:*Cuda*:*gpu*:*Gpu*:*nccl*'; then
        status=passed
      else
        status=failed
      fi
      passed=$(sed -n 's/^\[  PASSED  \] \([0-9]*\) test.*/\1/p' "$output/$name.$ranks.log" | head -n 1)
      skipped=$(sed -n 's/^\[  SKIPPED \] \([0-9]*\) test.*/\1/p' "$output/$name.$ranks.log" | head -n 1)
      record "$name, $ranks ranks" "$status" "${passed:-0} passed, ${skipped:-0} skipped, \
$(grep -c '^\[  FAILED  \].*(' "$output/$name.$ranks.log") failed"
    done
  done
}

# The synthetic world and its tokenizer, for all that follows.
prepare() {
  [[ -f $output/tokenizer.h5 ]] && return
  logged synth "$bin/mirabelle-data" synth --output "$output/corpus" &&
    logged tokenizer mpirun 1 "$bin/mirabelle-tokenizer-build" \
      --config "$root/configs/synthetic/semantic_ids.yaml" \
      --set "data.corpus=$output/corpus" --set "tokenizer.file=$output/tokenizer.h5"
}
build_tokenizer() { # build_tokenizer NAME RANKS BACKEND: its report goes to $output/tokenizer.NAME.json
  logged "tokenizer.$1" mpirun "$2" "$bin/mirabelle-tokenizer-build" \
    --config "$root/configs/synthetic/semantic_ids.yaml" --set "backend=$3" \
    --set "data.corpus=$output/corpus" --set "tokenizer.file=$output/tokenizer.check.h5" \
    --set parallel.communicator=staged --json "$output/tokenizer.$1.json"
}
last_error() { # of the last level, in the report of build NAME
  grep -o '"relative_error": *[0-9.e-]*' "$output/tokenizer.$1.json" | tail -n 1 | grep -o '[0-9.e-]*$'
}
check_tokenizer() {
  local cpu gpu status=failed
  prepare && build_tokenizer cpu 1 cpu && build_tokenizer gpu 1 cuda && build_tokenizer gpu2 2 cuda
  cpu=$(last_error cpu) gpu=$(last_error gpu)
  # Products that differ in their last bits may send some items elsewhere.
  awk "BEGIN { d = $gpu / $cpu - 1; exit !(d * d < 0.02 * 0.02) }" 2> /dev/null && status=passed
  record "tokenizer, GPU against CPU" "$status" "relative error $gpu and $cpu"
  status=failed
  cmp -s "$output/tokenizer.gpu.json" "$output/tokenizer.gpu2.json" && status=passed
  record "tokenizer, 2 ranks on one GPU" "$status" "all codes' counts and errors, bit by bit"
}
run_steps() { # run_steps NAME RANKS ARGUMENT...: 50 steps into $output/NAME
  local name=$1 ranks=$2
  shift 2
  logged "$name" mpirun "$ranks" "$train" --config "$root/configs/synthetic/semantic_ids.yaml" \
    --set "data.corpus=$output/corpus" --set "tokenizer.file=$output/tokenizer.h5" \
    --set "training.output=$output/$name" --set training.resume=false --set training.max_steps=50 \
    --set training.fit_steps_to_wall_time=false --set training.max_wall_seconds=0 \
    --set training.warmup_steps=10 --set training.micro_batch_tokens=1024 \
    --set training.global_batch_tokens=4096 --set training.log_every_steps=1 \
    --set training.validation_every_steps=0 --set training.checkpoint_every_steps=0 "$@"
}
losses_of() { sed -n 's/.*"loss":\([^,}]*\).*/\1/p' "$output/$1/metrics.jsonl"; }
# The largest relative difference of two runs' losses, and their number.
difference() {
  paste <(losses_of "$1") <(losses_of "$2") | awk '
    NF == 2 { d = ($1 - $2) / $2; if (d < 0) d = -d; if (d > worst) worst = d; ++n }
    END { printf "%.3g %d", worst, n }'
}
compare() { # compare NAME RUN REFERENCE LIMIT
  local worst steps
  read -r worst steps <<< "$(difference "$2" "$3")"
  if [[ $steps == 50 ]] && awk "BEGIN { exit !($worst <= $4) }"; then
    record "$1" passed "50 losses within $worst (limit $4)"
  else
    record "$1" failed "$steps losses, largest relative difference $worst (limit $4)"
  fi
}

check_losses() {
  prepare && run_steps cpu 1 --set backend=cpu && run_steps gpu 1 --set backend=cuda
  compare "float32 losses, GPU against CPU" gpu cpu 1e-4
  run_steps gpu_bf16 1 --set backend=cuda --set training.dtype=bfloat16
  compare "bfloat16 losses against float32" gpu_bf16 cpu 2e-2
}
# In the reproducible mode every layout gives the same bits; ranks share the GPU.
check_layouts() {
  local tensor=(--set parallel.tensor_parallel_size=2)
  reproducible() { # reproducible NAME RANKS ARGUMENT...
    local name=$1 ranks=$2
    shift 2
    run_steps "$name" "$ranks" --set backend=cuda --set training.dtype=bfloat16 \
      --set training.reproducible=true --set parallel.communicator=staged "$@"
  }
  prepare && reproducible alone 1
  reproducible again 1
  compare "the same run twice" again alone 0
  reproducible data2 2 --set parallel.zero_stage=1
  compare "2 data-parallel ranks, ZeRO 1" data2 alone 0
  reproducible tensor2 2 "${tensor[@]}"
  compare "2 tensor-parallel ranks" tensor2 alone 0
  reproducible grid 4 "${tensor[@]}" --set parallel.zero_stage=2 \
    --set parallel.sequence_parallel=true --set training.recompute=block
  compare "2 x 2 ranks, sequence-parallel, ZeRO 2, recompute" grid alone 0
  run_nccl 2 grid "${tensor[@]}" --set parallel.zero_stage=0
  compare "2 tensor-parallel ranks, NCCL" nccl2 alone 0
}
check_ranks() {
  local ranks
  prepare && { [[ -f $output/gpu/metrics.jsonl ]] || run_steps gpu 1 --set backend=cuda; }
  for ranks in 2 4; do
    run_steps "staged$ranks" "$ranks" --set backend=cuda --set parallel.communicator=staged
    compare "$ranks ranks on one GPU, staged" "staged$ranks" gpu 1e-4
    run_nccl "$ranks" gpu
    compare "$ranks ranks on one GPU, NCCL" "nccl$ranks" gpu 1e-4
  done
}
# NCCL refuses two ranks on one GPU, unless it takes them for ranks on different hosts.
run_nccl() { # run_nccl RANKS NAME ARGUMENT...: with the configuration of run NAME
  local ranks=$1 config=$output/$2/config.yaml
  shift 2
  export NCCL_SOCKET_IFNAME=lo NCCL_IB_DISABLE=1
  local wrapper=$output/own_host.sh
  printf '#!/bin/sh\nexport NCCL_HOSTID=rank$OMPI_COMM_WORLD_RANK\nexec "$@"\n' > "$wrapper"
  chmod +x "$wrapper"
  rm -rf "$output/nccl$ranks"
  logged "nccl$ranks" timeout 120 "$root/launch/mpirun.sh" "$ranks" "$wrapper" \
    "$bin/mirabelle-train" --config "$config" --set "training.output=$output/nccl$ranks" \
    --set parallel.communicator=nccl "$@"
}
check_train() {
  prepare
  local source
  for source in synthetic ${data:+data}; do
    local folder=$output/$source config=$root/configs/synthetic/semantic_ids.yaml
    mkdir -p "$folder"
    if [[ $source == data ]]; then
      config=$root/configs/quickstart.yaml
      logged import "$bin/mirabelle-data" import "$data" --output "$folder/corpus"
    else
      ln -sfn "$(realpath "$output/corpus")" "$folder/corpus"
    fi
    logged "$source.tokenizer" mpirun 1 "$bin/mirabelle-tokenizer-build" --config "$config" \
      --set "data.corpus=$folder/corpus" --set "tokenizer.file=$folder/tokenizer.h5"
    logged "$source.train" mpirun 1 "$train" --config "$config" --set backend=cuda \
      --set "data.corpus=$folder/corpus" --set "tokenizer.file=$folder/tokenizer.h5" \
      --set "training.output=$folder/train" --set training.max_wall_seconds=60 \
      --set training.dtype=bfloat16 --set training.resume=false
    if logged "$source.evaluate" mpirun 1 "$bin/mirabelle-evaluate" --set backend=cuda \
      --set "evaluation.checkpoint=$folder/train" --json "$folder/result.json"; then
      record "a minute on the $source world" passed "$(grep -E '^(model|ceiling|Markov)' "$output/$source.evaluate.log" |
        awk '{printf "%s recall@10 %s; ", $1, $4}')"
    else
      record "a minute on the $source world" failed "$(tail -n 1 "$output/$source.evaluate.log")"
    fi
  done
}
# Memory errors in every test of kernels, races in those whose threads share memory.
check_sanitizer() {
  local sanitizer tool tests test log
  sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2> /dev/null)
  [[ -n $sanitizer ]] || { record "compute-sanitizer" failed "not installed"; return; }
  for tool in memcheck racecheck; do
    tests="attention beam cross_entropy embedding nearest_code reduce rms_norm top_k"
    [[ $tool == racecheck ]] || tests+=" adamw attention_cudnn_gpu batch_queue code_assigner convert key_value_cache matmul precision rotary_embedding swiglu"
    for test in $tests; do
      log=sanitizer.$tool.$test
      if logged "$log" timeout 300 "$sanitizer" --tool "$tool" --error-exitcode 9 "$bin/${test}_test" \
        --gtest_filter='*cuda*:-*Large*'; then
        record "$tool, ${test}_test" passed "no error"
      else
        record "$tool, ${test}_test" failed "$(grep -m 1 -E '=========|FAILED' "$output/$log.log")"
      fi
    done
  done
}
check_benchmark() {
  run_benchmark kernels kernels --tokens 16384 --sequence 1024 --hidden 2048 --heads 16 --ffn 5632 --vocab 32768
  run_benchmark training training --model 125M --model 0.5B --model 1.5B
  run_benchmark skewed training --model 125M --model 0.5B --sequence 4096 --skewed
  run_benchmark beam_search beam-search
}
run_benchmark() { # run_benchmark NAME ARGUMENT...
  local name=$1
  shift
  if logged "benchmark.$name" "$bin/mirabelle-bench" "$@" --set backend=cuda --dtype bfloat16 \
    --json "$output/benchmark.$name.json"; then
    record "benchmark, $name" passed "benchmark.$name.log, benchmark.$name.json"
  else
    record "benchmark, $name" failed "$(tail -n 1 "$output/benchmark.$name.log")"
  fi
}

for step in tests tokenizer losses layouts ranks train sanitizer benchmark; do
  wants "$step" && "check_$step"
done

escaped() { sed 's/\\/\\\\/g; s/"/\\"/g; s/\t/ /g' <<< "$1"; }
{
  printf '{\n  "device": "%s",\n  "checks": [' "$(escaped "$device")"
  separator=$'\n'
  for check in "${checks[@]}"; do
    IFS=$'\t' read -r name status detail <<< "$check"
    printf '%s    {"name": "%s", "status": "%s", "detail": "%s"}' "$separator" "$(escaped "$name")" \
      "$status" "$(escaped "$detail")"
    separator=$',\n'
  done
  printf '\n  ]\n}\n'
} > "$output/report.json"
{
  printf '# GPU validation\n\n%s, mirabelle %s\n\n| check | | |\n| --- | --- | --- |\n' "$device" \
    "$("$train" --version | awk '{print $NF}')"
  for check in "${checks[@]}"; do
    IFS=$'\t' read -r name status detail <<< "$check"
    printf '| %s | %s | %s |\n' "$name" "$status" "$detail"
  done
  for log in "$output"/benchmark.*.log; do
    [[ ! -f $log ]] || printf '\n## %s\n\n```\n%s\n```\n' "$(basename "$log" .log)" "$(grep -v ' info ' "$log")"
  done
} > "$output/report.md"
failed=$(printf '%s\n' "${checks[@]}" | awk -F '\t' '$2 == "failed"' | wc -l)
echo "$((${#checks[@]} - failed)) passed, $failed failed; $output/report.md"
((failed == 0))
