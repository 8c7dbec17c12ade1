"""``labelsmooth data``"""

from __future__ import annotations

from typing import Any

from labelsmooth._text import shortened
from labelsmooth.cli.output import Bar, Json, WholeNumber, console, data_progress, print_json

_SHOWN = 20  # classes, and left-out entries


def data(
    data: str = "digits",
    *,
    image_size: WholeNumber | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    json: Json = False,
) -> None:
    """What data are, and what is wrong with them: classes, splits, sizes, duplicates, leaks. Trains nothing.

    Args:
        data: as for train.
        image_size: resize images to this height and width; by the data if not given.
        image_column: the column of images in a table; found by its type and name if not given.
        label_column: the column of labels in a table; found by its name if not given.
    """
    from labelsmooth.training.survey import survey

    screen = console(json)
    with Bar(screen) as bar:
        found = survey(
            data,
            image_size=image_size,
            image_column=image_column,
            label_column=label_column,
            progress=data_progress(screen, bar),
        )
    if json:
        print_json(found)
    else:
        screen.print("\n".join(_lines(found)), markup=False)


def _lines(found: dict[str, Any]) -> list[str]:
    sizes, examples, counts = found["sizes"], found["examples"], found["class_counts"]
    height, width, channels = found["image_shape"]
    own = ", ".join(found["own_splits"])
    own += "" if "val" in found["own_splits"] else "; a training takes validation from train"
    small, median, large = (f"{sizes[name][0]}x{sizes[name][1]}" for name in ("smallest", "median", "largest"))
    balance = f"the largest has {found['imbalance']:.3g} times the training images of the smallest"
    balance = "all have the same number of training images" if found["imbalance"] == 1 else balance
    shape = f"{height}x{width}, {'grey' if channels == 1 else 'RGB'}"
    lines = [
        f"data         {found['name']}: {found['source']}",
        f"content      SHA-256 {found['sha256']}",
        f"examples     {', '.join(f'{count} {name}' for name, count in examples.items())} (its own: {own})",
        f"images       {small}" if sizes["different"] == 1 else
        f"images       {sizes['different']} sizes from {small} to {large}, in the middle {median}",
        f"trained at   {shape}",
        f"classes      {len(found['classes'])}; {balance}",
    ]  # fmt: skip
    width = max(len(name) for name in found["classes"][:_SHOWN])
    for number, name in enumerate(found["classes"][:_SHOWN]):
        each = ", ".join(f"{counts[split][number]} {split}" for split in examples)
        lines.append(f"             {name:<{width}}  {each}")
    if len(found["classes"]) > _SHOWN:
        lines.append(f"             ... and {len(found['classes']) - _SHOWN} more (--json lists all)")
    copies = {name: count for name, count in found["duplicates"].items() if count}
    lines.append(f"duplicates   {', '.join(f'{count} {name}' for name, count in copies.items()) or 'none'}")
    if any(" in " in name for name in copies):
        lines.append("             images of one split that are in another, pixel for pixel, flatter its figures")
    if found["contradictions"]:
        lines.append(f"labels       {found['contradictions']} images have copies with another label")
    skipped = found["skipped"]
    shown = skipped[:_SHOWN] or ["nothing"]
    lines += [f"{'' if number else 'left out':<13}{shortened(line, 200)}" for number, line in enumerate(shown)]
    if len(skipped) > _SHOWN:
        lines.append(f"             ... and {len(skipped) - _SHOWN} more (--json lists all)")
    lines += [f"{'note':<13}{note}" for note in found["notes"]]
    return lines
