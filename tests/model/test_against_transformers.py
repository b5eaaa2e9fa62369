"""The same weights in Hugging Face's GPT-2 and Qwen2 give the same logits: proof against code that nobody here wrote.

Needs `pip install -e '.[peers]'` (torch is large, so it is no part of the test extra); without it these tests are skipped.
"""

import jax
import numpy as np
import pytest
from flax import nnx

from lmtiny import config as config_lib
from lmtiny.model import size

torch = pytest.importorskip("torch", reason="torch is not installed: pip install -e '.[peers]' compares with transformers")
transformers = pytest.importorskip("transformers", reason="transformers is not installed: pip install -e '.[peers]'")

LAYERS, WIDTH, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCAB, CONTEXT = 3, 48, 4, 2, 12, 80, 300, 32
TOKENS = np.random.default_rng(0).integers(0, VOCAB, (2, CONTEXT))


def ours(params, **model):
    config = config_lib.defaults()
    config.tokenizer.vocab_size = VOCAB
    config.model.update({"num_layers": LAYERS, "width": WIDTH, "num_heads": HEADS, "context_length": CONTEXT, "qk_norm": False, **model})
    config_lib.check(config)
    graph, shapes, _ = size.abstract(config)
    assert jax.tree.map(np.shape, params) == jax.tree.map(lambda leaf: leaf.shape, shapes)
    return np.array(jax.jit(lambda params: nnx.merge(graph, params)(TOKENS)[0])(params))


def theirs(model):
    model.eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from their initial values, so that every one of them matters
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())) * 0.3)
        return model(torch.tensor(TOKENS)).logits.numpy()


def stacked(model, name, *shape, transpose=False):
    weights = [dict(model.named_parameters())[name.format(layer)].detach().numpy() for layer in range(LAYERS)]
    return np.stack([(weight.T if transpose else weight).reshape(shape) for weight in weights])


def test_gpt2():
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=VOCAB, n_positions=CONTEXT, n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS)
    )
    expected = theirs(model)
    whole = {name: value.detach().numpy() for name, value in model.named_parameters()}
    qkv = stacked(model, "transformer.h.{}.attn.c_attn.weight", WIDTH, 3, HEADS, HEAD_DIM)  # theirs is input x output
    qkv_bias = stacked(model, "transformer.h.{}.attn.c_attn.bias", 3, HEADS, HEAD_DIM)

    def norm(name):
        parts = {"scale": "weight", "bias": "bias"}
        return {ours: stacked(model, f"transformer.h.{{}}.{name}.{part}", WIDTH) for ours, part in parts.items()}

    params = {
        "embedding": {"table": whole["transformer.wte.weight"]},
        "positions": {"table": whole["transformer.wpe.weight"]},
        "final_norm": {"scale": whole["transformer.ln_f.weight"], "bias": whole["transformer.ln_f.bias"]},
        "blocks": {
            "attention_norm": norm("ln_1"),
            "mlp_norm": norm("ln_2"),
            "attention": {
                **{part: {"kernel": qkv[:, :, i], "bias": qkv_bias[:, i]} for i, part in enumerate(("query", "key", "value"))},
                "out": {
                    "kernel": stacked(model, "transformer.h.{}.attn.c_proj.weight", HEADS, HEAD_DIM, WIDTH),
                    "bias": stacked(model, "transformer.h.{}.attn.c_proj.bias", WIDTH),
                },
            },
            "mlp": {
                "up": {
                    "kernel": stacked(model, "transformer.h.{}.mlp.c_fc.weight", WIDTH, 4 * WIDTH),
                    "bias": stacked(model, "transformer.h.{}.mlp.c_fc.bias", 4 * WIDTH),
                },
                "down": {
                    "kernel": stacked(model, "transformer.h.{}.mlp.c_proj.weight", 4 * WIDTH, WIDTH),
                    "bias": stacked(model, "transformer.h.{}.mlp.c_proj.bias", WIDTH),
                },
            },
        },
    }
    gpt2 = {"norm": "layernorm", "norm_epsilon": 1e-5, "position": "learned", "bias": "all", "activation": "gelu"}
    found = ours(params, norm_scale=True, tied_embeddings=True, **gpt2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("tied", [True, False])
def test_qwen2(tied):
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=HIDDEN, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS, max_position_embeddings=CONTEXT, rms_norm_eps=1e-6, tie_word_embeddings=tied,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        )
    )  # fmt: skip
    expected = theirs(model)
    whole = {name: value.detach().numpy() for name, value in model.named_parameters()}

    def projection(name, heads):
        return {
            "kernel": stacked(model, f"model.layers.{{}}.self_attn.{name}.weight", WIDTH, heads, HEAD_DIM, transpose=True),
            "bias": stacked(model, f"model.layers.{{}}.self_attn.{name}.bias", heads, HEAD_DIM),
        }

    def mlp(name, *shape):
        return {"kernel": stacked(model, f"model.layers.{{}}.mlp.{name}.weight", *shape, transpose=True)}

    params = {
        "embedding": {"table": whole["model.embed_tokens.weight"]},
        "final_norm": {"scale": whole["model.norm.weight"]},
        "blocks": {
            "attention_norm": {"scale": stacked(model, "model.layers.{}.input_layernorm.weight", WIDTH)},
            "mlp_norm": {"scale": stacked(model, "model.layers.{}.post_attention_layernorm.weight", WIDTH)},
            "attention": {
                "query": projection("q_proj", HEADS),
                "key": projection("k_proj", KV_HEADS),
                "value": projection("v_proj", KV_HEADS),
                "out": {"kernel": stacked(model, "model.layers.{}.self_attn.o_proj.weight", HEADS, HEAD_DIM, WIDTH, transpose=True)},
            },
            "mlp": {"gate": mlp("gate_proj", WIDTH, HIDDEN), "up": mlp("up_proj", WIDTH, HIDDEN), "down": mlp("down_proj", HIDDEN, WIDTH)},
        },
    }
    if not tied:
        params["head"] = {"kernel": whole["lm_head.weight"].T}
    qwen2 = {"num_kv_heads": KV_HEADS, "mlp_ratio": HIDDEN / WIDTH, "bias": "qkv", "activation": "swiglu", "rope_base": 500.0}
    found = ours(params, norm_scale=True, tied_embeddings=tied, **qwen2)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
