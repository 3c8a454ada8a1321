"""How values are written in the tables and sentences of a page: filters of its template."""

import math


def number(value):
    """Three decimals, or three digits where those would hide a number; “–” for NaN and for what is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or math.isnan(value):
        return "–"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if 1e-3 <= abs(value) < 1e5 or value == 0 else f"{value:.3g}"


def signed(value):
    """A difference: three decimals and its sign."""
    return f"{value:+.3f}" if number(value) != "–" else "–"


def interval(values):
    """`[low, high]`; “–” where there is none."""
    return f"[{number(values[0])}, {number(values[1])}]" if isinstance(values, list) and len(values) == 2 else "–"


def count(n, noun):
    """`1 speaker`, `2 speakers`."""
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def cell(value):
    """Text of any JSON value; {"mean", "std", "n"} is written as `mean ± std (n = …)`."""
    if isinstance(value, str):
        return value
    if isinstance(value, dict) and {"mean", "std"} <= value.keys() <= {"mean", "std", "n"}:
        return f"{number(value['mean'])} ± {number(value['std'])}" + (f" (n = {value['n']})" if isinstance(value.get("n"), int) else "")
    if isinstance(value, dict):
        return ", ".join(f"{key} {cell(v)}" for key, v in value.items())
    if isinstance(value, list):
        return ", ".join(map(cell, value)) or "–"
    return ("no", "yes")[value] if isinstance(value, bool) else number(value)
