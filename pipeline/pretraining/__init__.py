"""Training of the embedded weights: small networks trained on rendered people.

Run by hand, outside the DAG: `python -m stages.pretrain segmentation|pose|vit <weights>`.
"""
