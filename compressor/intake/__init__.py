"""What comes in from outside, looked at before a library sees it: files, ONNX models, weights, arrays, texts.

`docs/bad-input.md` says what is refused, and with which limits.
"""
