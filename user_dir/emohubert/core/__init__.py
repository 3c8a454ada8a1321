"""Errors, files, command lines and threads: nothing of speech."""
