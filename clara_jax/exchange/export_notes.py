"""README.md of each format of `--mode=export`."""

_HEAD = """# {title}

CLaRa (arXiv 2511.18659): documents of up to {tokens} tokens become {M} memory vectors each (rate
{rate}), which a language model reads in place of the text. Written by clara_jax.
"""

# By `config.memory.positions`.
POSITIONS = {
    "after": "",
    "spread": "This model's memory tokens do not have the rotary positions after the text, but lie "
    "evenly over it: token j of {M} at (2 j + 1) T // (2 {M}) of T tokens before it. ",
}

NOTES = {
    "native": _HEAD
    + """
```python
import clara_jax

clara = clara_jax.load("{title}")  # base=… says where the base model is, if not on the hub
memories = clara.compress(["A document.", "Another one."])  # [2, {M}, D]
clara.ask(["A question?"], [memories], top_k=1)[0].text
```

`config.json` names the base model and holds all settings, `weights.safetensors` the adapters, the
memory tokens' embeddings and those of the other added tokens. To train on, give it as
`--config.init_from`.
""",
    "peft": _HEAD
    + """
`compressor`, `reasoner` and `generator`, as far as they are here, are PEFT adapters of `{base}`:

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, "{title}/generator")
```

`weights.safetensors` holds what is no adapter: `memory` [{M}, D], the input embeddings of the
memory tokens, and `added/embed` [3, D], those of AE, ENC and SEP (`added/head`, if it is there, is
their and the memory tokens' columns of the head). A document is compressed by the compressor from
the embeddings of ENC, bos, text, eos and the memory tokens; the hidden states after the final norm
at the memory tokens are its vectors. In the generator's prompt they take the place of input
embeddings, SEP after each document. {positions}`clara_jax.load("{title}")` does all of it.
""",
    "release": _HEAD
    + """
The layout of apple/ml-clara. In PyTorch, with its `modeling_clara.py` here or on the path:

```python
from modeling_clara import CLaRa

model = CLaRa.from_pretrained("{title}")
```

`decoder_model_name` in config.json names the base model (`{base}`). With clara_jax:
`clara_jax.load("{title}", base="{base}")`.
""",
    "merged": _HEAD
    + """
The generator's adapter is folded into `{base}`: a plain Hugging Face model that transformers, vLLM
and others load. It reads memories as prompt embeddings, which clara_jax makes on another machine:

```python
import clara_jax

clara = clara_jax.load("WORKDIR")  # what this was exported from
memories = clara.compress(documents)
embeddings = clara.prompt_embeddings(["A question?"], [memories])[0]  # float32 [T, D]
```

In transformers give them as `model.generate(inputs_embeds=torch.tensor(embeddings)[None])`; in vLLM
start with `enable_prompt_embeds=True` and give `{{"prompt_embeds": torch.tensor(embeddings)}}` in
place of a text, in the model's dtype.
""",
}
