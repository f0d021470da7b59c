"""From a task's rows to the batches of a run: caches, mixture, order, objectives, packing, features, stream."""
