"""What a person types: the `condense` command, one file for each group of commands."""
