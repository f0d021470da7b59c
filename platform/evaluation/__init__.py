"""From predictions to numbers: metrics, trivial baselines, intervals, decode jobs."""
