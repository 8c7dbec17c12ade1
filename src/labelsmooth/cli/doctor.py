"""``labelsmooth doctor``"""

from __future__ import annotations

from typing import Any

from labelsmooth.cli.output import Json, console, print_json


def doctor(*, json: Json = False) -> None:
    """What this machine has, what will be used, and why."""
    import importlib.util

    from labelsmooth.torch import _paths
    from labelsmooth.training import cifar10
    from labelsmooth.training.cache import cache_folder
    from labelsmooth.training.devices import choose_device, choose_precision
    from labelsmooth.training.run import environment

    device = choose_device("auto")
    _, precision = choose_precision("auto", device)
    found: dict[str, Any] = environment(str(device), precision)
    found["other_frameworks"] = [name for name in ("jax", "keras", "tensorflow") if importlib.util.find_spec(name)]
    found["loss_path"] = _paths.described()
    found["cache"] = str(cache_folder())
    found["cifar10_downloaded"] = (cache_folder() / cifar10.ARCHIVE).is_file()
    if json:
        print_json(found)
        return
    versions = ", ".join(f"{name} {version or 'missing'}" for name, version in found["versions"].items())
    lines = [
        f"labelsmooth  {found['labelsmooth']}, Python {found['python']}, {found['platform']}",
        f"libraries    {versions}",
        f"frameworks   torch{''.join(', ' + name for name in found['other_frameworks'])}",
        f"processor    {found['processor']}, {found['cores']} cores, {found['threads']} threads",
        f"device       {found['device']}{' ' + found['device_name'] if found['device_name'] else ''}",
        f"precision    {found['precision']}",
        f"loss         {found['loss_path']}",
        f"cache        {found['cache']}; CIFAR-10 is {'' if found['cifar10_downloaded'] else 'not '}downloaded",
    ]
    console(False).print("\n".join(lines), markup=False)
