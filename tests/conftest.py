"""Set-up: 8 CPU devices, exact matmuls, a compilation cache, the optional shared material."""

import gc
import importlib.metadata
import os
import pathlib

# All of it in the environment, so that the processes that tests start have it too; they may append
# to XLA_FLAGS, of which the last word counts.
os.environ["JAX_PLATFORMS"] = "cpu"
# Tests compile much and compute little: optimisation would take most of their time.
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # The newer emitters of fusions, the only ones later, take as long again as those before them.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
os.environ["JAX_COMPILATION_CACHE_DIR"] = str(
    pathlib.Path(__file__).parent.parent / ".pytest_cache" / "jax"
)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax
import pytest

# What tests of several packages use.
pytest_plugins = tuple(
    f"tests.fixtures.{name}" for name in ("command", "endpoint", "models", "server")
)

# Tracing makes many small objects and hardly any circles of them: with Python's own thresholds the
# collector takes an eighth of the time.
gc.set_threshold(200_000, 20, 100)

jax.config.update("jax_default_matmul_precision", "highest")
jax.config.update("jax_numpy_rank_promotion", "raise")

# Files whose tests take more than 8 CPU seconds in sum; all others are `quick`: -m quick.
LONG = {
    "": "api ask distributed files golden main sharding",
    "aot": "compile",
    "benchmarks": "efficiency serving speed topk_by_candidates tpu_table",
    "corpus": "compress store",
    "corpus/search": "search",
    "data": "scp_rows streams",
    "evaluation": "candidates evaluate joint",
    "evaluation/fidelity": "fidelity",
    "evaluation/inside": "attention inside",
    "evaluation/page": "page",
    "evaluation/sweep": "sweep",
    "exchange": "export_model import_model",
    "inference": "generate golden",
    "interop": "families gguf hf import peft write_processes",
    "models": "config decoder lora topk",
    "synthesis": "run",
    "training": "golden_stages memory_kinds stages train",
}  # fmt: skip
TESTS = pathlib.Path(__file__).parent
LONG_FILES = {
    TESTS / folder / f"test_{name}.py" for folder, names in LONG.items() for name in names.split()
}


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="also what shows once more what others do")


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: shows in another form what a faster test shows too")
    config.addinivalue_line("markers", "quick: every test of a file that is not in LONG, see there")


def pytest_collection_finish(session):
    """What was imported by now stays: the collector need not look at it again and again."""
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    """Leaves slow tests to whoever asks for them: without them a run stays under 15 minutes."""
    for item in items:
        if item.path not in LONG_FILES:
            item.add_marker("quick")
    if config.getoption("--slow"):
        return
    slow = [item for item in items if item.get_closest_marker("slow")]
    config.hook.pytest_deselected(items=slow)
    items[:] = [item for item in items if item not in set(slow)]


@pytest.fixture
def named():
    """Operations have their names of now: the cache may hold programs with earlier ones."""
    jax.config.update("jax_compilation_cache_include_metadata_in_key", True)
    yield
    jax.config.update("jax_compilation_cache_include_metadata_in_key", False)


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """Folder `shared` beside the repository: golden numbers and real data; skips where absent."""
    path = pathlib.Path(__file__).parent.parent.parent / "shared"
    if not (path / "golden").is_dir():
        pytest.skip(
            f"{path} is absent: golden numbers and real data are not part of the repository"
        )
    return path


@pytest.fixture(scope="session")
def release(tmp_path_factory) -> pathlib.Path:
    """A random base and two checkpoints on it in the PyTorch release's layout, as in shared/golden.

    `base_mistral`, `ckpt_mistral_stage1` and `ckpt_mistral_stage2`, which tests only read.
    """
    import json

    import numpy as np
    import tokenizers
    from safetensors.numpy import save_file
    from tokenizers import decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    from clara_jax.interop import torch_zip_write

    folder, rng = tmp_path_factory.mktemp("release"), np.random.default_rng(0)
    base, vocabulary, D, F = folder / "base_mistral", 8192, 64, 128
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    ids = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    ids += [f"unused{i}" for i in range(vocabulary - len(ids))]
    backend = tokenizers.Tokenizer(models.BPE(vocab={x: i for i, x in enumerate(ids)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(special)
    template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
        "{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    PreTrainedTokenizerFast(
        tokenizer_object=backend, chat_template=template,
        unk_token=special[0], bos_token=special[1], eos_token=special[2],
    ).save_pretrained(base)  # fmt: skip
    (base / "chat_template.jinja").write_text(template)
    settings = {
        "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_size": D,
        "intermediate_size": F, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": None, "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5, "rope_theta": 1e6, "sliding_window": None, "hidden_act": "silu",
        "tie_word_embeddings": False, "vocab_size": vocabulary, "bos_token_id": 1,
        "eos_token_id": 2, "dtype": "float32",
    }  # fmt: skip
    (base / "config.json").write_text(json.dumps(settings))

    def random(*shape: int, scale: float) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    linears = {
        "self_attn.q_proj": (D, D), "self_attn.k_proj": (D // 2, D),
        "self_attn.v_proj": (D // 2, D), "self_attn.o_proj": (D, D), "mlp.gate_proj": (F, D),
        "mlp.up_proj": (F, D), "mlp.down_proj": (D, F),
    }  # fmt: skip
    tables = ("model.embed_tokens.weight", "lm_head.weight")
    tensors = {name: random(vocabulary, D, scale=0.1) for name in tables}
    tensors["model.norm.weight"] = 1 + random(D, scale=0.1)
    for i in range(3):
        for name, shape in linears.items():
            tensors[f"model.layers.{i}.{name}.weight"] = random(*shape, scale=0.1)
        for name in ("input", "post_attention"):
            scale = 1 + random(D, scale=0.1)
            tensors[f"model.layers.{i}.{name}_layernorm.weight"] = scale
    save_file(tensors, base / "model.safetensors")
    # With the four memory tokens, AE, ENC and SEP, which are never the likeliest.
    added = {name: random(7, D, scale=x) for name, x in zip(tables, (0.3, 0.01), strict=True)}
    larger = {name: np.concatenate([tensors[name], added[name]]) for name in tables}
    adapters = {
        adapter: {
            f"model.layers.{i}.{name}.lora_{leaf}.weight": random(*shape, scale=0.05)
            for i in range(3)
            for name, (n_out, n_in) in linears.items()
            for leaf, shape in (("A", (16, n_in)), ("B", (n_out, 16)))
        }
        for adapter in ("encoder_adapter", "query_reasoner_adapter", "decoder_adapter")
    }
    settings = {
        "model_type": "CLaRa", "decoder_model_name": "/mnt/models/tiny-mistral-from-the-author",
        "compr_base_model_name": "mistralai/Mistral-7B-Instruct-v0.2", "compr_model_name": None,
        "compr_rate": 16, "doc_max_length": 64, "lora": True, "lora_r": 16, "sep": True,
        "different_mem_tokens": True, "optimize_mem_tokens": True, "kbtc_training": False,
        "training_form": "both_separately", "quantization": "no", "compr_use_mlp": False,
    }  # fmt: skip
    for stage, top_k in (("stage1", 1), ("stage2", 2)):
        checkpoint = folder / f"ckpt_mistral_{stage}"
        checkpoint.mkdir()
        stages = {"training_stage": stage, "generation_top_k": top_k, "stage2_retrieval_top_n": 1}
        (checkpoint / "config.json").write_text(json.dumps(settings | stages))
        trained = dict(adapters)
        if stage == "stage1":  # with both tables in every adapter, as the release writes them
            del trained["query_reasoner_adapter"]
            trained = {name: tensors | larger for name, tensors in trained.items()}
        torch_zip_write.write(checkpoint / "adapters.pth", trained)
        torch_zip_write.write(checkpoint / "decoder_first_last_layers.pth", larger)
    return folder
