"""search.py with stubs of the programs."""
import json
import subprocess
import sys
import unittest
from pathlib import Path

from stub_programs import StubProgramsTest

SEARCH = Path(__file__).resolve().parents[2] / "launch/search.py"


class SearchTest(StubProgramsTest):
    def setUp(self):
        super().setUp()
        for name in ("a.yaml", "b.yaml"):
            (self.folder / name).write_text("")

    def search(self, queue, *arguments):
        (self.folder / "queue").write_text(queue)
        return subprocess.run([sys.executable, SEARCH, "queue", "--log", "log", "--runs", "runs", "--bin", ".",
                               "--ranks", "1", *arguments], cwd=self.folder, capture_output=True, text=True)

    def test_logs_the_base_of_every_run_and_leaves_out_half_a_line(self):
        queue = [{"name": "one", "set": {}}, {"name": "two", "base": str(self.folder / "b.yaml"), "set": {}},
                 {"name": "three", "set": {}}]
        done = self.search("\n".join(map(json.dumps, queue))[:-5], "--base", "a.yaml")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        lines = [json.loads(line) for line in (self.folder / "log").read_text().splitlines()]
        self.assertEqual([(line["name"], line["base"]) for line in lines],
                         [("one", str(self.folder / "a.yaml")), ("two", str(self.folder / "b.yaml"))])

    def test_a_failed_run_makes_the_status_1(self):
        (self.folder / "evaluation-fails").touch()
        done = self.search('{"name": "one", "set": {}}\n', "--base", "a.yaml")
        self.assertEqual(done.returncode, 1)
        self.assertIn("mirabelle-evaluate ended with status", done.stdout)

    def test_refuses_a_missing_base(self):
        done = self.search('{"name": "one", "set": {}}\n')
        self.assertEqual(done.returncode, 2)
        self.assertIn("error: one has no base, and there is no --base", done.stderr)
        self.assertIn("error: --base c.yaml is not there", self.search("", "--base", "c.yaml").stderr)
        self.assertEqual(self.search('{"name": "one", "base": "c.yaml", "set": {}}\n').returncode, 1)


if __name__ == "__main__":
    unittest.main()
