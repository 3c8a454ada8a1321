"""emohubert: speech emotion recognition with HuBERT, as a fairseq plug-in.

Importing the package loads neither torch nor fairseq. `emohubert.tasks` registers the tasks, models and criterions with fairseq; the
user-dir (`user_dir/__init__.py`, or the folder of the installed package) imports it where fairseq loads it.
"""

__version__ = "0.1.0"
