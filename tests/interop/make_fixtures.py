#!/usr/bin/env python3
"""Makes tests/fixtures/hugging_face: tiny random models of each family that mirabelle-convert reads,
with the logits that transformers computes for one sequence.

    pip install torch transformers
    tests/interop/make_fixtures.py

Every folder is what save_pretrained() writes, and besides
    tokens.json   the sequence
    logits.npy    float32 [number of tokens, vocab_size]
The weights are larger than those of untrained models, and norms and biases are not 1 and 0, so that
every part of a model matters for its logits. Made with torch 2.15 and transformers 5.23.
"""

import json
import pathlib
import shutil

import numpy
import torch
import transformers

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "hugging_face"
NUM_TOKENS = 24
SIZES = dict(vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
             num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
             initializer_range=0.2)
LLAMA3 = dict(rope_type="llama3", rope_theta=500.0, factor=4.0, low_freq_factor=1.0,
              high_freq_factor=4.0, original_max_position_embeddings=16)
YARN = dict(rope_type="yarn", rope_theta=1000.0, factor=4.0, original_max_position_embeddings=16)
MODELS = {  # class, options, dtype, largest file
    "llama": ("Llama", dict(tie_word_embeddings=False), torch.float32, "30KB"),
    "llama3": ("Llama", dict(tie_word_embeddings=True, rope_parameters=LLAMA3), torch.bfloat16, "1GB"),
    "qwen2": ("Qwen2", dict(tie_word_embeddings=True, rope_parameters=YARN), torch.float16, "1GB"),
    "qwen3": ("Qwen3", dict(tie_word_embeddings=False, head_dim=12), torch.float32, "1GB"),
}


def make(name, family, options, dtype, max_file):
    config = getattr(transformers, family + "Config")(**SIZES, **options)
    model = getattr(transformers, family + "ForCausalLM")(config).eval()
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    folder = FOLDER / name
    shutil.rmtree(folder, ignore_errors=True)
    model.to(dtype).save_pretrained(folder, max_shard_size=max_file)
    (folder / "generation_config.json").unlink(missing_ok=True)
    tokens = torch.randint(0, config.vocab_size, (1, NUM_TOKENS))
    # in float32, of the weights as they are stored
    stored = type(model).from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = stored(tokens).logits[0]
    (folder / "tokens.json").write_text(json.dumps(tokens[0].tolist()) + "\n")
    numpy.save(folder / "logits.npy", logits.numpy().astype(numpy.float32))
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters in {dtype}")


def main():
    torch.manual_seed(7)
    for name, model in MODELS.items():
        make(name, *model)


if __name__ == "__main__":
    main()
