"""What a run reports, as JSON lines, and the tracker that takes it to MLflow."""
