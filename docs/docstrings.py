"""For the API reference: what Griffe does not know of the docstrings' form."""

from __future__ import annotations

import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """`Example:` is code, as its ``>>>`` says; what is `Called with:` is a list."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        if obj.docstring is None:
            return
        text = re.sub(r"^( *)Example:$", r"\1Examples:", obj.docstring.value, flags=re.MULTILINE)
        before, heading, rest = text.partition("Called with:\n")
        block, blank, after = rest.partition("\n\n")
        items = re.sub(r"^(    )(\w+: )", r"\1- \2", block, flags=re.MULTILINE)
        obj.docstring.value = before + heading + items + blank + after
