"""What a trait's vectors are worth: gates on held-out evidence, and the card that keeps it."""
