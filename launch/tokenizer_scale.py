#!/usr/bin/env python3
"""How fast, and in how much memory, a large catalogue becomes semantic IDs.

  launch/tokenizer_scale.py --items 10000000 --output /data/scale

Draws a synthetic catalogue with two feature sources of --dim columns (unless the corpus is there), builds a tokenizer of
three levels with --iterations k-means iterations each, and measures the rate of matrix products on the same machine
right after. Prints and writes to OUTPUT/scale.json: items per second of a pass over the items by level, what share of the matrix
products' rate its distances take (2 x columns x codes operations an item), and the largest memory of a rank.
"""
import argparse
import json
import resource
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BIN = ROOT / "build/cpu/bin"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=256, help="columns of each of the two sources")
    parser.add_argument("--codes", type=int, default=256, help="codes of each of the three levels")
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--ranks", type=int, default=2, help="MPI ranks of the build, with a thread each")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def run(*command):
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True)


def main():
    arguments = parse_arguments()
    output = arguments.output
    corpus, report, kernels = output / "corpus", output / "report.json", output / "kernels.json"
    if not corpus.exists():
        synthetic = {"num_items": arguments.items, "num_users": 1000, "content_dim": arguments.dim,
                     "style_dim": arguments.dim}
        settings = [part for key, value in synthetic.items() for part in ("--set", f"synthetic.{key}={value}")]
        run(BIN / "mirabelle-data", "synth", "--output", corpus, *settings)
    run(ROOT / "launch/mpirun.sh", arguments.ranks, BIN / "mirabelle-tokenizer-build", "--set", f"data.corpus={corpus}", "--set", f"tokenizer.file={output}/t.h5",
        "--set", f"tokenizer.levels={[arguments.codes] * 3}", "--set", f"tokenizer.iterations={arguments.iterations}",
        "--set", "tokenizer.tolerance=0", "--json", report)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20  # of the largest child, the build or the drawing
    run(BIN / "mirabelle-bench", "kernels", "--set", "backend=cpu", "--json", kernels)
    built, limits = json.loads(report.read_text()), json.loads(kernels.read_text())["limits"]
    flops = 2 * 2 * arguments.dim * arguments.codes
    rates = [level["items_per_second"] for level in built["levels"]]
    result = {"items": built["num_items"], "columns": 2 * arguments.dim, "codes": arguments.codes,
              "ranks": arguments.ranks, "seconds": built["seconds"], "peak_gib": peak, "limits": limits,
              "levels": [{"items_per_second": rate, "fraction_of_products": rate * flops / limits["product_flops_per_second"]}
                         for rate in rates]}
    (output / "scale.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
