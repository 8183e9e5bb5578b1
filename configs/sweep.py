"""Sweeps of the paper's ablations, for `python -m clara_jax.evaluation.sweep`.

configs/sweep.py:quickstart is made-up facts from scratch; :smollm2 is SmolLM2 on real text, with
the base and its data by `--set=model.base=…` and the environment's DATA (a folder; `data` by
default); :compressors is where its memories come from; :sizes is the recipe of the paper over model
sizes, for --dry_run where no machine holds them.
The paper's own tables are in configs/paper.py; its numbers stand beside what is nearest to them.
"""

import os

from clara_jax.evaluation.paper import paper
from clara_jax.evaluation.sweep.plan import Sweep

DATA = os.environ.get("DATA", "data")
WIKIPEDIA = f"{DATA}/scp_nq_train.jsonl,{DATA}/scp_squad_train.jsonl"
MEDICINE = f"{DATA}/scp_pubmedqa_train.jsonl"

# What the paper varies in the joint training.
REASONER = {"random": {"e2e:reasoner_init": "random"}}
TRAINED = {"generator": {"e2e:train.only": "generator"}, "reasoner": {"e2e:train.only": "reasoner"}}
SIZES = {
    "smollm2_135m": "HuggingFaceTB/SmolLM2-135M-Instruct",
    "smollm2_360m": "HuggingFaceTB/SmolLM2-360M-Instruct",
    "smollm2_1_7b": "HuggingFaceTB/SmolLM2-1.7B-Instruct",
    "qwen3_0_6b": "Qwen/Qwen3-0.6B",
    "qwen3_4b": "Qwen/Qwen3-4B",
    "mistral_7b": "mistralai/Mistral-7B-Instruct-v0.2",
    "phi4_mini": "microsoft/Phi-4-mini-instruct",
    "llama2_7b": "meta-llama/Llama-2-7b-chat-hf",
    "llama2_13b": "meta-llama/Llama-2-13b-chat-hf",
    "llama2_70b": "meta-llama/Llama-2-70b-chat-hf",
}


def get_sweep(name: str = "quickstart") -> Sweep:
    """One of SWEEPS."""
    return SWEEPS[name]()


def quickstart() -> Sweep:
    """A document is at most 25 tokens: 6, 3, 2 and 1 memory vectors."""
    stages = {stage: f"quickstart.py:{stage}" for stage in ("scp", "instruct", "e2e")}
    rows = {"scp:data.encoder_row": 36, "scp:data.decoder_row": 132}  # more memory tokens
    return Sweep(
        stages,
        {
            "rate": {
                "4": {"data.rate": 4, **rows},
                "12": {"data.rate": 12},
                "25": {"data.rate": 25},
            },
            "k": {str(k): {"e2e:select.k": k} for k in (2, 3, 5)},
            "mse": {"with": {"train.mse_weight": 0.1}},
            "mix": {"memories_only": {"scp:data.sources": "facts:100000"}},
            "reasoner": REASONER,
            "trained": TRAINED,
            "chain": {"without_instruct": {"stages": ("scp", "e2e")}},
            "seed": {str(seed): {"e2e:seed": seed} for seed in (1, 2)},
        },
    )


def smollm2() -> Sweep:
    """Rates, selected documents, lengths of documents, domains, mixes, and what is trained."""
    stages = {stage: f"smollm2.py:{stage}" for stage in ("scp", "instruct", "e2e")}
    questions = {
        "data.sources": f"{DATA}/qa_e2e_train.jsonl",
        "eval.sources": f"{DATA}/qa_e2e_dev.jsonl",
    }
    # All on the same abstracts, which none has seen: a fifth of them, for there are few.
    domain = {
        "stages": ("scp",),
        "scp:data.holdout": 0.2,
        "evaluate:data.sources": MEDICINE,
        "evaluate:eval.records": 0,
    }
    measured = {"scp:data.encoder_row": 0, "scp:data.decoder_row": 0}
    return Sweep(
        stages,
        {
            "rate": {str(2**n): {"data.rate": 2**n} for n in range(2, 9)},
            "k": {str(k): {"e2e:select.k": k} for k in range(1, 11)},
            "document": {str(n): {"data.document_length": n, **measured} for n in (64, 128, 512)},
            "mse": {"without": {"train.mse_weight": 0.0}},
            "mix": {
                "nq": {"scp:data.sources": f"{DATA}/scp_nq_train.jsonl"},
                "wikipedia": {"scp:data.sources": WIKIPEDIA},
            },
            "domain": {
                "wikipedia_to_medicine": {**domain, "scp:data.sources": WIKIPEDIA},
                "medicine_to_medicine": {**domain, "scp:data.sources": MEDICINE},
                "both_to_medicine": domain,
            },
            "setting": {name: {"eval.setting": name} for name in ("normal", "oracle")},
            "reasoner": REASONER,
            "trained": TRAINED,
        },
        options={
            "scp:data.sources": f"{WIKIPEDIA},{MEDICINE}",
            **{f"{stage}:{k}": v for stage in ("instruct", "e2e") for k, v in questions.items()},
        },
        paper={
            **{name: beside(rate=16) for name in ("base", "k=5")},
            **{f"rate={rate}": beside(rate=rate) for rate in paper.RATES},
            **{f"setting={s}": beside(rate=16, setting=s) for s in ("normal", "oracle")},
            "mse=without": paper.numbers("instruct", rate=32, change="mse=without"),
            **{n: paper.numbers("e2e", change=n) for n in ("reasoner=random", "trained=generator")},
        },
        source=f"{BESIDE}; mse=without, reasoner=random and trained=generator at 32x, of Tables 4, "
        "14 and 13, of which the last two are from scp, on HotpotQA and 2Wiki",
    )


def compressors() -> Sweep:
    """Where memories come from, at equal steps of SmolLM2 on real text."""
    pool = {"memory.kind": "pool", "memory.positions": "after"}
    repeated = f"reconstruct:{DATA}/qa_e2e_train.jsonl"
    asked = f"8*{DATA}/scp_nq_train.jsonl,8*{DATA}/scp_squad_train.jsonl"
    return Sweep(
        {"scp": "smollm2.py:scp"},
        {
            "memory": {
                "paper": {
                    "memory.init": "mean",
                    "memory.positions": "after",
                    "train.mse_into": "both",
                },
                "memories": {"memory.sees": "memories"},
                "pool": pool,
                "pool_all": {**pool, "memory.sees": "all"},
                "pool_rates": {**pool, "data.rates": (8, 16, 32), "scp:data.decoder_row": 2112},
                "pool_continue": {
                    **pool,
                    "scp:data.sources": f"{asked},continue:{DATA}/qa_e2e_train.jsonl",
                },
            },
            "seed": {str(seed): {"seed": seed} for seed in (1, 2)},
        },
        options={
            "scp:data.sources": f"{asked},{repeated}",
            "evaluate:data.sources": WIKIPEDIA,
            "evaluate:eval.records": 150,
        },
    )


def sizes() -> Sweep:
    """The paper's stages over models, at 16x and 64x; the base is the smallest at 16x."""
    models = {preset: {"model.preset": preset, "model.base": hub} for preset, hub in SIZES.items()}
    return Sweep(
        {stage: f"{stage}.py" for stage in ("scp", "instruct", "e2e")},
        {"model": models, "rate": {"64": {"data.rate": 64}}},
        options={
            **models["smollm2_135m"],
            "scp:data.sources": f"{WIKIPEDIA},{MEDICINE}",
            "instruct:data.sources": f"{DATA}/qa_e2e_train.jsonl",
            "e2e:data.sources": f"{DATA}/qa_e2e_train.jsonl",
            "eval.sources": f"{DATA}/qa_e2e_dev.jsonl",
        },
        grids=(("model", "rate"),),
        paper={
            f"model={model}{more}": beside(model=model, rate=rate)
            for model in paper.MODELS
            for more, rate in (("", 16), (",rate=64", 64))
        },
        source=BESIDE,
    )


BESIDE = (
    f"{paper.NAME}, Mistral-7B or the run's own model, gold documents among the candidates, means "
    "over four data sets: Tables 6 and 7, from instruct; cover EM before e2e, of Table 5"
)


def beside(**options) -> dict[str, float]:
    """What the paper has after e2e, and cover EM, which it has after instruct."""
    return paper.numbers("instruct", **options) | paper.numbers("e2e", start="instruct", **options)


SWEEPS = {"quickstart": quickstart, "smollm2": smollm2, "compressors": compressors, "sizes": sizes}
