#!/usr/bin/env python3
"""Writes the seeds that the fuzz targets begin with, into tests/fuzz/seeds/TARGET: small valid files of each
format, and some that a reader must refuse, each for another reason. HDF5 files are written as tests/fuzz/hdf5_content.h reads them."""
import json
import pathlib
import shutil
import struct

SEEDS = pathlib.Path(__file__).resolve().parent / "seeds"
FORMATS = {"f32": "f", "f64": "d", "i32": "i", "i64": "q", "u8": "B"}


def write(target, name, content):
    folder = SEEDS / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


# --- HDF5 -----------------------------------------------------------------------------------------------------


def dataset(name, kind, values, shape=None):
    if isinstance(values, str):
        values = values.encode()
    extents = " ".join(map(str, shape or [len(values)]))
    return f"\n@{name} {kind} {extents}\n".encode() + struct.pack(f"<{len(values)}{FORMATS[kind]}", *values)


def strings(name, texts):
    offsets = [0]
    for text in texts:
        offsets.append(offsets[-1] + len(text))
    return dataset(name + "_bytes", "u8", "".join(texts)) + dataset(name + "_offsets", "i64", offsets)


def vocabulary(level_sizes):
    names, begins, sizes = ["special"], [0], [1]
    for level, size in enumerate(level_sizes):
        names.append(f"level_{level}")
        begins.append(begins[-1] + sizes[-1])
        sizes.append(size)
    end = begins[-1] + sizes[-1]
    return (strings("vocabulary/names", names + ["padding"]) + dataset("vocabulary/begin", "i64", begins + [end])
            + dataset("vocabulary/size", "i64", sizes + [-end % 512]))


def tokenizer(kind, level_sizes, codes, collisions="disambiguation_code", version=2):
    num_items = len(codes) // len(level_sizes)
    content = dataset("magic", "u8", "mirabelle tokenizer") + dataset("schema_version", "i64", [version])
    for name, text in [("kind", kind), ("collisions", collisions), ("dataset", "tiny"), ("split_hash", "abc"),
                       ("config", "tokenizer:\n  levels: [2, 3]\n"), ("report", "{}")]:
        content += dataset(name, "u8", text)
    content += dataset("table/codes", "i32", codes, [num_items, len(level_sizes)])
    content += dataset("table/level_sizes", "i64", level_sizes)
    content += dataset("table/priority", "i32", [0] * num_items)
    return content + strings("table/item_ids", [f"B{i}" for i in range(num_items)]) + vocabulary(level_sizes)


def features(codebook_dim=3):
    content = strings("features/names", ["title", "image"]) + dataset("features/dims", "i64", [2, 1])
    content += dataset("features/weights", "f64", [1, 0.5]) + dataset("features/means", "f64", [0.1, 0.2, 0.3])
    content += dataset("features/deviations", "f64", [1, 0, 2])
    for level, size in enumerate([2, 3]):
        content += dataset(f"codebooks/level_{level}", "f32", range(size * codebook_dim), [size, codebook_dim])
    return content


def rq_vae():
    content = dataset("rq_vae/hidden_sizes", "i64", [2]) + dataset("rq_vae/sizes", "i64", [2, 2, 2])
    shapes = {}
    for source, dim in enumerate([2, 1]):
        shapes |= {f"encoders.{source}.0.weight": [2, dim], f"encoders.{source}.1.weight": [2, 2],
                   f"projections.{source}": [2, 2], f"decoders.{source}.0.weight": [2, 2],
                   f"decoders.{source}.1.weight": [dim, 2], f"encoders.{source}.0.bias": [2],
                   f"decoders.{source}.0.bias": [2]}
    shapes |= {"head.0.weight": [2, 2], "head.1.weight": [2, 2], "head.0.bias": [2]}
    for name, shape in shapes.items():
        size = shape[0] * (shape[1] if len(shape) > 1 else 1)
        content += dataset("rq_vae/" + name, "f32", [0.5] * size, shape)
    return content


def corpus_seeds():
    shard = (dataset("offsets", "i64", [0, 4, 7]) + dataset("items", "i32", [0, 1, 2, 0, 2, 1, 0])
             + dataset("timestamps", "i64", range(7)) + dataset("columns/rating", "f32", range(7))
             + dataset("train_length", "i32", [2, 1]) + dataset("valid_length", "i32", [1, 1])
             + strings("user_ids", ["1", "22"]))
    catalogue = (strings("item_ids", ["a", "b", "c"]) + strings("titles", ["A", "", "C"])
                 + strings("metadata", ['{"item": "a"}', "{}", "{}"])
                 + dataset("features/title", "f32", range(6), [3, 2]))
    for what in range(10):
        write("corpus", f"part_{what}", f"{what} 2 3 7".encode() + shard + catalogue)
    write("corpus", "promised", b"9 2 3 7" + (shard + catalogue).replace(b" i32 7", b" i32? 7"))
    write("corpus", "compressed", b"9 2 3 7" + (shard + catalogue).replace(b" i64 3", b" i64z 3"))
    write("corpus", "links", b"9 2 3 7\n@columns file\nother.h5\n@items link\noffsets\n@titles_bytes same\nitems" + shard)
    write("corpus", "huge", b"9 2 3 7\n@offsets i64? 1152921504606846976\n@items u8? 9223372036854775807 4\n")


def tokenizer_seeds():
    with_numbers = tokenizer("residual_kmeans", [2, 3, 8], [0, 0, 0, 1, 2, 0, 1, 2, 1])
    write("tokenizer_file", "residual_kmeans", with_numbers + features())
    write("tokenizer_file", "rq_vae", tokenizer("rq_vae", [2, 3, 8], [0, 0, 0, 1, 2, 0, 1, 2, 1]) + features(2) + rq_vae())
    sizes = b"\n@rq_vae/sizes i64 3\n" + struct.pack("<3q", 2, 2, 1 << 40)
    write("tokenizer_file", "large_rq_vae", tokenizer("rq_vae", [2, 3, 8], [0, 0, 0]) + features(2) + sizes + rq_vae())
    dims = b"\n@features/dims i64 2\n" + struct.pack("<2q", (1 << 63) - 1, (1 << 63) - 1)
    write("tokenizer_file", "large_features", with_numbers + dims + features())
    write("tokenizer_file", "promised", (with_numbers + features()).replace(b" i32 3 3", b" i32? 1152921504606846976 3"))
    write("tokenizer_file", "item_id", tokenizer("item_id", [3], [0, 1, 2]))
    write("tokenizer_file", "shared", tokenizer("residual_kmeans", [2, 3], [0, 0, 1, 2], "shared") + features())
    write("tokenizer_file", "version_1", tokenizer("item_id", [3], [0, 1, 2], version=1))


# --- text and .npy --------------------------------------------------------------------------------------------


def npy_seeds():
    for kind, format, version in [("<f2", "e", 1), ("<f4", "f", 1), ("<f8", "d", 2)]:
        header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': (3, 2), }}".ljust(117) + "\n"
        length = struct.pack("<H" if version == 1 else "<I", len(header))
        content = b"\x93NUMPY" + bytes([version, 0]) + length + header.encode() + struct.pack(f"<6{format}", *range(6))
        write("npy", kind[1:], content)
    write("npy", "too_short", content[:-9])
    write("npy", "no_rows", content[: content.index(b"\n") + 1].replace(b"(3, 2)", b"(0, 9)"))


def safetensors_seeds():
    tensors, data = {"__metadata__": {"format": "pt"}}, b""
    for name, dtype, shape, width in [("a.weight", "F32", [2, 3], 4), ("b", "BF16", [5], 2), ("c", "F16", [2, 1, 2], 2),
                                      ("d", "I64", [], 8), ("e", "F32", [0, 7], 4)]:
        values = bytes(range(width))
        for extent in shape:
            values *= extent
        tensors[name] = {"dtype": dtype, "shape": shape, "data_offsets": [len(data), len(data) + len(values)]}
        data += values
    header = json.dumps(tensors).encode()
    write("safetensors", "dtypes", struct.pack("<Q", len(header)) + header + data)
    write("safetensors", "empty", struct.pack("<Q", 2) + b"{}")
    write("safetensors", "long_header", struct.pack("<Q", 1 << 62) + header)
    for name, entry in [("overlap", {"b": [2, 6]}), ("gap", {"b": [5, 9]}), ("outside", {"b": [4, 1 << 40]})]:
        tensors = {key: {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
                   for key, (begin, end) in ({"a": [0, 4]} | entry).items()}
        header = json.dumps(tensors).encode()
        write("safetensors", name, struct.pack("<Q", len(header)) + header + bytes(8))
    header = b'{"a": {"dtype": "F64", "shape": [0, 4611686018427387904, 4], "data_offsets": [0, 0]}}'
    write("safetensors", "shape", struct.pack("<Q", len(header)) + header)


def corpus_manifest_seeds():
    file = {"bytes": 4096, "sha256": "0" * 64}
    manifest = {"schema": "mirabelle-corpus", "schema_version": 1, "dataset": "tiny", "users": 60, "items": 40,
                "events": 700, "split": {"name": "leave_one_out"}, "split_hash": "0" * 64,
                "tie_policy": {"name": "file"}, "has_timestamps": True, "event_columns": ["rating"],
                "user_id_type": "integer", "item_id_type": "string",
                "features": [{"name": "title", "dim": 8}, {"name": "image", "dim": 5}],
                "catalogue": {"file": "catalogue.h5"} | file, "feature_file": {"file": "features.h5"} | file,
                "shards": [{"file": "shard-00000.h5", "users": 50, "events": 600} | file,
                           {"file": "shard-00000.h5", "users": 10, "events": 100} | file]}
    write("corpus_manifest", "leave_one_out", json.dumps(manifest, indent=2))
    write("corpus_manifest", "many_items", json.dumps(manifest | {"items": 1 << 40}))
    shard = manifest["shards"][0] | {"users": 1 << 60, "events": 1 << 60, "bytes": (1 << 63) - 1}
    write("corpus_manifest", "many_users", json.dumps(manifest | {"users": 3 << 60, "shards": [shard] * 9}))
    write("corpus_manifest", "deep", json.dumps(manifest)[:-1] + ', "law": ' + "[" * 70 + "]" * 70 + "}")
    manifest |= {"split": {"name": "time", "valid_from": 100, "test_from": 200}, "feature_file": None, "features": [],
                 "tie_policy": {"name": "shuffle", "seed": 3}}
    write("corpus_manifest", "time", json.dumps(manifest))


def checkpoint_seeds():
    state = {"step": 40, "cursor": {"epoch": 1, "block": 2, "part": 0}, "tokens": 4096, "loss": 3.25, "seconds": 1.5,
             "step_seconds": 1.25, "best_ndcg": 0.1, "best_recall": 0.2, "best_step": 20,
             "validations_since_best": 1, "prefix_weights": [1.0, 0.5], "finished": False, "optimizer": "muon"}
    files = ["tensors-00001-of-00002.h5", "tensors-00002-of-00002.h5"]
    manifest = {"schema": "mirabelle-checkpoint", "version": 2, "mirabelle": "0.1.0", "state": state,
                "tensor_files": files, "sha256": {name: "0" * 64 for name in files + ["config.yaml"]}}
    write("checkpoint_manifest", "two_files", json.dumps(manifest, indent=2))
    write("checkpoint_manifest", "negative", json.dumps(manifest | {"state": state | {"step": -1}}))
    write("checkpoint_manifest", "path", json.dumps(manifest | {"tensor_files": ["../a.h5"]}))
    write("checkpoint_manifest", "types", json.dumps(manifest | {"sha256": ["x"], "version": 2.0}))
    index = {"model.norm.weight": {"shape": [24], "regions": [[0, 24, 0, 1, 0, 12], [0, 24, 0, 1, 12, 24]]},
             "model.embed_tokens.weight": {"shape": [8, 4], "regions": [[0, 8, 0, 2, 0, 16], [0, 8, 2, 4, 3, 7]]}}
    write("tensor_index", "regions", json.dumps(index))
    write("tensor_index", "huge", '{"w": {"shape": [4611686018427387903, 2], "regions": [[0, 1, 0, 1, 0, 1]]}}')


def event_log_seeds():
    write("event_log", "csv", "\x00user,item,time,rating\n1,a,100,5\n2,b,2014-07-17T06:30:15.5+02:00,\n")
    write("event_log", "quoted", '\x02user,"item",time,"a ""b"""\n1,"x,y",1e9,"5\n"\n\n2,z,2014-07-17,nan\n')
    write("event_log", "tsv", "\x01\ufeffrating\ttime\titem\tuser\r\n4.5\t0\ti\tu\r\n")
    write("event_log", "fields", "\x02user,item,time\n1,2\n")
    write("event_log", "open_quote", '\x02user,item,time\n1,2,"3\n')
    write("catalogue", "items", '{"item": 1, "title": "A"}\n{"item": "b2", "tags": ["x", {"y": 1.5}]}\n')


def configuration_seeds():
    for path in ["configs/quickstart.yaml", "configs/beauty/semantic_ids.yaml", "configs/scale/plum_900m.yaml"]:
        text = (SEEDS.parents[2] / path).read_text()
        write("configuration", pathlib.Path(path).stem, text)
    write("configuration", "anchors", "data: &d {corpus: x}\ntokenizer:\n  levels: &l [1e2, *d]\n<<: *d\n")
    write("configuration", "nested", "training: " + "[" * 40 + "{a: !!str 'b', ? |-\n c\n: >\n d\n}" + "]" * 40)


if __name__ == "__main__":
    shutil.rmtree(SEEDS, ignore_errors=True)
    npy_seeds()
    safetensors_seeds()
    corpus_manifest_seeds()
    checkpoint_seeds()
    event_log_seeds()
    configuration_seeds()
    corpus_seeds()
    tokenizer_seeds()
