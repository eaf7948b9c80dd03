"""How the embedded weights were made: small networks trained on rendered people.

By hand, outside the DAG: `python -m stages.pretrain segmentation|pose|vit <weights>`.
"""
