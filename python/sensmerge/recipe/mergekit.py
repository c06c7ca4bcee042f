"""mergekit's parameters and keys that this package lacks."""

from __future__ import annotations

from typing import Any

# Parameters that are accepted for any method and ignored; int8_mask saves memory in mergekit.
OTHER_PARAMETERS = frozenset({"int8_mask"})

# mergekit's keys that would change the merge, and so cannot be ignored.
UNSUPPORTED = ("tokenizer", "chat_template")


def unsupported(key: str, value: Any) -> str | None:
    """Why a key cannot be left out of account, and what to do; None where it says nothing.

    Args:
        key: One of :data:`UNSUPPORTED`.
        value: What the recipe says.
    """
    if value is None or (key == "chat_template" and value == "auto"):
        return None
    if key == "chat_template":
        return (
            "replacing it is not supported; remove the key: the tokenizer's files are copied as "
            "they are, its template among them"
        )
    return _tokenizer(value)


def _tokenizer(value: Any) -> str:
    section = value if isinstance(value, dict) else {}
    source = section.get("source")
    if source == "union":
        return (
            "building a union of tokenizers is not supported; if the models share one tokenizer, "
            "write tokenizer_source: base in its place"
        )
    if isinstance(source, dict):
        source = source.get("path")
    if "tokens" in section:
        return "choosing single tokens is not supported; tokenizer_source takes a tokenizer whole"
    name = source if isinstance(source, str) else "base"
    return f"this section is not supported; write tokenizer_source: {name} in its place"
