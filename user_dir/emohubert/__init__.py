"""emohubert: speech emotion recognition with HuBERT, as a fairseq plug-in.

Importing the package loads neither torch nor fairseq. `emohubert.tasks` registers the tasks, models and criterions with fairseq; the
user-dir (`user_dir/__init__.py`, or the folder of the installed package) imports it where fairseq loads it. `load` gives a trained model.
"""

__version__ = "0.1.0"


def load(model="ser_small", device="auto", precision="float32"):
    """A trained model, ready to use; see `emohubert.tasks.recogniser.load`."""
    from .tasks.recogniser import load

    return load(model, device, precision)
