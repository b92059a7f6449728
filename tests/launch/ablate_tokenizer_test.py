"""The files of ablate_tokenizer.py."""
import contextlib
import io
import json
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[2] / "launch"))
import ablate_tokenizer  # noqa: E402

FIRST, SECOND, THIRD = list(ablate_tokenizer.ARMS)[:3]


def study(recalls, seeds=(0, 1, 2), split_hash="1f6d"):
    rows = [{"arm": arm, "bits": 24, "unique": 1, "prefix_recall@10": 0.1, "agreement": None, "recall@10": recall,
             "recall@10_deviation": 0.001} for arm, recall in recalls.items()]
    return {"dataset": "beauty", "split_hash": split_hash, "seeds": list(seeds), "machine": "2 cores",
            "config": "configs/beauty/tokenizer_ablation.yaml", "rows": rows}


class AblateTokenizerTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        patch = mock.patch.object(ablate_tokenizer, "draw")
        patch.start()
        self.addCleanup(patch.stop)
        self.write(study({FIRST: 0.1, THIRD: 0.3}))

    def write(self, new):
        """What it prints."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            ablate_tokenizer.write(new, self.folder)
        return printed.getvalue()

    def rows(self):
        return {row["arm"]: row["recall@10"] for row in json.loads((self.folder / "beauty.json").read_text())["rows"]}

    def test_new_rows_join_the_old_ones_in_the_order_of_the_arms(self):
        self.write(study({SECOND: 0.2, FIRST: 0.15}))
        self.assertEqual(list(self.rows().items()), [(FIRST, 0.15), (SECOND, 0.2), (THIRD, 0.3)])

    def test_rows_of_another_split_are_dropped(self):
        self.write(study({SECOND: 0.2}, split_hash="ac97"))
        self.assertEqual(self.rows(), {SECOND: 0.2})

    def test_a_file_of_more_seeds_is_kept(self):
        printed = self.write(study({FIRST: 0.5}, seeds=[0]))
        self.assertIn("0.5000 ±", printed)
        self.assertIn("beauty.json is kept", printed)
        self.assertEqual(self.rows(), {FIRST: 0.1, THIRD: 0.3})

    def test_bits_of_any_sizes(self):
        self.assertEqual(ablate_tokenizer.code_bits([512, 256, 128]), 24)
        self.assertEqual(ablate_tokenizer.code_bits([1000, 3]), 11.6)  # 9.966 + 1.585


if __name__ == "__main__":
    unittest.main()
