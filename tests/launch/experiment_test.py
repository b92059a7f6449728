"""What experiment.py computes again, and what it refuses to take for the same, with stubs of the programs."""
import json
import sys
import unittest
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[2] / "launch"))
from experiment import Experiments, write_file  # noqa: E402
from stub_programs import StubProgramsTest, calls, write_corpus  # noqa: E402

ALL = ["mirabelle-tokenizer-build", "mirabelle-train", "mirabelle-evaluate"]


class ExperimentTest(StubProgramsTest):
    def setUp(self):
        super().setUp()
        self.config = self.folder / "config.yaml"
        self.config.write_text("training:\n  max_steps: 7\n")

    def run_it(self, values={}, evaluation=None, ranks=1, name="run"):
        experiments = Experiments(self.folder / "runs", ranks, programs=self.folder)
        return experiments.run(name, self.config, values, "test", evaluation)

    def test_minutes_are_those_of_tokenizer_and_training(self):
        result = self.run_it()
        self.assertEqual(result["minutes"], 1.5)
        self.assertEqual(result["tokenizer"]["seconds"], 30)
        self.assertIn("cores", result["machine"])

    def test_what_is_there_is_not_run_again(self):
        first = self.run_it({"training.seed": 1}, {"evaluation.beam_size": 20})
        self.assertEqual(self.run_it({"training.seed": 1}, {"evaluation.beam_size": 20}), first)
        self.assertEqual(calls(self.folder), ALL)
        self.run_it({"training.seed": 2}, name="of the same tokenizer")
        self.assertEqual(calls(self.folder), ALL + ALL[1:])

    def test_an_interrupted_run_goes_on_and_has_the_same_minutes(self):
        (self.folder / "evaluation-fails").touch()
        with self.assertRaisesRegex(RuntimeError, "mirabelle-evaluate ended with status"):
            self.run_it()
        (self.folder / "evaluation-fails").unlink()
        self.assertEqual(self.run_it()["minutes"], 1.5)

    def test_refuses_the_folder_of_another_run(self):
        self.run_it({"training.seed": 1})
        with self.assertRaisesRegex(SystemExit, "runs/run is of a run with other or unknown values: delete it"):
            self.run_it({"training.seed": 2})
        with self.assertRaisesRegex(SystemExit, "unknown ranks:"):
            self.run_it({"training.seed": 1}, ranks=2)
        self.config.write_text("training:\n  max_steps: 8\n")
        with self.assertRaisesRegex(SystemExit, "unknown config:"):
            self.run_it({"training.seed": 1})

    def test_refuses_results_of_unknown_origin(self):
        (self.folder / "runs/run").mkdir(parents=True)
        (self.folder / "runs/run/test.json").write_text(json.dumps({"recall@10": 1}))
        with self.assertRaisesRegex(SystemExit, "unknown config, values, split_hash, features, ranks: delete it"):
            self.run_it()

    def test_another_split_wants_another_tokenizer(self):
        self.run_it()
        write_corpus(self.folder, "ac97")
        with self.assertRaisesRegex(SystemExit, "unknown split_hash:"):
            self.run_it()
        self.run_it(name="anew")
        self.assertEqual(calls(self.folder), ALL + ALL)

    def test_refuses_results_of_other_evaluation_settings(self):
        self.run_it(evaluation={"evaluation.beam_size": 20})
        with self.assertRaisesRegex(SystemExit, "test.json was evaluated with other settings"):
            self.run_it(evaluation={"evaluation.beam_size": 50})

    def test_a_file_is_replaced_whole(self):
        path = self.folder / "new/file"
        write_file(path, "old")
        with self.assertRaises(UnicodeEncodeError):
            write_file(path, "new \udc80")
        self.assertEqual(path.read_text(), "old")


if __name__ == "__main__":
    unittest.main()
