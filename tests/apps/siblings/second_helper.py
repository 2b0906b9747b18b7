"""Helps the helper."""


def one():
    return 1
