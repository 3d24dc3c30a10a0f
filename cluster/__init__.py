"""The same algorithm on Ray Train, with results in MLflow."""
