"""All graders: GRADERS has one for each chunk that may be rewritten."""
from exercises import assistant, attention, layers, model, text, today
from exercises.common import GRADERS

__all__ = ["GRADERS", "assistant", "attention", "layers", "model", "text", "today"]
