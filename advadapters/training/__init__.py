"""Training: state, optimizer, views, the step, the loop."""
