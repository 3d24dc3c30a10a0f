"""One outer step that moves the synthetic images (`engine.py`, THE HOT PATH) and the objectives that it minimises."""
