"""One loaded model and how it is read: loading, anatomy, decode, capture, replay."""
