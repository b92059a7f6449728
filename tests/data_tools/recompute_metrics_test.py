"""recompute_metrics.py against figures by hand."""
import json
import math
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

PROGRAM = Path(__file__).resolve().parents[2] / "data_tools/recompute_metrics.py"
LINES = [{"user": 1, "target": 9, "items": [9, 2, 3]},
         {"user": 2, "target": 9, "items": [1, 2, 9]},
         {"user": 3, "targets": [4, 5], "items": [6, 4, 5]},
         {"user": 4, "targets": [1, 2, 3], "items": [3, 8, 7]},
         {"user": 5, "targets": [4, 5], "items": [1, 2, 3]}]


class RecomputeMetricsTest(unittest.TestCase):
    def recompute(self, lines, *arguments):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "predictions.jsonl"
            path.write_text("".join(json.dumps({"scores": [-1, -2, -3], **line}) + "\n" for line in lines))
            return subprocess.run([sys.executable, PROGRAM, path, *arguments], capture_output=True, text=True)

    def test_one_and_several_targets(self):
        second = 1 / math.log2(3)  # the gains of ranks 1, 2, 3 are 1, this, 1/2
        recall_2 = (1 + 0 + 1 / 2 + 1 / 3 + 0) / 5
        ndcg_2 = (1 + 0 + second / (1 + second) + 1 / (1 + second) + 0) / 5
        recall_3 = (1 + 1 + 2 / 2 + 1 / 3 + 0) / 5
        ndcg_3 = (1 + 0.5 + (second + 0.5) / (1 + second) + 1 / (1.5 + second) + 0) / 5
        done = self.recompute(LINES, "--top-k", "2", "3")
        self.assertEqual(done.stdout, "5 users\n"
                         f"recall@2 {recall_2:.6f}  ndcg@2 {ndcg_2:.6f}\n"
                         f"recall@3 {recall_3:.6f}  ndcg@3 {ndcg_3:.6f}\n")

    def test_refuses_lists_that_are_none(self):
        done = self.recompute([{**LINES[0], "scores": [-2, -1, -3]}])
        self.assertIn("user 1: the scores do not descend", done.stderr)
        done = self.recompute([{**LINES[0], "items": [9, 2, 9]}])
        self.assertIn("user 1: an item comes twice", done.stderr)


if __name__ == "__main__":
    unittest.main()
