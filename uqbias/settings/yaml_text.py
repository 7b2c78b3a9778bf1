"""YAML text to values: keys given twice, endless aliases and deep nesting are refused."""

from __future__ import annotations

import re
from typing import Any

import yaml

from uqbias.errors import UqbiasError

#: A campaign file nests no deeper, and holds no more entries when its aliases are written out.
DEEPEST, MOST_ENTRIES = 64, 100_000
MERGE = "tag:yaml.org,2002:merge"


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc] # libyaml is not everywhere
    """Safe loader that refuses a key given twice and endless aliases, and reads 1e-3 as a number."""

    def get_single_node(self) -> Any:
        """The document, checked before anything is made of it: here an alias costs nothing yet."""
        node = super().get_single_node()
        self._measures: dict[int, tuple[int, int]] = {}
        self._measure(node, 0)
        return node

    def _measure(self, node: Any, depth: int) -> tuple[int, int]:
        """Number of entries of a node, its aliases written out, and levels below it."""
        if not isinstance(node, yaml.CollectionNode):
            return 1, 0
        if depth > DEEPEST:
            raise UqbiasError(f"more than {DEEPEST} levels of nesting", "write it flatter")
        if id(node) not in self._measures:
            below = node.value
            if isinstance(node, yaml.MappingNode):
                self._refuse_twice([key for key, _ in below if isinstance(key, yaml.ScalarNode)])
                below = [part for pair in below for part in pair]
            parts = [self._measure(part, depth + 1) for part in below]
            sizes, heights = zip(*parts, strict=True) if parts else ((), ())
            self._measures[id(node)] = 1 + sum(sizes), 1 + max(heights, default=0)
        size, height = self._measures[id(node)]
        if depth + height > DEEPEST or size > MOST_ENTRIES:
            raise UqbiasError(
                f"more than {MOST_ENTRIES} entries or {DEEPEST} levels of nesting, aliases written out",
                "use fewer aliases",
            )
        return size, height

    def flatten_mapping(self, node: Any) -> None:
        """YAML's ``<<``: what stands first comes first, the mapping itself before all; PyYAML confuses short keys."""
        sources = [value for key, value in node.value if key.tag == MERGE]
        node.value = [pair for pair in node.value if pair[0].tag != MERGE]
        for part in [one for value in sources for one in (value.value if value.id == "sequence" else [value])]:
            if not isinstance(part, yaml.MappingNode):
                raise UqbiasError(f"'<<' without a mapping (line {part.start_mark.line + 1})", "write `<<: *name`")
            self.flatten_mapping(part)
            node.value = part.value + node.value

    def _refuse_twice(self, keys: list[yaml.ScalarNode]) -> None:
        seen = set()
        for node in keys:
            # Only what a mapping itself has counts: what `<<` brings in may be overridden.
            key = node.value if node.tag == MERGE else self.construct_object(node, deep=True)
            if key in seen:
                raise UqbiasError(f"key '{key}' is given twice (line {node.start_mark.line + 1})", "keep one of them")
            seen.add(key)


Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789.")
)


def read_yaml(text: str | bytes) -> Any:
    """The value that YAML text stands for.

    Raises
    ------
    UqbiasError
        If it is not YAML, holds a key twice, or becomes too large.
    """
    try:
        # Text of the wrong coding too; and PyYAML makes all kinds of errors of dates and tags that it cannot read.
        return yaml.load(text if isinstance(text, str) else text.decode(), Loader=Loader)
    except UqbiasError:
        raise
    except Exception as error:
        raise UqbiasError(f"the text is not YAML ({' '.join(str(error).split())})") from error
