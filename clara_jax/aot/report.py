"""What `--mode=compile` gives, as a table, and what to change where it does not fit."""

from typing import Any

from clara_jax.config import Config
from clara_jax.stages import STAGES

_SPARE = 0.05  # share of HBM below which a program that fits is called tight


def table(result: dict[str, Any]) -> str:
    """A table of memory, collectives and time, from the JSON object of `--mode=compile`."""
    limit, total = result["hbm_limit_bytes"], result["hbm_bytes_per_device"]
    mesh = " x ".join(f"{name} {size}" for name, size in result["mesh"].items() if size > 1)
    lines = [
        f"{result['program']} ({result['stage']}) of {result['model']}, "
        f"{result['parameters'] / 1e9:.2f}B parameters, {result['rows']} rows, on "
        f"{result['topology']}, {result['devices']} devices ({mesh or 'one'})",
        "",
        "HBM of one device         GiB",
        *(f"  {kind:<18} {size / 2**30:>8.2f}" for kind, size in result["hbm_by_kind"].items()),
        f"  {'total':<18} {total / 2**30:>8.2f}"
        + (f" of {limit / 2**30:.2f}, {_fit(total / limit)}" if limit else ""),
    ]
    if result["predicted_step_seconds"] is not None:
        lines += [
            "",
            "Collectives, a step       GB through one device",
            *(f"  {kind:<18} {n / 1e9:>8.3f}" for kind, n in result["collective_bytes"].items()),
            "",
            "Time, predicted           s",
            f"  {'computing':<18} {result['compute_seconds']:>8.4f}",
            f"  {'interconnect':<18} {result['interconnect_seconds']:>8.4f}",
            f"  {'step':<18} {result['predicted_step_seconds']:>8.4f}",
            f"  {result['model_flops_per_step'] / 1e12:.1f} TFLOP a step, MFU "
            f"{result['predicted_mfu']:.3f}",
        ]
        if result["pallas_calls"] or result["unpriced_parts"]:
            lines.append(
                f"  {result['pallas_calls']} calls of Pallas kernels, priced by aot/cost.py; "
                f"{result['unpriced_parts']} parts of unknown length or work count once"
            )
    lines += [f"\n{line}" for line in result["advice"]]
    return "\n".join(lines)


def _fit(share: float) -> str:
    if share > 1:
        return "does NOT fit"
    return f"{1 - share:.0%} to spare" + (": tight" if share > 1 - _SPARE else "")


def advice(config: Config, result: dict[str, Any]) -> list[str]:
    """What to change, what frees most first; nothing for a program that fits."""
    if result["fits"] is not False:
        return []
    kinds, mesh, model, train = result["hbm_by_kind"], result["mesh"], config.model, config.train
    over = result["hbm_bytes_per_device"] - result["hbm_limit_bytes"]
    ways = []
    if result["program"] == "train":
        if model.remat != "full":
            ways.append("--config.model.remat=full, or the names of fewer layers to keep")
        if train.loss_chunks == 1 and STAGES[config.stage].answers:
            ways.append("--config.train.loss_chunks=8: logits come in blocks")
        if result["rows"] % (2 * train.accumulate * mesh["data"] * mesh["fsdp"]):
            ways.append("--config.train.batch_rows: fewer rows a step")
        else:
            ways.append(f"--config.train.accumulate={2 * train.accumulate}: half the activations")
        if model.attention == "xla":
            ways.append("--config.model.attention=auto: the TPU's kernel holds no scores")
    else:
        if config.eval.batch > 1:
            ways.append(f"--config.eval.batch={config.eval.batch // 2}: fewer rows at once")
        if result["program"] == "search":
            ways.append(f"--config.search.key={config.search.key // 2}: half the keys")
    base = kinds.get("base", 0)
    if base > over / 4:  # else it would not help
        if model.param_dtype == "float32":
            ways.append("--config.model.param_dtype=bfloat16: half the base")
        elif model.param_dtype == "bfloat16" and not train.full:
            ways.append("--config.model.param_dtype=int8: half the base")
    if mesh["data"] > 1:
        ways.append("--config.mesh.data=1 --config.mesh.fsdp=-1: the base cut over all devices")
    ways.append("a topology of more chips")
    if base > kinds["temporaries"]:  # then the weights are the trouble
        ways.sort(key=lambda way: not any(word in way for word in ("param_dtype", "mesh")))
    first = f"{over / 2**30:.1f} GiB too much. Change one or more of these:"
    return [first, *(f"  {way}" for way in ways)]
