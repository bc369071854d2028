"""The benchmark's network in transformers: reads a job from each line of the input, and writes its
seconds.

Run in an environment of its own: `python transformers_generate.py WEIGHTS.npz THREADS`. A job is
`{"kind": "generate" or "continuous", "prompts": [[id, ...], ...], "tokens": N}`.
"""

import json
import sys
import time

import numpy as np
import torch
from transformers import (
    ContinuousBatchingConfig,
    GenerationConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

PARTS = {
    "first": "input_layernorm",
    "second": "post_attention_layernorm",
    "attention.inside": "attention.query_key_value",
    "attention.outside": "attention.dense",
    "body.0": "mlp.dense_h_to_4h",
    "body.2": "mlp.dense_4h_to_h",
}


def network(weights, heads, layers, places):
    """GPT-NeoX with the same layers as ours, and the same weights."""
    tokens, width = weights["embedding.weight"].shape
    config = GPTNeoXConfig(
        vocab_size=tokens,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        hidden_act="gelu",
        max_position_embeddings=places,
        use_parallel_residual=False,
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "partial_rotary_factor": 1.0,
        },
        layer_norm_eps=1e-5,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = GPTNeoXForCausalLM(config).eval()
    state = model.state_dict()
    state["gpt_neox.embed_in.weight"] = state["lm_head.weight"] = weights[
        "embedding.weight"
    ]
    for end in ("weight", "bias"):
        state[f"gpt_neox.final_layer_norm.{end}"] = weights[f"last.{end}"]
        for layer in range(layers):
            for ours, theirs in PARTS.items():
                value = weights[f"blocks.{layer}.{ours}.{end}"]
                if (
                    ours == "attention.inside"
                ):  # theirs has query, key and value of a head side by side
                    size = width // heads
                    value = (
                        value.reshape(3, heads, size, *value.shape[1:])
                        .transpose(0, 1)
                        .flatten(0, 2)
                    )
                state[f"gpt_neox.layers.{layer}.{theirs}.{end}"] = value
    model.load_state_dict(state)
    return model


def generate(model, prompts, tokens):
    """A static batch."""
    ids = torch.tensor(prompts)
    with torch.inference_mode():
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
        )
    return found[:, ids.shape[1] :].tolist()


def continuous(model, prompts, tokens):
    """Its continuous batching."""
    how = GenerationConfig(
        max_new_tokens=tokens, do_sample=False, eos_token_id=-1, pad_token_id=0
    )
    # Unless it is told how much to keep, it takes half of the memory first.
    room = ContinuousBatchingConfig(num_blocks=256, max_batch_tokens=512)
    found = model.generate_batch(
        inputs=prompts,
        generation_config=how,
        continuous_batching_config=room,
        progress_bar=False,
    )
    said = sorted(
        found.values(), key=lambda one: int(one.request_id.rpartition("_")[2])
    )
    if failed := next((one.error for one in said if one.error), None):
        raise RuntimeError(failed)
    return [one.generated_tokens for one in said]


def main():
    """Answer jobs until the input ends."""
    threads = int(sys.argv[2])
    torch.set_num_threads(threads)
    with np.load(sys.argv[1]) as file:
        weights = {
            name: torch.from_numpy(file[name])
            for name in file.files
            if "." in name
        }
        heads, layers, places = (
            int(file[name]) for name in ("heads", "layers", "places")
        )
    model = network(weights, heads, layers, places)
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        try:
            started = time.perf_counter()
            found = {"generate": generate, "continuous": continuous}[
                job["kind"]
            ](model, job["prompts"], job["tokens"])
            seconds = time.perf_counter() - started
            print(json.dumps({"seconds": seconds, "tokens": found}), flush=True)
        except Exception as error:
            print(
                json.dumps({"error": f"{type(error).__name__}: {error}"[:300]}),
                flush=True,
            )


if __name__ == "__main__":
    main()
