"""Questions to an endpoint, their replies kept."""

from typing import Any

from clara_jax.config import Synthesis
from clara_jax.data import records
from clara_jax.endpoint.client import Endpoint, Failed, Reply
from clara_jax.endpoint.prompts import Prompts
from clara_jax.endpoint.replies import Replies


class Asker:
    """Requests of one job: each once, also over several runs.

    Args:
        job: its key.
        endpoint: what answers.
        store: where replies are kept, and may be from an earlier run.
        prompts: what to ask with.
        options: temperature, and how often to ask again for JSON.
        seed: of the run.
    """

    def __init__(
        self,
        job: str,
        endpoint: Endpoint,
        store: Replies,
        prompts: Prompts,
        options: Synthesis,
        seed: int,
    ):
        self._job, self._endpoint, self._store, self._prompts = job, endpoint, store, prompts
        self._options, self._seed = options, seed
        self._kept = store.of(job)
        self.malformed = 0

    async def __call__(
        self, step: str, name: str, greedy: bool = True, /, **places: str
    ) -> dict[str, Any]:
        """The reply to a prompt.

        Raises:
            Failed: it is never what was asked for, or refused.
            Unavailable: the endpoint gives nothing but errors now.
        """
        messages, error = None, ""
        for attempt in range(self._options.repairs + 1):
            reply = self._kept.pop(f"{step}.{attempt}", None)
            if reply is None:
                messages = messages or self._prompts.messages(name, **places)
                reply = await self._ask(f"{step}.{attempt}", name, messages, greedy, attempt)
            if reply.value is not None:
                return reply.value
            self.malformed, error = self.malformed + 1, reply.error
        raise Failed(f"malformed reply to {name}: {error}")

    async def _ask(self, step: str, name: str, messages: Any, greedy: bool, attempt: int) -> Reply:
        # Asked greedily again, a model says the same again.
        temperature = 0.0 if greedy and not attempt else self._options.temperature
        drawn = int.from_bytes(records.digest(f"{self._seed} {self._job} {step}")[:4], "big") >> 1
        reply = await self._endpoint.ask(name, messages, temperature, drawn)
        self._store.add(self._job, step, reply)
        return reply
