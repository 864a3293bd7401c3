"""Short texts that several pages and tables share."""


def one_line(text: str) -> str:
    """Text that nobody vouches for, without line breaks or control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def precision_of(dtype: str, quantization: str | None) -> str:
    """A model's dtype, with the kind of its quantised weights where there is one: ``float32, weights bnb-8bit``."""
    return dtype if quantization is None else f"{dtype}, weights {quantization}"
