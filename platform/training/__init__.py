"""Training: loss, optimizer, schedule, engine, checkpoint, loop."""
