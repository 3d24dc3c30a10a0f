"""The small synthetic set: its parameters, its labels, its file, and the real images it is compared with."""
