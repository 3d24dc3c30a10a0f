"""Several processes as one, and what each is given and keeps: context, checkpoints, storage, tracking, memory."""
