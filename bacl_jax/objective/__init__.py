"""The objective: contrastive term, BNS, CLA and their weighted sum. Sees arrays and callables only."""
