"""The two papers' statements as experiments: linear MMCL (arXiv 2302.06232) and BACL's theorems (arXiv 2511.08399)."""
