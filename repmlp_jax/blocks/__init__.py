"""The blocks of both papers, trained and fused, and their layers."""
