"""Faces: embeddings, trained with a margin and scored by verification."""
