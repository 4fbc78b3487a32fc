"""Exercises that rewrite a chunk of the book: `python -m exercises` lists them."""
