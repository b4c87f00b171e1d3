"""Numbers with their nouns."""


def count(number: int, noun: str) -> str:
    """``1 item``, ``2,000 items``."""
    plural = "es" if noun.endswith(("ch", "s")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else plural}"
