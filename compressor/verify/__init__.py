"""Evidence: parity after every conversion, task quality with intervals, and the gate that refuses to ship."""
