"""gptcli checkpoints: what lies under checkpoints/."""

import json as json_module
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from gptcli.checkpoints import layout
from gptcli.checkpoints.layout import MAKE_ONE, ROOT, find, newest_here, read_config
from gptcli.checkpoints.safetensors_file import read_header
from gptcli.cli import options, render
from gptcli.config.fields import as_dict
from gptcli.config.model import PRESETS, GPTConfig
from gptcli.errors import GptcliError
from gptcli.model.cost import parameter_count


def checkpoints(
    name: Annotated[str | None, typer.Argument(help="Describe this checkpoint: its name or its directory.")] = None,
    prune: Annotated[
        bool,
        typer.Option(
            "--prune", help="Remove the files that only resuming this run needs; the best and last weights stay."
        ),
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """List the checkpoints under checkpoints/, or describe one."""
    if prune:
        _prune(name)
        return
    if name is not None:
        details = _describe(find(name))
        if as_json:
            render.print_json(details)
        else:
            _print_details(details)
        return
    # Every directory that holds either file: a damaged checkpoint is shown, not passed over.
    names = (layout.CONFIG, layout.WEIGHTS, layout.ADAPTER_CONFIG, layout.ADAPTER_WEIGHTS)
    rows = [_describe_or_say_why(path) for path in sorted(layout.known_paths(*names))]
    rows.sort(key=lambda row: str(row.get("date", "")), reverse=True)
    if as_json:
        render.print_json(rows)
    elif rows:
        _print_table(rows)
    else:
        here = newest_here()
        hint = f"{MAKE_ONE}, or gptcli load-gpt2"
        if here is not None:
            hint = f"The newest in this folder is {here}: gptcli checkpoints {here} describes it"
        render.note(f"There is no checkpoint under {ROOT}{os.sep} yet. {hint}")


def _prune(name: str | None) -> None:
    if name is None:
        raise GptcliError("--prune takes the name of one run.", "gptcli checkpoints lists them.")
    from gptcli.training import disk

    path = find(name)
    freed = disk.prune(path)
    if not freed:
        render.note(f"{path} holds nothing that only resuming needs.")
        return
    render.note(f"{path}: {render.human_bytes(freed)} are free again. The run can no longer be resumed.")


def _describe_or_say_why(path: Path) -> dict[str, Any]:
    try:
        return _describe(path)
    except GptcliError as error:
        return {"name": path.name, "path": str(path), "error": error.message}


def _describe(path: Path) -> dict[str, Any]:
    """What config.json and the header of the weights say. No weight is read, so this answers at once."""
    config, ours = read_config(path)
    file = layout.weights_file(path)
    header = read_header(file)
    training = ours.get("training") or {}
    tokenizer = ours.get("tokenizer") or {}
    modified = datetime.fromtimestamp(file.stat().st_mtime).astimezone()
    best = training.get("best") if isinstance(training, dict) else None
    best = best if isinstance(best, dict) else {}
    return {
        "name": path.resolve().name,
        "path": str(path),
        "size": _size(config) + (" + adapter" if layout.is_adapter(path) else ""),
        "parameters": parameter_count(config),
        "adapter": _adapter(path, ours) if layout.is_adapter(path) else None,
        "tokenizer": tokenizer.get("kind") if isinstance(tokenizer, dict) else None,
        "step": _number(training, "step"),
        "val_loss": _number(training, "val_loss"),
        "best_step": _number(best, "step"),
        "best_val_loss": _number(best, "val_loss"),
        "weights": training.get("weights", "last") if isinstance(training, dict) else "last",
        "date": modified.isoformat(timespec="seconds"),
        "bytes": header.size,
        "dtypes": sorted({info.dtype for info in header.tensors.values()}),
        "tensors": len(header.tensors),
        "config": as_dict(config),
        "training": training,
        "files": {file.name: file.stat().st_size for file in sorted(path.iterdir()) if _is_shown(file)},
    }


def _adapter(path: Path, ours: Mapping[str, Any]) -> dict[str, Any]:
    from gptcli.checkpoints.adapter_file import read

    found, base = read(path), ours.get("base")
    about = {"rank": found.config.rank, "alpha": found.config.alpha, "targets": list(found.config.targets)}
    return about | {"parameters": found.parameters, "base": base.get("path") if isinstance(base, dict) else None}


def _is_shown(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")


def _number(training: Mapping[str, Any], name: str) -> float | int | None:
    value = training.get(name) if isinstance(training, dict) else None
    return value if isinstance(value, int | float) else None


def _size(config: GPTConfig) -> str:
    """The preset of these widths and depths, or the numbers themselves."""
    for name, preset in PRESETS.items():
        if (preset.n_layers, preset.n_heads, preset.emb_dim) == (config.n_layers, config.n_heads, config.emb_dim):
            return name
    return f"{config.n_layers}×{config.emb_dim}, {config.n_heads} heads"


def _print_table(rows: list[dict[str, Any]]) -> None:
    cells = []
    for row in rows:
        if "error" in row:
            cells.append([row["name"], "damaged", "", "", "", "", "", ""])
            continue
        cells.append(
            [
                row["name"],
                row["size"],
                f"{row['parameters']:,}",
                row["tokenizer"] or "?",
                "" if row["step"] is None else f"{row['step']:,}",
                _best_and_last(row),
                row["date"][:16].replace("T", " "),
                render.human_bytes(row["bytes"]),
            ]
        )
    columns = [("name", "left"), ("size", "left"), ("parameters", "right"), ("tokenizer", "left"), ("step", "right")]
    columns += [("val loss: best, last", "right"), ("date", "left"), ("weights", "right")]
    render.print_table(f"{ROOT}/, newest first", columns, cells)
    for row in rows:
        if "error" in row:
            render.warn(f"{row['name']}: {row['error']}")


def _best_and_last(row: Mapping[str, Any]) -> str:
    """The validation losses: the best, its step and the last; the weights hold the one without brackets."""
    last = "" if row["val_loss"] is None else f"{row['val_loss']:.3f}"
    if row["best_val_loss"] is None:
        return last
    where = f"at {row['best_step']:,}" if row["best_step"] >= 0 else "before the first step"
    best = f"{row['best_val_loss']:.3f} {where}"
    return f"{best}, ({last})" if row["weights"] == "best" else f"({best}), {last}"


def _print_details(details: Mapping[str, Any]) -> None:
    rows = [
        ("path", details["path"]),
        ("size", details["size"]),
        ("parameters", f"{details['parameters']:,}"),
        ("tokenizer", details["tokenizer"] or "?"),
        ("weights", f"{details['tensors']} tensors of {', '.join(details['dtypes'])}, {details['bytes']:,} bytes"),
        ("date", details["date"].replace("T", " ")),
    ]
    shape = details["config"] | {"labels": ", ".join(details["config"]["labels"])}
    if details["adapter"]:
        rows += [(f"adapter: {name}", _plain(value)) for name, value in details["adapter"].items()]
    rows += [(name, str(value)) for name, value in shape.items() if value != ""]
    rows += _flat("training", details["training"])
    rows += [(f"file: {name}", f"{size:,} bytes") for name, size in details["files"].items()]
    render.print_table(details["name"], [("", "left"), ("", "words")], rows)


def _flat(title: str, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A row for each value; a group of values, such as the recipe, is flattened under its own name."""
    rows: list[tuple[str, str]] = []
    for name, value in values.items():
        rows += _flat(name, value) if isinstance(value, Mapping) else [(f"{title}: {name}", _plain(value))]
    return rows


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json_module.dumps(value, ensure_ascii=False)
