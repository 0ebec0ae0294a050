"""The same weights for llama.cpp's server: a model folder of ours as GGUF. Runs in the peer's own
Python, which has `gguf`, `numpy` and `safetensors`.

    PEER_PYTHON benchmarks/serving_peers.py MODEL_FOLDER OUT.gguf
"""

import json
import sys
from pathlib import Path

import gguf
from safetensors.numpy import load_file

NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OUTSIDE = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def renamed(name: str) -> str:
    """Qwen3's names in a Hugging Face folder to llama.cpp's."""
    if name in OUTSIDE:
        return OUTSIDE[name]
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{NAMES[rest.removesuffix('.weight')]}.weight"


def main(folder: Path, out: str) -> None:
    told = json.loads((folder / "config.json").read_text())
    assert told["model_type"] == "qwen3", told["model_type"]
    writer = gguf.GGUFWriter(out, "qwen3")
    writer.add_context_length(told["max_position_embeddings"])
    writer.add_embedding_length(told["hidden_size"])
    writer.add_block_count(told["num_hidden_layers"])
    writer.add_feed_forward_length(told["intermediate_size"])
    writer.add_head_count(told["num_attention_heads"])
    writer.add_head_count_kv(told["num_key_value_heads"])
    writer.add_key_length(told["head_dim"])
    writer.add_value_length(told["head_dim"])
    writer.add_layer_norm_rms_eps(told["rms_norm_eps"])
    theta = told.get("rope_theta") or told["rope_parameters"]["rope_theta"]
    writer.add_rope_freq_base(theta)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    # Prompts are ids: how the peer would cut a text does not matter here.
    words = json.loads((folder / "tokenizer.json").read_text())
    size, vocabulary = told["vocab_size"], dict(words["model"]["vocab"])
    vocabulary |= {token["content"]: token["id"] for token in words["added_tokens"]}
    texts = {number: text for text, number in vocabulary.items()}
    merges = [m if isinstance(m, str) else " ".join(m) for m in words["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list([texts.get(n, f"[unused {n}]") for n in range(size)])
    writer.add_token_types([gguf.TokenType.NORMAL] * size)
    writer.add_token_merges(merges)
    writer.add_eos_token_id(told.get("eos_token_id") or 0)
    writer.add_add_bos_token(False)
    for name, tensor in load_file(folder / "model.safetensors").items():
        writer.add_tensor(renamed(name), tensor.astype("float32"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
