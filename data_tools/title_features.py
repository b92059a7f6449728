#!/usr/bin/env python3
"""Makes item features out of titles or other texts, for data sets without embeddings of their own.

    data_tools/title_features.py DATASET_FOLDER [--dim 256]
    data_tools/title_features.py DATASET_FOLDER --fields title,brand,categories --name metadata_lsa

Reads items.jsonl, writes features/NAME.npy, float32 [num_items + 1, dim], row 0 zeros: TF-IDF over words
and character n-grams of the fields (strings or lists of strings), reduced by a truncated SVD (latent
semantic analysis), unit norm. Needs numpy and scikit-learn.
"""
import argparse
import json
import pathlib

import numpy as np
from scipy.sparse import hstack
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize


def text_of(item, fields):
    values = (item.get(field) or "" for field in fields)
    return " ".join(" ".join(map(str, value)) if isinstance(value, list) else str(value) for value in values)


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--fields", default="title", help="of an item, with commas between")
    parser.add_argument("--name", default="title_lsa", help="of the feature source")
    arguments = parser.parse_args()
    with open(arguments.folder / "items.jsonl") as lines:
        texts = [text_of(json.loads(line), arguments.fields.split(",")) for line in lines]
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=3, sublinear_tf=True)
    counts = hstack([words.fit_transform(texts), characters.fit_transform(texts)]).tocsr()
    reduced = normalize(TruncatedSVD(arguments.dim, random_state=0).fit_transform(counts))
    features = np.vstack([np.zeros((1, arguments.dim)), reduced]).astype(np.float32)
    path = arguments.folder / "features" / f"{arguments.name}.npy"
    path.parent.mkdir(exist_ok=True)
    np.save(path, features)
    empty = sum(not text.strip() for text in texts)
    print(f"{path}: {len(texts)} items, {arguments.dim} columns, {empty} without text")


if __name__ == "__main__":
    main()
