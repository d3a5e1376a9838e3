"""What a run says for itself: the HTML page, the terminal table, and the format of `result.json`.

The modules are imported by name, so that reading a result does not load what only the page needs.
"""
