"""Errors, files, command line, devices, threads: what does not depend on speech."""
