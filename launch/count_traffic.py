#!/usr/bin/env python3
"""Counts what ranks send in a training step, outside of Mirabelle: Open MPI's pml/monitoring component
counts the bytes of every message. A small model trains N and then 2 N steps in each layout; the
difference is compared with mirabelle-train --plan and with the textbook's least for the algorithms
that are used. Exit status 1 if any two differ by more than 1 % and 64 KiB; 77 if this Open MPI cannot
count.

    count_traffic.py --bin build/cpu/bin [LAYOUT...]

A LAYOUT is like tensor=2,data=2,zero=1,sequence=1,kv_heads=2.
"""

import argparse
import glob
import json
import os
import subprocess
import sys
import tempfile

LAYOUTS = [
    "data=4,zero=0",
    "data=4,zero=1",
    "data=4,zero=2",
    "tensor=4",
    "tensor=4,sequence=1",
    "tensor=4,kv_heads=2",
    "tensor=2,data=2,zero=1",
    "tensor=2,data=2,zero=2,sequence=1",
]
HIDDEN, LAYERS, HEADS, FFN, ITEMS = 256, 4, 4, 768, 1000
PARTS, PART_TOKENS, SEQUENCE_TOKENS = 8, 256, 32
STEPS = 2
FLOAT_BYTES = 4


def parse_layout(text):
    layout = {"tensor": 1, "data": 1, "zero": 0, "sequence": 0, "kv_heads": HEADS}
    for part in text.split(","):
        key, value = part.split("=")
        if key not in layout:
            sys.exit(f"count_traffic.py: '{key}' in {text}, wanted one of {', '.join(layout)}")
        layout[key] = int(value)
    return layout


def textbook_bytes(layout, tokens):
    """Sent by a rank in a step with `tokens` tokens in each part. A ring or a direct exchange of n
    bytes sends (p - 1) / p n for a reduce-scatter or an all-gather, twice that for an all-reduce."""
    tensor, data = layout["tensor"], layout["data"]
    head_dim = HIDDEN // HEADS
    copies = max(1, tensor // layout["kv_heads"])  # of a key/value head
    layer = 2 * HIDDEN**2 + 2 * HIDDEN * layout["kv_heads"] * copies * head_dim + 3 * HIDDEN * FFN
    norms = (2 * LAYERS + 1) * HIDDEN
    share = (LAYERS * layer + ITEMS * HIDDEN) / tensor + norms  # parameters of a rank
    parts = PARTS // data

    # Shoeybi et al. 2019: two sums a layer forward and two backward, and one at either end. Under
    # sequence parallelism (Korthikanti et al. 2022) a sum is a reduce-scatter and a later gather; two
    # gathers more a layer bring the norms' outputs back for the weights' gradients.
    phase = (tensor - 1) / tensor * tokens * HIDDEN * FLOAT_BYTES
    phases = 2 * (4 * LAYERS + 2) + (2 * LAYERS if layout["sequence"] else 0)
    shared = 2 * LAYERS * head_dim * HIDDEN * 2 * (copies - 1) / copies
    if layout["sequence"]:
        shared += norms * 2 * (tensor - 1) / tensor
    final_passes = parts if layout["zero"] == 2 and data > 1 else 1

    # Rajbhandari et al. 2020; gradients of every part by themselves with stage 2
    reductions = final_passes if layout["zero"] == 2 else 1
    gradients = (data - 1) / data * share * FLOAT_BYTES
    return parts * phases * phase + final_passes * shared * FLOAT_BYTES + (reductions + 1) * gradients


class Runs:
    def __init__(self, binaries, folder):
        self.binaries = os.path.abspath(binaries)
        self.folder = folder
        self.launcher = os.path.join(os.path.dirname(os.path.abspath(__file__)), "mpirun.sh")

    def run(self, command, **environment):
        result = subprocess.run(command, cwd=self.folder, env={**os.environ, **environment},
                                capture_output=True, text=True)
        if result.returncode != 0:
            sys.exit(f"count_traffic.py: {' '.join(command)}:\n{result.stdout}{result.stderr}")

    def program(self, name):
        return os.path.join(self.binaries, name)

    def make_corpus(self):
        """Histories of SEQUENCE_TOKENS training events, so that all parts are full."""
        events = SEQUENCE_TOKENS + 2  # one for validation, one for the test
        settings = {"num_users": 4 * STEPS * PARTS * PART_TOKENS // SEQUENCE_TOKENS,
                    "num_items": ITEMS, "branching": "[8, 8]", "min_events": events,
                    "max_events": events}
        self.run([self.program("mirabelle-data"), "synth", "--output", "corpus"] +
                 [f"--set=synthetic.{key}={value}" for key, value in settings.items()])
        self.run([self.program("mirabelle-tokenizer-build")] + self.options(parse_layout("tensor=1")))

    def options(self, layout, **training):
        training = {"output": "run", "seed": 1, "micro_batch_tokens": PART_TOKENS,
                    "global_batch_tokens": PARTS * PART_TOKENS,
                    "max_sequence_tokens": SEQUENCE_TOKENS, "log_every_steps": 1,
                    "validation_every_steps": 0, "checkpoint_every_steps": 0,
                    "sentinel_every_steps": 0, **training}
        sections = {
            "data": {"corpus": "corpus"},
            "tokenizer": {"file": "tokenizer.h5", "kind": "item_id"},
            "model": {"hidden_size": HIDDEN, "num_layers": LAYERS, "num_heads": HEADS,
                      "num_kv_heads": layout["kv_heads"], "ffn_hidden_size": FFN},
            "training": training,
            "parallel": {"tensor_parallel_size": layout["tensor"],
                         "zero_stage": layout["zero"],
                         "sequence_parallel": "true" if layout["sequence"] else "false"},
        }
        options = ["--set=backend=cpu"]
        for section, values in sections.items():
            options += [f"--set={section}.{key}={value}" for key, value in values.items()]
        return options

    def bytes_sent(self, layout, steps):
        """By all ranks together in a run of so many steps."""
        for old in glob.glob(os.path.join(self.folder, "monitor.*.prof")):
            os.remove(old)
        ranks = layout["tensor"] * layout["data"]
        self.run([self.launcher, str(ranks), self.program("mirabelle-train")] +
                 self.options(layout, max_steps=steps, output=f"run{steps}", resume="false"),
                 OMPI_MCA_pml_monitoring_enable="1", OMPI_MCA_pml_monitoring_enable_output="3",
                 OMPI_MCA_pml_monitoring_filename=os.path.join(self.folder, "monitor"))
        total, files = 0, glob.glob(os.path.join(self.folder, "monitor.*.prof"))
        for name in files:
            for line in open(name):
                fields = line.split()  # E, from, to, bytes, "bytes", messages, ...: point to point
                if fields and fields[0] in "EI" and fields[4:5] == ["bytes"]:
                    total += int(fields[3])
        if len(files) != ranks or total == 0:
            print("count_traffic.py: this Open MPI has no pml/monitoring", file=sys.stderr)
            sys.exit(77)
        return total

    def counted(self, layout):
        """Sent by a rank in a step, on average, and the tokens of a part."""
        once, twice = (self.bytes_sent(layout, steps) for steps in (STEPS, 2 * STEPS))
        tokens = {}
        for line in open(os.path.join(self.folder, f"run{2 * STEPS}", "metrics.jsonl")):
            entry = json.loads(line)
            tokens[entry["step"]] = entry["tokens"]
        ranks = layout["tensor"] * layout["data"]
        return ((twice - once) / (STEPS * ranks),
                (tokens[2 * STEPS] - tokens[STEPS]) / (STEPS * PARTS))

    def planned(self, layout, tokens):
        ranks = layout["tensor"] * layout["data"]
        self.run([self.program("mirabelle-train"), "--plan", f"--world-size={ranks}",
                  f"--plan-part-tokens={round(tokens)}", "--json=plan.json"] + self.options(layout))
        plan = json.load(open(os.path.join(self.folder, "plan.json")))["plans"][0]
        return sum(entry["bytes"] for entry in plan["traffic"])


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bin", required=True, help="folder of the executables")
    parser.add_argument("layouts", nargs="*", default=LAYOUTS, metavar="LAYOUT")
    arguments = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        runs = Runs(arguments.bin, folder)
        runs.make_corpus()
        print(f"{'bytes sent by a rank in a step':36}{'counted':>13}{'planned':>13}{'':>9}"
              f"{'textbook':>13}")
        for text in arguments.layouts:
            layout = parse_layout(text)
            counted, tokens = runs.counted(layout)
            row = f"{text:36}{counted:13,.0f}"
            for expected in (runs.planned(layout, tokens), textbook_bytes(layout, tokens)):
                row += f"{expected:13,.0f}{100 * (counted / expected - 1):+8.2f}%"
                failed |= abs(counted - expected) > 0.01 * expected + (64 << 10)
            print(row, flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
