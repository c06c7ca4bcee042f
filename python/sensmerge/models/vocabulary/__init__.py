"""Vocabularies: the tokens of models, those of the output, and the rows that belong to them."""
