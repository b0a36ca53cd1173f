"""PyTorch as where it is not installed; importing it takes a third of a tiny run, whose TensorBoard would do so."""

raise ImportError("tiny runs do without PyTorch")
