"""gptcli doctor: what is here, what works, what is missing."""

import os
import platform
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from gptcli import __version__
from gptcli.cli import options, render

WIDTH = 80


def doctor(
    clean_cache: Annotated[
        bool, typer.Option("--clean-cache", help="Remove the kernels that gptcli has compiled, and nothing else.")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Check what is installed, what works and what is missing; exit 1 if gptcli cannot work.

    Needs no network, and leaves no file but compiled kernels in the cache. A machine that has not compiled them yet
    takes up to a minute more.
    """
    if clean_cache:
        _clean(as_json)
        return
    found = _examine()
    if as_json:
        render.print_json(found)
    else:
        _print(found)
    if not found["ok"]:
        raise typer.Exit(1)


def _clean(as_json: bool) -> None:
    from gptcli.device.inventory import shown
    from gptcli.evaluation.self_check import clean_caches

    removed = clean_caches()
    if as_json:
        render.print_json([{"path": shown(cache.path), "bytes": cache.size} for cache in removed])
        return
    for cache in removed:
        render.print_text(f"Removed {shown(cache.path)}: {cache.size:,} bytes.")
    if not removed:
        render.note("gptcli has cached nothing.")


def _examine() -> dict[str, Any]:
    from gptcli.device import inventory
    from gptcli.evaluation import self_check

    cwd = Path()
    checks = list(self_check.checks(cwd, render.note))
    found: dict[str, Any] = {
        "ok": all(check.ok for check in checks if check.required),
        "gptcli": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: inventory.version_of(name) for name in (*inventory.REQUIRED, *inventory.OPTIONAL)},
        "processor": inventory.processor() if inventory.version_of("psutil") else {},
        "threads": _threads(),
        "environment": {
            name: os.environ[name]
            for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "NUMBA_CACHE_DIR", "HF_HOME", "HF_HUB_OFFLINE")
            if name in os.environ
        },
    }
    try:
        found["devices"] = inventory.devices()
    except Exception:  # the checks say why torch does not load
        found["devices"] = []
    found["caches"] = [
        {"name": cache.name, "owner": cache.owner, "path": inventory.shown(cache.path), "bytes": cache.size}
        for cache in self_check.caches()
    ]
    found["checks"] = [asdict(check) for check in checks]
    found["missing"] = [
        {"package": name, "for": use, "command": inventory.install_command(name)}
        for name, use in (dict.fromkeys(inventory.REQUIRED, "gptcli itself") | inventory.OPTIONAL).items()
        if found["packages"][name] is None and (name != "triton" or len(found["devices"]) > 1)
    ]
    return found


def _threads() -> dict[str, int | None]:
    """CPU threads as `generate` (compiled kernels) and `train` (torch) use them by default."""
    try:
        import torch

        from gptcli.inference.open import count_threads

        return {"generate": count_threads(None), "train": torch.get_num_threads()}
    except Exception:  # the checks say what does not load
        return {"generate": None, "train": None}


def _print(found: dict[str, Any]) -> None:
    versions = {name: version for name, version in found["packages"].items() if version is not None}
    _line("gptcli", f"{found['gptcli']}, Python {found['python']}, {found['system']}")
    _line("packages", ", ".join(f"{name} {version}" for name, version in versions.items()))
    cpu, threads = found["processor"], found["threads"]
    if cpu:
        _line("processor", f"{cpu['name']}: {cpu['physical_cores']} cores, {cpu['logical_cores']} hardware threads")
        _line("features", " ".join(cpu["features"]) or "unknown")
        total, free = (render.human_bytes(cpu[name]) for name in ("memory_bytes", "memory_free_bytes"))
        _line("memory", f"{total}, {free} free")
    _line("threads", f"{threads['generate']} for generate, {threads['train']} for train; --threads changes it")
    for device in found["devices"]:
        memory = "" if device["memory_bytes"] is None else f", {render.human_bytes(device['memory_bytes'])}"
        _line("device", f"{device['device']}: {device['name']}{memory}")
    for name, value in found["environment"].items():
        _line("variable", f"{name}={value}")
    for cache in found["caches"]:
        _line("cache", f"{cache['name']} of {cache['owner']}, {render.human_bytes(cache['bytes'])}: {cache['path']}")
    render.print_text("")
    for check in found["checks"]:
        state = "works" if check["ok"] else "FAILS" if check["required"] else "absent"
        _line(state, f"{check['name']}: {check['detail']}")
        if check["fix"]:
            _line("", check["fix"])
    if found["missing"]:
        render.print_text("")
    for missing in found["missing"]:
        _line("missing", f"{missing['package']}, for {missing['for']}: {missing['command']}")
    render.print_text("")
    render.print_text(
        "gptcli can train and generate on this machine."
        if found["ok"]
        else "gptcli cannot train and generate on this machine: repair what FAILS."
    )


def _line(name: str, text: str) -> None:
    """A name, and its text broken at `WIDTH` columns; words longer than a line, such as paths, stay whole."""
    indent = " " * 12
    lines = textwrap.wrap(text, WIDTH - len(indent), break_long_words=False, break_on_hyphens=False) or [""]
    render.print_text(f"{name:<{len(indent)}}" + f"\n{indent}".join(lines))
