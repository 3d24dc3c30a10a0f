"""Prints fresh secrets for compose.yaml, one KEY=VALUE a line; keep them in a file that only you can read.

umask 077; python deploy/make_secrets.py > deploy/.env
"""

import secrets
import sys

KEYS = (
    "RAY_AUTH_TOKEN",
    "MLFLOW_ADMIN_PASSWORD",
    "MLFLOW_SECRET_KEY",
    "POSTGRES_PASSWORD",
    "S3_ACCESS_KEY",
    "S3_SECRET_KEY",
)

if __name__ == "__main__":
    sys.stdout.writelines(f"{key}={secrets.token_hex(32)}\n" for key in KEYS)
