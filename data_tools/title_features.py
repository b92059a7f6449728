#!/usr/bin/env python3
"""Makes item features out of titles, for data sets without embeddings of their own.

    data_tools/title_features.py DATASET_FOLDER [--dim 256]

Reads items.jsonl, writes features/title_lsa.npy, float32 [num_items + 1, dim], row 0 zeros: TF-IDF
over words and character n-grams, reduced by a truncated SVD (latent semantic analysis), unit norm.
Needs numpy and scikit-learn.
"""
import argparse
import json
import pathlib

import numpy as np
from scipy.sparse import hstack
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.preprocessing import normalize


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--dim", type=int, default=256)
    arguments = parser.parse_args()
    with open(arguments.folder / "items.jsonl") as lines:
        titles = [json.loads(line).get("title", "") for line in lines]
    words = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), min_df=3, sublinear_tf=True)
    counts = hstack([words.fit_transform(titles), characters.fit_transform(titles)]).tocsr()
    reduced = normalize(TruncatedSVD(arguments.dim, random_state=0).fit_transform(counts))
    features = np.vstack([np.zeros((1, arguments.dim)), reduced]).astype(np.float32)
    (arguments.folder / "features").mkdir(exist_ok=True)
    np.save(arguments.folder / "features" / "title_lsa.npy", features)
    print(f"features/title_lsa.npy: {features.shape[0] - 1} items, {arguments.dim} columns")


if __name__ == "__main__":
    main()
