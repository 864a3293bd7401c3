"""What to run: the suite file, prompt sets, rendering and the plan."""
