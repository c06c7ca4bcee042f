"""The tokens in a SentencePiece model, read from its protocol buffer without running anything.

Of the format (``sentencepiece_model.proto``) only the list of pieces is read: field 1 of the model,
and in each of them field 1, its text.
"""

from __future__ import annotations

_TEXT, _PIECES = 1, 1
# Kinds of values: a number of variable length, 8 bytes, a length and so many bytes, 4 bytes.
_NUMBER, _EIGHT, _BYTES, _FOUR = 0, 1, 2, 5


def pieces(content: bytes) -> list[str]:
    """Every piece's text, by its id; empty if the content is not such a model."""
    try:
        return [
            next(text for number, text in _fields(piece) if number == _TEXT).decode("utf-8")
            for number, piece in _fields(content)
            if number == _PIECES
        ]
    except (IndexError, StopIteration, UnicodeDecodeError, ValueError):
        return []


def _fields(content: bytes) -> list[tuple[int, bytes]]:
    """The number and value of every field that holds bytes."""
    found = []
    place = 0
    while place < len(content):
        key, place = _number(content, place)
        length = 0
        if key & 7 == _NUMBER:
            _, place = _number(content, place)
        elif key & 7 == _BYTES:
            length, place = _number(content, place)
            found.append((key >> 3, content[place : place + length]))
        elif key & 7 in (_EIGHT, _FOUR):
            length = 8 if key & 7 == _EIGHT else 4
        else:
            raise ValueError("not a protocol buffer")
        place += length
        if place > len(content):
            raise ValueError("a protocol buffer that ends early")
    return found


def _number(content: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, seven bits a byte, and the place behind it."""
    number = shift = 0
    while True:
        byte = content[place]
        number |= (byte & 0x7F) << shift
        place, shift = place + 1, shift + 7
        if byte < 0x80:
            return number, place
