"""Training data from documents, by any OpenAI-compatible endpoint: options of `config.synthesis`.

python -m clara_jax.main --mode=synthesize --config=configs/synthesize.py --documents=corpus.jsonl
    --output=data/scp --config.synthesis.base_url=http://127.0.0.1:8000/v1
    --config.synthesis.model=NAME
"""

from clara_jax import config as clara_config


def get_config():
    """Documents of 256 tokens, ten rounds of questions at most, one paraphrase."""
    return clara_config.default()
