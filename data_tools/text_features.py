#!/usr/bin/env python3
"""Makes item features with a sentence encoder, which sees more in a text than title_features.py does.

    data_tools/text_features.py DATASET_FOLDER [--model sentence-transformers/sentence-t5-base] [--name text]

Reads items.jsonl, writes features/NAME.npy, float16 [num_items + 1, dim], row 0 zeros. An item's text is what is known
of it, one "field: value" after the other: title, brand, categories, genres, description (--fields names others). Needs
numpy and sentence-transformers; the model is a name that it downloads, or a folder.
"""
import argparse
import json
import pathlib

import numpy as np


def text_of(item, fields):
    parts = []
    for field in fields:
        value = item.get(field)
        if isinstance(value, list):
            value = ", ".join(map(str, value))
        if value:
            parts.append(f"{field}: {value}")
    return "; ".join(parts)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--model", default="sentence-transformers/sentence-t5-base")
    parser.add_argument("--name", default="text", help="of the feature source")
    parser.add_argument("--fields", nargs="+", default=["title", "brand", "categories", "genres", "description"])
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    from sentence_transformers import SentenceTransformer  # late: --help works without it
    with open(arguments.folder / "items.jsonl") as lines:
        texts = [text_of(json.loads(line), arguments.fields) for line in lines]
    rows = SentenceTransformer(arguments.model).encode(texts, batch_size=arguments.batch, show_progress_bar=True)
    rows = np.asarray(rows, dtype=np.float16)
    rows[[i for i, text in enumerate(texts) if not text]] = 0  # an encoder makes something even of nothing
    features = np.vstack([np.zeros((1, rows.shape[1]), np.float16), rows])
    path = arguments.folder / "features" / f"{arguments.name}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, features)
    print(f"{path}: {len(texts)} items, {rows.shape[1]} columns, {sum(not text for text in texts)} without text")


if __name__ == "__main__":
    main()
