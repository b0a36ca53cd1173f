"""The blocks of both papers, as they train and as they run, and the layers that they are made of."""
