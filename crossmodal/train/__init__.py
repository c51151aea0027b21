"""From a recipe to steps: engine, distribution, precision, schedules, mining and checkpoints."""
