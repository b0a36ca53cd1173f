"""Faces: who is who, learned with a margin, scored by verification."""
