"""Programs that do nothing but write what launch/experiment.py reads."""
import json
import sys
import tempfile
import unittest
from pathlib import Path

STUB = f"#!{sys.executable}\n" + '''
import json
import sys
from pathlib import Path

program, arguments = Path(sys.argv[0]), sys.argv[1:]
settings = dict(arguments[i + 1].split("=", 1) for i in range(len(arguments)) if arguments[i] == "--set")
with open(program.parent / "calls", "a") as calls:
    print(program.name + (" --print-config" if "--print-config" in arguments else ""), file=calls)

def write(values):
    Path(arguments[arguments.index("--json") + 1]).write_text(json.dumps(values))

if "--print-config" in arguments:
    corpus = settings.get("data.corpus", program.parent / "corpus")
    print(f"data:\\n  corpus: {json.dumps(str(corpus))}  # a folder\\n  history_length: 20")
elif program.name == "mirabelle-tokenizer-build":
    write({"seconds": 30, "file": settings["tokenizer.file"]})
elif program.name == "mirabelle-train":  # takes 60 s, or a moment where there is something to go on from
    summary = Path(settings["training.output"]) / "summary.json"
    if not summary.exists():
        summary.write_text(json.dumps({"train_seconds": 60}))
elif (program.parent / "evaluation-fails").exists():
    sys.exit(3)
else:
    summary = json.loads((Path(settings["evaluation.checkpoint"]) / "summary.json").read_text())
    write({"dataset": "stub", "split": settings["evaluation.split"], "split_hash": "1f6d", "users": 4, "beam_size": 20,
           "recall@5": 0.1, "recall@10": 0.2, "ndcg@5": 0.3, "ndcg@10": 0.4, "checkpoint_step": 7, **summary})
'''


def write_programs(folder):
    """The programs, and a corpus, in `folder`."""
    for name in ("train", "tokenizer-build", "evaluate"):
        path = Path(folder) / f"mirabelle-{name}"
        path.write_text(STUB)
        path.chmod(0o755)
    write_corpus(folder, "1f6d")


def write_corpus(folder, split_hash):
    corpus = Path(folder) / "corpus"
    corpus.mkdir(exist_ok=True)
    (corpus / "manifest.json").write_text(json.dumps({"split_hash": split_hash, "feature_file": None}))


def calls(folder):
    """The programs called so far, but for questions about a configuration."""
    return [line for line in (Path(folder) / "calls").read_text().splitlines() if "--print-config" not in line]


class StubProgramsTest(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)
        write_programs(self.folder)
