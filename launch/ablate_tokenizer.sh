#!/usr/bin/env bash
# What each part of the tokenizer is worth: builds tokenizers with one part switched off at a time, trains the
# same retrieval model on each with several seeds, and writes the table (docs/tokenizer_ablation.md).
#   launch/ablate_tokenizer.sh [--config FILE] [--data DIR] [--seeds S...] [--arms NAME...] (--help says more)
set -euo pipefail
exec python3 "$(dirname "${BASH_SOURCE[0]}")/ablate_tokenizer.py" "$@"
