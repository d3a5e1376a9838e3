"""What runs on a device: checks a signed bundle, tests it, installs it, goes back. docs/delivery.md is normative.

It needs the standard library, numpy, onnxruntime and cryptography, and of this package only `errors`, `limited`,
`metrics` and `intake`: `SOURCES` is all of it, and works where nothing of the rest is installed.
"""

# Below the folder of the package compressor.
SOURCES = ("__init__.py", "errors.py", "limited.py", "metrics.py", "intake", "device")
