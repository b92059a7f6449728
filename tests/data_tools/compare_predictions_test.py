"""compare_predictions.py against figures by hand."""
import json
import math
import sys
import tempfile
import unittest
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "data_tools"))
from compare_predictions import compare, interval, with_deviation  # noqa: E402


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

    def test_several_targets_of_a_user(self):
        def lines(name, lists):
            path = Path(self.folder.name) / name
            targets = [[7, 8], [1, 2, 3, 4]]
            path.write_text("".join(json.dumps({"user": user, "targets": targets[user], "items": items}) + "\n"
                                    for user, items in enumerate(lists)))
            return path

        a, b = lines("a", [[8, 5, 7], [5, 3, 6]]), lines("b", [[5, 6, 9], [1, 2, 3]])
        result = compare([a], [b], k=3, samples=10)
        self.assertAlmostEqual(result["recall@3"]["of"], (2 / 2 + 1 / 4) / 2)
        self.assertAlmostEqual(result["recall@3"]["against"], (0 + 3 / 4) / 2)
        second = 1 / math.log2(3)  # the gains of ranks 1, 2, 3 are 1, this, 1/2
        self.assertAlmostEqual(result["ndcg@3"]["of"], (1.5 / (1 + second) + second / (1.5 + second)) / 2)
        self.assertAlmostEqual(result["ndcg@3"]["against"], (0 + 1) / 2)

    def test_refuses_other_targets(self):
        a = write(self.folder.name, "a", [[7], [1]])
        b = Path(self.folder.name) / "b"
        b.write_text(a.read_text().replace('"user": 1, "target": 7', '"user": 1, "target": 1'))
        for of, against in (([a], [b]), ([a, b], [a])):
            with self.assertRaisesRegex(SystemExit, "different targets for user 1"):
                compare(of, against, k=1)

    def test_refuses_a_user_who_comes_twice(self):
        a = write(self.folder.name, "a", [[7], [1], [7]], users=[0, 1, 1])
        with self.assertRaisesRegex(SystemExit, "user 1 comes twice"):
            compare([a], [a], k=1)

    def test_refuses_shorter_lists(self):
        a = write(self.folder.name, "a", [[7, 1, 2], [1]])
        compare([a], [a], k=3, samples=10)
        with self.assertRaisesRegex(SystemExit, "top 4 of lists of 3 items"):
            compare([a], [a], k=4)

    def test_prints_the_deviation_over_the_seeds(self):
        self.assertEqual(with_deviation(0.05, [0.04, 0.06]), f"0.0500 ± {math.sqrt(0.0002):.4f}")
        self.assertEqual(with_deviation(0.05, [0.05]), "0.0500")


if __name__ == "__main__":
    unittest.main()
