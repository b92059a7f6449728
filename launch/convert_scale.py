#!/usr/bin/env python3
"""Times mirabelle-convert on a synthetic model of about a billion parameters, beside copying the
same file, and reads the memory that it takes.

    launch/convert_scale.py [--bin build/cpu/bin] [--folder FOLDER] [--layers N] [--json FILE]

Writes about 20 GiB under FOLDER (default: the system's temporary folder) and removes it again. Each
command runs --rounds times, in turns with `cp`, whose time includes `sync` of the copy as that of
mirabelle-convert does.
"""

import argparse
import json
import pathlib
import random
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time

CONFIG = {
    "architectures": ["LlamaForCausalLM"], "vocab_size": 65536, "hidden_size": 2048,
    "intermediate_size": 5632, "num_attention_heads": 32, "num_key_value_heads": 8,
    "tie_word_embeddings": True, "max_position_embeddings": 4096,
}


def shapes(layers):
    hidden, ffn = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    keys = CONFIG["num_key_value_heads"] * hidden // CONFIG["num_attention_heads"]
    yield "model.embed_tokens.weight", [CONFIG["vocab_size"], hidden]
    for layer in range(layers):
        name = f"model.layers.{layer}."
        yield name + "input_layernorm.weight", [hidden]
        yield name + "post_attention_layernorm.weight", [hidden]
        yield name + "self_attn.q_proj.weight", [hidden, hidden]
        yield name + "self_attn.k_proj.weight", [keys, hidden]
        yield name + "self_attn.v_proj.weight", [keys, hidden]
        yield name + "self_attn.o_proj.weight", [hidden, hidden]
        yield name + "mlp.gate_proj.weight", [ffn, hidden]
        yield name + "mlp.up_proj.weight", [ffn, hidden]
        yield name + "mlp.down_proj.weight", [hidden, ffn]
    yield "model.norm.weight", [hidden]


def write_model(folder, layers):
    """Returns the number of parameters. The values repeat, which no program profits from."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "num_hidden_layers": layers}))
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape in shapes(layers):
        begin, end = end, end + 4 * (shape[0] * (shape[1] if len(shape) > 1 else 1))
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    block = struct.pack("<1048576f", *(random.gauss(0, 0.02) for _ in range(1 << 20)))
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for begin in range(0, end, len(block)):
            file.write(block[:end - begin])
    return end // 4


def timed(*command):
    start = time.monotonic()
    subprocess.run([str(part) for part in command], check=True, capture_output=True)
    return time.monotonic() - start


def peak_gib(*command):
    """Of the command, as the kernel counts it for a child process."""
    code = ("import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, "
            "stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)")
    done = subprocess.run([sys.executable, "-c", code, *map(str, command)], check=True,
                          capture_output=True, text=True)
    return int(done.stdout) / (1 << 20)


def measure(name, command, output, source, rounds):
    copy = output.with_suffix(".copy")
    seconds, copies = [], []
    for _ in range(rounds):
        shutil.rmtree(copy, ignore_errors=True)
        copies.append(timed("sh", "-c", f"cp -r '{source}' '{copy}' && sync -f '{copy}'"))
        shutil.rmtree(copy)
        shutil.rmtree(output, ignore_errors=True)
        seconds.append(timed(*command))
    shutil.rmtree(output)
    memory = peak_gib(*command)
    ratio = statistics.median(a / b for a, b in zip(seconds, copies))
    print(f"{name:28} {statistics.median(seconds):8.1f} s {statistics.median(copies):8.1f} s "
          f"{ratio:8.2f} {memory:8.2f} GiB", flush=True)
    return {"seconds": seconds, "copy_seconds": copies, "ratio": ratio, "peak_gib": memory}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--bin", type=pathlib.Path,
                        default=pathlib.Path(__file__).resolve().parents[1] / "build/cpu/bin")
    parser.add_argument("--folder", type=pathlib.Path)
    parser.add_argument("--layers", type=int, default=20, help="20: 1.03 billion parameters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path)
    arguments = parser.parse_args()
    convert = arguments.bin / "mirabelle-convert"
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = pathlib.Path(name)
        parameters = write_model(folder / "hf", arguments.layers)
        print(f"{parameters:,} parameters, {4 * parameters / 2**30:.2f} GiB in float32\n")
        print(f"{'':28} {'convert':>10} {'copy':>10} {'ratio':>8} {'memory':>12}")
        results = {"parameters": parameters}
        native = folder / "native"
        results["import"] = measure("import, float32", [convert, "import", folder / "hf", native],
                                    native, folder / "hf", arguments.rounds)
        for dtype in ("float32", "bfloat16"):
            output = folder / dtype
            results[f"export_{dtype}"] = measure(
                f"export, {dtype}", [convert, "export", native, output, "--dtype", dtype], output,
                native, arguments.rounds)
            shutil.rmtree(output)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
