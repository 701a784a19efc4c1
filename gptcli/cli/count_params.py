"""gptcli count-params: what a shape weighs and costs, by arithmetic alone."""

import functools
from dataclasses import asdict
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any

import typer

from gptcli.cli import options, render
from gptcli.cli.settings import option_of
from gptcli.config.fields import as_dict
from gptcli.config.model import GPT3_PRESETS, GPTConfig
from gptcli.config.recipe import RecipeConfig
from gptcli.errors import GptcliError
from gptcli.model import cost
from gptcli.model import parameters as shapes

shape_option = functools.partial(option_of, GPTConfig)
_SIZES = "tiny, mini, small, medium, large, xl, gpt3, gpt3-13b …"


def count_params(
    checkpoint: Annotated[
        Path | None, typer.Argument(help="A checkpoint directory, or its name under checkpoints/.", show_default=False)
    ] = None,
    checkpoint_option: Annotated[
        Path | None, typer.Option("--checkpoint", "-c", help="The checkpoint, as an option.", show_default=False)
    ] = None,
    size: Annotated[
        str | None, typer.Option("--size", help=f"A named shape: {_SIZES} (default: small).", show_default=False)
    ] = None,
    vocab_size: Annotated[int | None, shape_option("vocab_size")] = None,
    context_length: Annotated[int | None, shape_option("context_length")] = None,
    emb_dim: Annotated[int | None, shape_option("emb_dim")] = None,
    n_heads: Annotated[int | None, shape_option("n_heads")] = None,
    n_layers: Annotated[int | None, shape_option("n_layers")] = None,
    drop_rate: Annotated[float | None, shape_option("drop_rate")] = None,
    qkv_bias: Annotated[bool | None, shape_option("qkv_bias")] = None,
    tie_weights: Annotated[bool | None, shape_option("tie_weights")] = None,
    ffn_dim: Annotated[int | None, shape_option("ffn_dim")] = None,
    batch_size: Annotated[
        int, typer.Option("--batch-size", help="Windows in a training step.")
    ] = RecipeConfig.batch_size,
    train_context: Annotated[
        int | None,
        typer.Option("--train-context", help=f"Tokens in a window (default: {RecipeConfig.context_length})."),
    ] = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Count parameters, bytes, training memory and FLOPs of a size, a checkpoint or any shape."""
    name, config = _shape(checkpoint, checkpoint_option, size)
    changed = config.with_changes(
        vocab_size=vocab_size,
        context_length=context_length,
        emb_dim=emb_dim,
        n_heads=n_heads,
        n_layers=n_layers,
        drop_rate=drop_rate,
        qkv_bias=qkv_bias,
        tie_weights=tie_weights,
        ffn_dim=ffn_dim,
    )
    context = _training_context(train_context, batch_size, changed)
    figures = {"name": name, "changed": changed != config} | _figures(changed, batch_size, context)
    if name in GPT3_PRESETS:
        figures["gpt3_training"] = _gpt3_training(changed)
    if json:
        render.print_json(figures)
    else:
        _print(figures)


def _shape(checkpoint: Path | None, checkpoint_option: Path | None, size: str | None) -> tuple[str, GPTConfig]:
    """A name to show, and the shape before single fields are replaced."""
    if checkpoint is not None and checkpoint_option is not None:
        raise GptcliError(f"Two checkpoints are given: {checkpoint} and {checkpoint_option}.", "Count one at a time.")
    path = checkpoint or checkpoint_option
    if path is None:
        return size or "small", cost.size_named(size or "small")
    if size is not None:
        raise GptcliError(
            f"Both a checkpoint ({path}) and --size {size} are given.", "A checkpoint has its size; leave one out."
        )
    from gptcli.checkpoints.layout import ROOT, find, gpt2_size, is_adapter, read_config

    if not (path.exists() or (ROOT / path).exists()):
        close = gpt2_size(path.name) or next(iter(get_close_matches(path.name.lower(), cost.SIZES, n=1)), None)
        if close is not None:
            raise GptcliError(f"There is no checkpoint {path}.", f"To count a size: gptcli count-params --size {close}")
    found = find(path)
    if is_adapter(found):
        from gptcli.checkpoints.adapter_file import read

        render.note(f"{found} is an adapter of {read(found).parameters:,} parameters; the counts are the model's.")
    return str(found), read_config(found)[0]


def _training_context(asked: int | None, batch_size: int, config: GPTConfig) -> int:
    """T of the training step to forecast: what was asked for, or the course's 256 where the model reads as many."""
    if batch_size < 1:
        raise GptcliError(f"--batch-size is {batch_size}, but a step needs at least 1 window.", "The course takes 4.")
    if asked is None:
        return min(RecipeConfig.context_length, config.context_length)
    if not 1 <= asked <= config.context_length:
        raise GptcliError(
            f"--train-context is {asked}, outside 1 to {config.context_length}, the model's context.",
            f"Give at most {config.context_length}, or raise --context-length.",
        )
    return asked


def _figures(config: GPTConfig, batch_size: int, context: int) -> dict[str, Any]:
    """Everything the command knows, ready for JSON; bytes and FLOPs are whole numbers."""
    parts = shapes.components(config)
    shares = cost.percentages([part.parameters for part in parts])
    flops = cost.flops_per_token(config)
    per_token = {"float32": 4, "bfloat16": 2}
    cache = {name: cost.kv_cache_bytes_per_token(config, size) for name, size in per_token.items()}
    return {
        "config": as_dict(config),
        "components": [
            {
                "name": part.name,
                "shapes": {tensor: list(shape) for tensor, shape in part.tensors.items()},
                "per_layer": part.parameters_per_layer,
                "layers": part.layers,
                "parameters": part.parameters,
                "percent": share,
            }
            for part, share in zip(parts, shares, strict=True)
        ],
        "parameters": {
            "total": cost.parameter_count(config),
            "tied": cost.parameter_count(config.with_changes(tie_weights=True)),
            "untied": cost.parameter_count(config.with_changes(tie_weights=False)),
            "non_embedding": cost.non_embedding_parameter_count(config),
        },
        "weight_bytes": {f: cost.weight_bytes(config, f) for f in cost.WEIGHT_FORMATS},
        "training_memory": {
            "batch_size": batch_size,
            "context": context,
            "plain": asdict(cost.training_memory(config, batch_size, context)),
            "recompute": asdict(cost.training_memory(config, batch_size, context, recompute=True)),
        },
        "kv_cache_bytes": {
            "per_token": cache,
            "full_context": {name: size * config.context_length for name, size in cache.items()},
        },
        "flops_per_token": {
            "context": config.context_length,
            "rule_forward_2n": cost.forward_flops_rule(config),
            "rule_training_6n": 3 * cost.forward_flops_rule(config),
            "matrices": flops.matrices,
            "attention": flops.attention,
            "forward": flops.forward,
            "training": flops.training,
        },
    }


def _gpt3_training(config: GPTConfig) -> dict[str, Any]:
    compute = cost.training_compute(config)
    return {
        "tokens": cost.GPT3_TRAINING_TOKENS,
        "flops": compute,
        "v100_flops_per_second": cost.V100_FLOPS_PER_SECOND,
        "v100_years": cost.v100_years(compute),
    }


def _print(figures: dict[str, Any]) -> None:
    config, parameters = figures["config"], figures["parameters"]
    render.print_table(
        f"{figures['name']}{', changed' if figures['changed'] else ''}: {parameters['total']:,} parameters",
        _columns("component", "shape", "one", "×", "parameters", "%", left=2),
        [
            (
                part["name"],
                _shapes(list(part["shapes"].values())),
                f"{part['per_layer']:,}",
                str(part["layers"]),
                f"{part['parameters']:,}",
                f"{part['percent']:.1f}",
            )
            for part in figures["components"]
        ]
        + [("total", "", "", "", f"{parameters['total']:,}", "100.0")],
        caption=f"{config['n_layers']} layers, {config['n_heads']} heads, emb_dim {config['emb_dim']:,}, "
        f"context {config['context_length']:,}, vocabulary {config['vocab_size']:,}",
    )
    totals = {
        "tied": "head tied to the token embedding",
        "untied": "head of its own",
        "non_embedding": "no embeddings, no head",
    }
    render.print_table(
        "", _columns("with", "parameters"), [(label, f"{parameters[key]:,}") for key, label in totals.items()]
    )
    _print_weights(figures["weight_bytes"])
    _print_training(figures["training_memory"])
    cache = figures["kv_cache_bytes"]
    render.print_table(
        "",
        _columns("KV cache", "a token", f"{config['context_length']:,} tokens"),
        [
            (name, render.human_bytes(size), render.human_bytes(cache["full_context"][name]))
            for name, size in cache["per_token"].items()
        ],
    )
    _print_flops(figures)


def _print_weights(sizes: dict[str, int]) -> None:
    notes = {
        "float32": "4 bytes a parameter",
        "bfloat16": "2 bytes a parameter",
        "int8": "1 byte a weight, a float32 scale for each output channel",
        "int4": f"½ byte a weight, a bfloat16 scale for each group of {cost.INT4_GROUP}",
    }
    render.print_table(
        "",
        [*_columns("weights", "size"), ("how", "words")],
        [(name, render.human_bytes(size), notes[name]) for name, size in sizes.items()],
        caption="In int8 and int4, positions, biases and norms stay float32.",
    )


def _print_training(memory: dict[str, Any]) -> None:
    labels = {
        "weights": "weights",
        "gradients": "gradients",
        "optimizer": "Adam's two moments",
        "activations": "activations",
        "logits": "logits (a chunk at a time)",
        "peak": "peak of a step",
    }
    plain, recompute = memory["plain"], memory["recompute"]
    render.print_table(
        "",
        _columns(f"training, batch {memory['batch_size']} × {memory['context']}, float32", "plain", "recomputing"),
        [(label, render.human_bytes(plain[key]), render.human_bytes(recompute[key])) for key, label in labels.items()],
        caption="Not all of it exists at once, so the peak is not the sum.",
    )


def _print_flops(figures: dict[str, Any]) -> None:
    flops = figures["flops_per_token"]
    rows = {
        "matrices and head": (flops["matrices"], 3 * flops["matrices"]),
        f"attention over {flops['context']:,} tokens": (flops["attention"], 3 * flops["attention"]),
        "together": (flops["forward"], flops["training"]),
        "rule of thumb: 2N, 6N": (flops["rule_forward_2n"], flops["rule_training_6n"]),
    }
    render.print_table(
        "",
        _columns("GFLOPs a token", "forward", "training"),
        [(label, f"{forward / 1e9:,.3f}", f"{training / 1e9:,.3f}") for label, (forward, training) in rows.items()],
    )
    if "gpt3_training" in figures:
        run = figures["gpt3_training"]
        speed = f"V100-years, at {run['v100_flops_per_second'] / 1e12:.0f} TFLOP/s"
        render.print_table(
            "",
            _columns(f"training on {run['tokens'] / 1e9:,.0f} billion tokens", ""),
            [("FLOPs, 6N a token", f"{run['flops']:.3g}"), (speed, f"{run['v100_years']:,.2f}")],
        )


def _columns(*headings: str, left: int = 1) -> list[tuple[str, str]]:
    """The first ``left`` columns hold words, the others figures."""
    return [(heading, "words" if i < left else "right") for i, heading in enumerate(headings)]


def _shapes(shapes: list[list[int]]) -> str:
    """Such as 768 × 2,304 + 2,304; four equal shapes: 4 of 768."""
    texts = [" × ".join(f"{n:,}" for n in shape) for shape in shapes]
    if len(texts) > 2 and len(set(texts)) == 1:
        return f"{len(texts)} of {texts[0]}"
    return " + ".join(texts)
