"""Stand-ins for `corpus` and `checks` where the package does not have them; and the command line.

`python tests/synthesis/standins.py --mode=synthesize …` is `python -m clara_jax.main …` with them.
"""

import importlib.util
import json
import sys
import types

from clara_jax.errors import UserError
from clara_jax.synthesis.document import Document


class Checks:
    def __init__(self, pairs=()):
        self.flags = ((),) * len(pairs)
        self.coverage = {"entities": 1.0}

    def as_json(self):
        return {"flags": [list(flags) for flags in self.flags], "coverage": self.coverage}


def read(names, config):
    del config
    for name in names.split(","):
        try:
            lines = open(name, encoding="utf-8").read().splitlines()
        except OSError as e:
            raise UserError(f"{name}: cannot be read ({e.strerror})") from e
        for number, line in enumerate(lines, 1):
            value = json.loads(line)
            yield Document(
                f"{name}:{number}", value.get("title", ""), value["text"], f"{name}:{number}"
            )


STANDINS = {
    "corpus": {"read": read},
    "checks": {
        "check": lambda document, pairs, language: Checks(pairs),
        "check_paraphrase": lambda document, text, language: Checks(),
    },
}


def install():
    import clara_jax.synthesis as package

    for name, content in STANDINS.items():
        full = f"clara_jax.synthesis.{name}"
        if full not in sys.modules and importlib.util.find_spec(full) is None:
            sys.modules[full] = types.ModuleType(full)
            vars(sys.modules[full]).update(content)
            setattr(package, name, sys.modules[full])


if __name__ == "__main__":
    install()
    from clara_jax import main

    sys.exit(main.main())
