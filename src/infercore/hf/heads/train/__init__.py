"""Training an EAGLE-3 head for a target, on text that the target writes: `infercore train-eagle`.

    train_eagle(model, tokenizer, Path("head"), Plan(minutes=8))

Files in reading order: `writer.py` (the text), `corpus.py` (documents, batches, what is kept apart), `begin.py`
(weights to start from), `lesson.py` (the loss), `run.py` (all of it), `card.py`; `command.py` (the command line).
"""

from infercore.hf.heads.train.run import Checked, Plan, train_eagle
from infercore.hf.heads.train.writer import Turns

__all__ = ["Checked", "Plan", "Turns", "train_eagle"]
