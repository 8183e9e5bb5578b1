import dataclasses

import pytest

from clara_jax.config import Config, Data, Eval, Memory, Mesh, Model, Optim, Prompts, Train
from clara_jax.models.config import LoraConfig


@pytest.fixture(scope="session")
def tiny() -> Config:
    """SCP of a random two-kilobyte model on generated facts: seconds, no files."""
    return Config(
        model=Model(preset="tiny", tokenizer="facts", vocab_size=192),
        data=Data(
            sources="facts:200",
            document_length=30,
            rate=10,
            encoder_row=48,
            decoder_row=64,
            packing_bins=8,
        ),
        memory=Memory(init="tokens"),
        lora=LoraConfig(dropout=0.0),  # whose draws take half of a step that is not optimised
        train=Train(steps=4, batch_rows=8, log_every=1, checkpoint_every=2),
        optim=Optim(learning_rate=1e-2),
        eval=Eval(sources="facts:4:1", max_new_tokens=4),
        mesh=Mesh(fsdp=1),
        prompts=dataclasses.replace(Prompts(), qa_system="", qa_user="{docs}"),
    )
