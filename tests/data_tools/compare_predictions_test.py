"""compare_predictions.py against figures by hand."""
import json
import math
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "data_tools"))
from compare_predictions import compare, interval  # noqa: E402


def write(folder, name, lists, users=None):
    """Predictions of users 0, 1, ... whose target is item 7."""
    path = Path(folder) / name
    lines = [{"user": user, "target": 7, "items": items} for user, items in zip(users or range(len(lists)), lists)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


class ComparePredictionsTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def test_averages_seeds_and_subtracts(self):
        a0 = write(self.folder.name, "a0", [[7, 1], [1, 7], [1, 2]])
        a1 = write(self.folder.name, "a1", [[7, 1], [1, 2], [1, 2]])
        b0 = write(self.folder.name, "b0", [[1, 2], [7, 2], [1, 2]])
        result = compare([a0, a1], [b0], k=2, samples=200)
        self.assertAlmostEqual(result["recall@2"]["of"], 1.5 / 3)
        self.assertAlmostEqual(result["recall@2"]["against"], 1 / 3)
        self.assertAlmostEqual(result["recall@2"]["difference"], 0.5 / 3)
        self.assertEqual(result["recall@2"]["of_seeds"], [2 / 3, 1 / 3])
        self.assertAlmostEqual(result["ndcg@2"]["of"], (1 + 0.5 / math.log2(3)) / 3)
        self.assertLess(result["recall@2"]["low"], result["recall@2"]["difference"])
        self.assertGreater(result["recall@2"]["high"], result["recall@2"]["difference"])

    def test_the_interval_is_that_of_a_mean(self):
        low, high = interval([0.0] * 900 + [1.0] * 100, samples=2000, seed=1)
        deviation = math.sqrt(0.1 * 0.9 / 1000)
        self.assertAlmostEqual(low, 0.1 - 1.96 * deviation, delta=0.003)
        self.assertAlmostEqual(high, 0.1 + 1.96 * deviation, delta=0.003)
        self.assertEqual(interval([0.25] * 10, samples=50, seed=0), (0.25, 0.25))

    def test_refuses_other_users(self):
        a = write(self.folder.name, "a", [[7], [1]])
        b = write(self.folder.name, "b", [[7], [1]], users=[0, 5])
        with self.assertRaisesRegex(SystemExit, "different users"):
            compare([a], [b])


if __name__ == "__main__":
    unittest.main()
