"""The rows of docs/results, by hand."""
import contextlib
import io
import json
import math
import sys
import tempfile
import unittest
from pathlib import Path
from unittest import mock

sys.path.append(str(Path(__file__).resolve().parents[2] / "launch"))
import reproduce  # noqa: E402


def result(recall, ndcg, split_hash="1f6d"):
    return {"dataset": "beauty", "split": "test", "split_hash": split_hash, "recall@5": recall / 2, "recall@10": recall,
            "ndcg@5": ndcg / 2, "ndcg@10": ndcg, "markov_recall@5": 0.5, "markov_recall@10": 0.6,
            "markov_ndcg@5": 0.3, "markov_ndcg@10": 0.4}


class ReproduceTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.results = Path(folder.name)
        patch = mock.patch.object(reproduce, "RESULTS", self.results)
        patch.start()
        self.addCleanup(patch.stop)

    def write(self, row, seeds):
        """What it prints."""
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            reproduce.write_row("semantic_ids", {**row, "seeds": seeds})
        return printed.getvalue()

    def written(self):
        return json.loads((self.results / "beauty_semantic_ids.json").read_text())

    def test_means_and_sample_deviations(self):
        row = reproduce.row([result(0.1, 0.06), result(0.2, 0.06), result(0.6, 0.03)])
        self.assertAlmostEqual(row["recall@10"], 0.3)
        self.assertAlmostEqual(row["recall@5"], 0.15)
        self.assertAlmostEqual(row["recall@10_deviation"], math.sqrt((0.04 + 0.01 + 0.09) / 2), places=6)
        self.assertAlmostEqual(row["ndcg@10"], 0.05)
        self.assertAlmostEqual(row["ndcg@10_deviation"], math.sqrt((0.0001 + 0.0001 + 0.0004) / 2), places=6)
        self.assertEqual(reproduce.row([result(0.1, 0.06)])["recall@10_deviation"], 0)
        self.assertEqual(reproduce.row([result(0.1, 0.06)], "markov_")["recall@10"], 0.6)

    def test_a_run_of_fewer_seeds_keeps_the_row(self):
        self.write(reproduce.row([result(0.1, 0.06)] * 3), [0, 1, 2])
        printed = self.write(reproduce.row([result(0.2, 0.06)]), [0])
        self.assertIn("recall@10 0.2000", printed)
        self.assertIn("the row is kept", printed)
        self.assertEqual(self.written()["recall@10"], 0.1)
        self.assertNotIn("is kept", self.write(reproduce.row([result(0.3, 0.06)] * 3), [3, 4, 5]))
        self.assertEqual(self.written()["recall@10"], 0.3)

    def test_a_table_has_rows_of_one_split(self):
        for model, split_hash in (("a", "1f6d"), ("b", "ac97")):
            row = reproduce.row([result(0.1, 0.1, split_hash)])
            (self.results / f"beauty_{model}.json").write_text(json.dumps(row))
        with self.assertRaisesRegex(SystemExit, "rows of beauty .* different split hashes"):
            reproduce.draw_table()


if __name__ == "__main__":
    unittest.main()
