"""Conversations laid out by a tokenizer's chat template, and the assistant's tokens in them.

Some templates mark the assistant's words (`{% generation %}`), and these marks are used. With any
other template the conversation is laid out twice for every turn of the assistant: up to the turn,
with the generation prompt, and with the turn. The text by which the second layout is longer is the
assistant's.

Tokens are the assistant's if they begin in such a piece of text, or if they begin before it and
reach into it, as a space with the first word does in some tokenizers.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from sensmerge.calibration.forms import Conversation
from sensmerge.calibration.rendering import Rendered, TemplateError, render
from sensmerge.calibration.surroundings import panics_as_errors
from sensmerge.errors import InputError, first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")


def lay_out(
    conversation: Conversation, tokenizer: PreTrainedTokenizerBase, place: str
) -> tuple[list[int], list[int]]:
    """Token ids of a conversation, and the places of the scored ones.

    Raises:
        InputError: There is no template, it refuses the conversation, or it does not tell where
            the assistant's turns are.
    """
    if not tokenizer.chat_template:
        raise InputError(
            f"{place}: has messages, but the expert's tokenizer has no chat template; give "
            "prompt and completion instead"
        )
    layout = _Layout(conversation, tokenizer, place)
    whole = layout.text(len(conversation.messages))
    ids = tokens(tokenizer, whole)
    marked = layout.marked()
    pieces = layout.added(whole) if marked is None else marked

    def tokens_of(text: str) -> int:
        """How many tokens of the conversation lie within its first part, ``text``."""
        part = tokens(tokenizer, text)
        pairs = enumerate(zip(part, ids, strict=False))
        return next((place for place, (one, other) in pairs if one != other), len(part))

    scored: list[int] = []
    for start, end in pieces:
        scored += range(tokens_of(whole[:start]), tokens_of(whole[:end]))
    return ids, scored


class _Layout:
    """The texts that a template makes of a conversation."""

    def __init__(
        self, conversation: Conversation, tokenizer: PreTrainedTokenizerBase, place: str
    ) -> None:
        self.conversation = conversation
        self.tokenizer = tokenizer
        self.place = place

    def text(self, turns: int, **options: Any) -> str:
        """The layout of the first ``turns`` turns."""
        if not turns:
            return ""
        return self._rendered(self.conversation.messages[:turns], **options).text

    def marked(self) -> list[tuple[int, int]] | None:
        """Pieces that the template marks as the assistant's; None where it has no marks."""
        conversation = self.conversation
        if not _MARKS.search(self._template()):
            return None
        # The mask of apply_chat_template is of no use: where the last character of a piece has no
        # token, it covers all that follows.
        rendered = self._rendered(conversation.messages, marks=True)
        start = 0
        if conversation.first:
            start = len(self.text(conversation.first))
        pieces = [(int(begin), int(end)) for begin, end in rendered.marked if begin >= start]
        if not any(begin < end for begin, end in pieces):
            raise InputError(
                f"{self.place}: the chat template marks no words of the assistant's; give prompt "
                "and completion instead"
            )
        return pieces

    def added(self, whole: str) -> list[tuple[int, int]]:
        """Pieces that the assistant's turns add to the text."""
        pieces = []
        for place, turn in enumerate(self.conversation.messages):
            if turn["role"] == "assistant" and place >= self.conversation.first:
                before = self.text(place, add_generation_prompt=True)
                after = self.text(place + 1)
                if not (after.startswith(before) and whole.startswith(after)):
                    raise InputError(
                        f"{self.place}: the chat template rewrites earlier turns, so the "
                        "assistant's tokens cannot be told; give prompt and completion instead"
                    )
                pieces.append((len(before), len(after)))
        return pieces

    def _template(self) -> str:
        try:
            return self.tokenizer.get_chat_template(tools=self.conversation.tools)
        except Exception as error:
            raise self._refused(error) from None

    def _rendered(self, messages: list[dict[str, Any]], **options: bool) -> Rendered:
        variables = dict(self.tokenizer.special_tokens_map)
        try:
            return render(self._template(), messages, self.conversation.tools, variables, **options)
        except TemplateError as error:
            raise self._refused(error) from None

    def _refused(self, error: Exception) -> InputError:
        return InputError(f"{self.place}: the chat template refuses it: {first_line(error)}")


def tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool = False) -> list[int]:
    """The token ids of a text, with the tokenizer's special tokens or without."""
    try:
        with panics_as_errors():
            # Not verbose: it would warn of texts that are too long for the model, which are cut
            # later.
            return list(tokenizer(text, verbose=False, add_special_tokens=special)["input_ids"])
    except Exception as error:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer fails on a text: {first_line(error)}"
        ) from None
