"""Text that nobody vouches for, made fit for a terminal."""


def one_line(text: str) -> str:
    """Untrusted text without line breaks or control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
