"""Runs the jobs of condense on Ray Train, and keeps their results in MLflow."""
