"""Its place makes pytest find needed.py, which tests of several folders import."""
