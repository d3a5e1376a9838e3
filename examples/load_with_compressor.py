"""Uses a bundle through `compressor.load`: hashes checked, raw text in, no torch.

python examples/load_with_compressor.py runs/sentence-embedding/bundle
"""

import sys

import compressor

embed = compressor.load(sys.argv[1])
a, b, c = embed(["A man is walking his dog.", "A person walks a dog outside.", "The stock market fell on Monday."])
print(f"same meaning {a @ b:.3f}, another {a @ c:.3f}")
