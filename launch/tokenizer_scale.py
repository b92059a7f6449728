#!/usr/bin/env python3
"""How fast, and in how much memory, a large catalogue becomes semantic IDs.

  launch/tokenizer_scale.py --items 10000000 --output /data/scale
  launch/tokenizer_scale.py --items 10000000 --output /data/scale --kind rq_vae

Draws a synthetic catalogue with two feature sources of --dim columns (unless the corpus is there), builds a tokenizer
of three levels, by residual k-means of --iterations iterations each or by an RQ-VAE of --steps steps (without the
contrastive loss), and measures the rate of matrix products on the same machine right after. Prints and writes to
OUTPUT/KIND.json the seconds of the build, the memory of all ranks (that of the largest, times their number), and for
each part its rate in items per second and what share of the matrix products' rate its operations take:

  level      a pass of k-means over the items; 2 x columns x codes operations an item (the distances)
  training   steps of the RQ-VAE; 6 operations an item and weight
  encoding   of all items by the trained RQ-VAE, codes included; 2 operations an item and weight of encoders and
             codebooks
"""
import argparse
import json
import os
import subprocess
from pathlib import Path

from experiment import ROOT, as_settings, build as build_programs, write_file

BIN = ROOT / "build/cpu/bin"
HIDDEN_SIZES, SOURCE_SIZE, CODEBOOK_DIM = [512, 256], 128, 64  # of the RQ-VAE


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=256, help="columns of each of the two sources")
    parser.add_argument("--codes", type=int, default=256, help="codes of each of the three levels")
    parser.add_argument("--kind", choices=["residual_kmeans", "rq_vae"], default="residual_kmeans")
    parser.add_argument("--iterations", type=int, default=5, help="of k-means")
    parser.add_argument("--steps", type=int, default=500, help="of the RQ-VAE, of 1024 items")
    parser.add_argument("--ranks", type=int, default=2, help="MPI ranks of the build, with a thread each")
    parser.add_argument("--output", type=Path, required=True)
    return parser.parse_args()


def run(*command):
    print("+", *command, flush=True)
    subprocess.run([str(part) for part in command], check=True)


def draw_corpus(arguments, corpus):
    if corpus.exists():
        manifest = json.loads((corpus / "manifest.json").read_text())
        found = manifest["items"], [source["dim"] for source in manifest["features"]]
        if found != (arguments.items, [arguments.dim] * 2):
            raise SystemExit(f"{corpus} has {found[0]} items with features of {found[1]} columns, not what was asked")
        return
    run(BIN / "mirabelle-data", "synth", "--output", corpus,
        *as_settings({"synthetic.num_items": arguments.items, "synthetic.num_users": 100,
                      "synthetic.content_dim": arguments.dim, "synthetic.style_dim": arguments.dim}))


def build(arguments, corpus, report):
    """The build's report, and the bytes of its largest process."""
    values = {"data.corpus": str(corpus), "tokenizer.file": str(report.with_suffix(".h5")),
              "tokenizer.kind": arguments.kind, "tokenizer.levels": [arguments.codes] * 3,
              "tokenizer.iterations": arguments.iterations, "tokenizer.tolerance": 0,
              "rq_vae.hidden_sizes": HIDDEN_SIZES, "rq_vae.source_size": SOURCE_SIZE,
              "rq_vae.codebook_dim": CODEBOOK_DIM, "rq_vae.batch_items": 1024,
              "rq_vae.steps": arguments.steps, "rq_vae.contrastive_weight": 0}
    command = [ROOT / "launch/mpirun.sh", arguments.ranks, BIN / "mirabelle-tokenizer-build", "--json", report,
               *as_settings(values)]
    print("+", *command, flush=True)
    process = subprocess.Popen([str(part) for part in command])
    _, status, usage = os.wait4(process.pid, 0)  # of this build alone, not of the drawing before it
    if status:
        raise SystemExit("the build failed")
    return json.loads(report.read_text()), usage.ru_maxrss * 1024


def parts(arguments, report):
    """Name, items per second, and operations an item, of every part of the build."""
    if arguments.kind == "residual_kmeans":
        operations = 2 * 2 * arguments.dim * arguments.codes
        return [(f"level {i}", level["items_per_second"], operations) for i, level in enumerate(report["levels"])]
    layers = [arguments.dim, *HIDDEN_SIZES]
    inner = sum(a * b for a, b in zip(layers, layers[1:]))
    encoders = 2 * (inner + HIDDEN_SIZES[-1] * SOURCE_SIZE + SOURCE_SIZE * CODEBOOK_DIM)
    decoders = 2 * (inner + HIDDEN_SIZES[-1] * CODEBOOK_DIM)
    codebooks = 3 * arguments.codes * CODEBOOK_DIM
    return [("training", report["rq_vae"]["items_per_second"], 6 * (encoders + decoders)),
            ("encoding", report["rq_vae"]["encoded_items_per_second"], 2 * (encoders + codebooks))]


def main():
    arguments = parse_arguments()
    corpus, kernels = arguments.output / "corpus", arguments.output / "kernels.json"
    build_programs("data", "tokenizer-build", "bench")
    draw_corpus(arguments, corpus)
    report, largest = build(arguments, corpus, arguments.output / "report.json")
    run(BIN / "mirabelle-bench", "kernels", "--set", "backend=cpu", "--json", kernels)
    limits = json.loads(kernels.read_text())["limits"]
    result = {"items": report["num_items"], "columns": 2 * arguments.dim, "codes": [arguments.codes] * 3,
              "kind": arguments.kind, "ranks": arguments.ranks, "seconds": report["seconds"],
              "memory_gib": arguments.ranks * largest / 2**30, "limits": limits,
              "parts": [{"name": name, "items_per_second": rate,
                         "fraction_of_products": rate * operations / limits["product_flops_per_second"]}
                        for name, rate, operations in parts(arguments, report)]}
    write_file(arguments.output / f"{arguments.kind}.json", json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
