"""The tensors of a model that have a row a token, by their names."""

from __future__ import annotations

from sensmerge.models.layers import block_of

# Names of decoders' input embeddings and output heads in the Hugging Face layout.
INPUT_EMBEDDINGS = (
    "embed_tokens.weight",
    "wte.weight",
    "embed_in.weight",
    "word_embeddings.weight",
    "tok_embeddings.weight",
)
OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight")
# Tensors of one row, or one entry, a token.
_VOCABULARY = (*INPUT_EMBEDDINGS, *OUTPUT_HEADS, "lm_head.bias", "embed_out.bias")


def has_rows(name: str) -> bool:
    """Whether a tensor has a row, or an entry, a token.

    Those within numbered layers, as for multi-token prediction, are left as they are.
    """
    return name.endswith(_VOCABULARY) and block_of(name) is None
